//! What the tests of whole packets stand on. Nothing here builds or judges a packet with the code under test.

/// Lines of the packet language, as text.
pub mod line;
/// Lines to bytes and back, by etherparse.
pub mod packet;
/// Stations and their MAC addresses.
pub mod station;
/// Table records as text.
pub mod records;
/// Vector files.
pub mod vector;
/// Random choices.
pub mod random;
/// The NIC ports' driver.
pub mod nic;
/// Workers, NIC ports and time moved by hand.
pub mod world;
