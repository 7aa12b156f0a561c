//! A client's class: the number from 0 to 127 by which its flows are shared out among the workers.
//!
//! It is made so that a NIC can find it, too: it is what the Toeplitz function of receive-side scaling gives of a packet
//! under the keys of `nic::rss`, which have their bits where these shifts are. That function is linear: so is this, and
//! there is no secret in it: whoever can choose addresses and ports can choose classes.
//!
//! Takes  an address and a port.   Gives  a class.   Never  knows how many workers there are.

use crate::addr::{Address, Port};

/// How many there are: the entries of most NICs' indirection tables.
pub const CLASSES: usize = 128;

/// What an address is shifted by, and all sums of these, before its low bits count: so that networks and hosts of all
/// sizes come to all classes; but for bits 32 to 63 of IPv6's, which count nothing (`nic::rss` has other uses for the key there).
pub const SHIFTS: [u32; 3] = [4, 7, 14];

/// Bits behind those of an IPv6 address that come into its class beside the first and last 32: the bit of a key that hashes
/// IPv4's port hashes these, too.
pub const V6_MIDDLE: u32 = 48;

/// The class of a client.
#[inline(always)]
pub fn of<A: Address>(address: A, port: Port) -> usize {
    usize::from(of_address(address) ^ of_port(port))
}

/// The place of a class in the order in which workers have their turns. Systems take every second port for connections, so
/// the lowest bit, which those have in common, counts least: the connections of one client go round the workers.
pub const fn turn(class: usize) -> usize {
    class >> 1 | (class & 1) << 6
}

/// What the port adds: ports that follow each other are in classes that do.
#[inline(always)]
pub const fn of_port(port: Port) -> u8 {
    (port.number() % CLASSES as u16) as u8
}

/// What the address adds.
#[inline(always)]
pub fn of_address<A: Address>(address: A) -> u8 {
    let low = match *address.as_ref() {
        [a, b, c, d] => fold(u32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, .., e, f, g, h, i, j, k, l] => {
            let last = u64::from_be_bytes([e, f, g, h, i, j, k, l]);
            let first = u32::from_be_bytes([a, b, c, d]);
            fold(first) ^ fold(last as u32) ^ (last >> V6_MIDDLE) as u32
        }
        _ => 0,
    };
    (low % CLASSES as u32) as u8
}

const fn fold(mut word: u32) -> u32 {
    let [a, b, c] = SHIFTS;
    word ^= word >> a;
    word ^= word >> b;
    word ^ word >> c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_differ_little_are_in_classes_that_differ() {
        // A /25 of hosts; as many networks, as hosts see each other and as routers do; the ports that one host takes in turn.
        let mut of_hosts = [0; CLASSES];
        let mut of_networks = [0; CLASSES];
        let mut of_six = [0; CLASSES];
        let mut of_ports = [0; CLASSES];
        for n in 0..CLASSES as u8 {
            of_hosts[of([192, 0, 2, n], Port::new(4_000))] += 1;
            of_networks[of([10, n, 7, 1], Port::new(4_000))] += 1;
            let mut six = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            six[15] = n;
            of_six[of(six, Port::new(4_000))] += 1;
            of_ports[of([192, 0, 2, 1], Port::new(40_000 + u16::from(n)))] += 1;
        }
        assert_eq!(of_hosts, [1; CLASSES]);
        assert_eq!(of_six, [1; CLASSES]);
        assert_eq!(of_ports, [1; CLASSES]);
        assert!(
            of_networks.iter().filter(|count| **count > 0).count() >= 32,
            "{of_networks:?}"
        );
    }
}
