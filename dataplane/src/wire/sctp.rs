//! SCTP packets (RFC 9260 §3).

/// The chunks that open and close an association, as a set of bits.
pub mod chunks {
    /// INIT (1): the association opens.
    pub const INIT: u8 = 1;
    /// INIT ACK (2).
    pub const INIT_ACK: u8 = 2;
    /// ABORT (6): it is gone.
    pub const ABORT: u8 = 4;
    /// SHUTDOWN (7): no more data from the sender.
    pub const SHUTDOWN: u8 = 8;
    /// SHUTDOWN ACK (8).
    pub const SHUTDOWN_ACK: u8 = 16;
    /// SHUTDOWN COMPLETE (14): the association is closed.
    pub const SHUTDOWN_COMPLETE: u8 = 32;
    /// COOKIE ECHO (10).
    pub const COOKIE_ECHO: u8 = 64;
    /// COOKIE ACK (11): the association is established.
    pub const COOKIE_ACK: u8 = 128;
}
