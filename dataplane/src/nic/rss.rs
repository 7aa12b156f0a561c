//! Receive-side scaling: which queue a NIC puts a packet in, computed as the NIC does it.
//!
//! Takes  what the driver tells of its hash function, key and indirection table; addresses and ports.
//! Gives  the queue; of many packets, how many would come to a worker that does not own their flow; the key and table with
//!        which none does.
//! Never  touches a packet or a NIC.
//!
//! **The key.** The function takes the sum (exclusive or) of 32 bits of the key for each bit that is set in what it hashes:
//! for the n-th, those from the n-th on. Of that the last 7 choose from a table of 128. So a key bit at p counts for the
//! hashed bits from p - 31 to p - 25, each in another bit of the hash, and a key with few bits hashes few fields: where it
//! has them is which. With those of `CLIENTS` the addresses' and the port's bits of the source fall into the hash as
//! `class` folds them, and none of the destination's does; moved by as much as the destination is behind the source, it is
//! the other way round. Both families have a place in the same 40 bytes, with one exception: where IPv4's destination
//! address is hashed, there are bits 32 to 63 and 89 to 95 of IPv6's source address. So with answers of both families on one
//! interface, IPv6's come to their owner only as far as endpoints are alike in these.

use std::net::IpAddr;

use super::open::{Faces, Spread};
use crate::addr::Port;
use crate::class::{CLASSES, SHIFTS, V6_MIDDLE};
use crate::index::WorkerIndex;
use crate::steering::Steering;

/// How an interface shares received packets out to its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// The hash function, as the kernel numbers it: a bit each (ETH_RSS_HASH_TOP is Toeplitz's).
    pub function: u8,
    /// What its input is transformed by before (RXH_XFRM_SYM_XOR); 0: nothing.
    pub transformation: u8,
    /// Whether TCP's ports are hashed beside the addresses, of IPv4 and of IPv6; else addresses alone.
    pub hashes_ports: [bool; 2],
    /// The same of UDP's.
    pub hashes_udp_ports: [bool; 2],
    /// The secret.
    pub key: Vec<u8>,
    /// The queue for each value of the hash's low bits.
    pub table: Vec<u32>,
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub from: (IpAddr, u16),
    /// Where it goes.
    pub to: (IpAddr, u16),
}

/// Of packets that were made up, those that the NIC would give to a worker which is not their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// All packets.
    pub packets: u32,
    /// In the queue of a worker that hands them over to another.
    pub handed_over: u32,
    /// In a queue that no worker has.
    pub unserved: u32,
}

/// ETH_RSS_HASH_TOP.
pub const TOEPLITZ: u8 = 1;
/// The last byte of a key that `set_for` makes has the bit of IPv6's destination port.
const KEY: usize = 40;

/// Packets made up for an estimate: one more or less in 4,096 is a fortieth of a percent.
const SAMPLE: u32 = 4_096;

/// The Toeplitz hash (Microsoft, "RSS hashing functions") of `input` under `key`; bits beyond the key are zero.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let byte = |at: usize| key.get(at).copied().unwrap_or_default();
    let mut window = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
    let mut hash = 0;
    for (at, octet) in input.iter().enumerate() {
        let next = byte(at + 4);
        for bit in (0..8).rev() {
            if octet >> bit & 1 != 0 {
                hash ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    hash
}

impl Rss {
    /// The Toeplitz function as it is. Else what it does is not known here.
    pub const fn is_toeplitz(&self) -> bool {
        self.function == TOEPLITZ && self.transformation == 0
    }

    /// The hash of a TCP packet between `ends`; `None` if they are of two families.
    pub fn hash(&self, ends: &Ends) -> Option<u32> {
        let mut input = Vec::with_capacity(36);
        let with_ports = match (ends.from.0, ends.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                input.extend([from.octets(), to.octets()].concat());
                self.hashes_ports[0]
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                input.extend([from.octets(), to.octets()].concat());
                self.hashes_ports[1]
            }
            _ => return None,
        };
        if with_ports {
            input.extend([ends.from.1.to_be_bytes(), ends.to.1.to_be_bytes()].concat());
        }
        Some(toeplitz(&self.key, &input))
    }

    /// The queue that a TCP packet between `ends` comes to; `None` if that cannot be known.
    pub fn queue(&self, ends: &Ends) -> Option<u32> {
        if !self.is_toeplitz() || self.key.is_empty() {
            return None;
        }
        let low = self.hash(ends)? as usize % self.table.len().max(1);
        self.table.get(low).copied()
    }

    /// Queues that packets are put in.
    pub fn queues(&self) -> u32 {
        self.table.iter().max().map_or(0, |most| most + 1)
    }

    /// How packets are spread that clients send to frontends, or endpoints to clients. `None` if the queue cannot be known.
    pub fn misses(&self, traffic: Traffic, ipv6: bool, steering: &Steering) -> Option<Misses> {
        let mut misses = Misses::default();
        for nth in 0..SAMPLE {
            // Every address and port once, in no order (a multiplier of 2^32 that is prime to it).
            let mixed = nth.wrapping_mul(0x9e37_79b9);
            let [a, b, c, d] = mixed.rotate_left(9).to_be_bytes();
            // Documentation's and benchmarks' addresses stand for everybody's (RFC 5737, RFC 2544, RFC 3849); endpoints are on
            // 16 nodes, each with a network of its own, as clusters have them.
            let address =
                |four: [u8; 4], six: [u16; 8]| -> IpAddr { if ipv6 { six.into() } else { four.into() } };
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let client = address(
                [198, 18 + (b & 1), c, d],
                [0x2001, 0xdb8, high, low, 0x200, high, low, high],
            );
            let frontend = address([203, 0, 113, a], [0x2001, 0xdb8, 0, 1, 0, 0, 0, u16::from(a)]);
            let own = address([192, 0, 2, 2], [0x2001, 0xdb8, 0, 2, 0, 0, 0, 2]);
            let node = b % 16;
            let endpoint = address(
                [10, 244, node, c],
                [0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, c.into()],
            );
            let client = (client, 1_024 + (mixed >> 7) as u16 % 60_000);
            let (ends, owned) = match traffic {
                Traffic::Clients => ((client, (frontend, 443)), client),
                // Every second client is translated.
                Traffic::Answers => {
                    let to = if nth % 2 == 0 { client } else { (own, client.1) };
                    (((endpoint, 8_080), to), to)
                }
            };
            let (from, to) = ends;
            let owner = match owned.0 {
                IpAddr::V4(address) => steering.client_owner(address.octets(), Port::new(owned.1)),
                IpAddr::V6(address) => steering.client_owner(address.octets(), Port::new(owned.1)),
            };
            misses.count(self.queue(&Ends { from, to })?, owner, steering);
        }
        Some(misses)
    }

    /// The same interface with the key and table that `spread` asks for. Errors: what it has too little of.
    pub fn set_for(&self, spread: &Spread) -> Result<Self, String> {
        let entries = self.table.len();
        if self.key.len() < KEY {
            return Err(format!("a key of {} bytes, and it takes {KEY}", self.key.len()));
        }
        let queue = |hash: usize| u32::from(spread.owners[class(hash)].0);
        // A NIC with fewer entries than classes sees fewer of the hash's bits.
        let fits = entries.is_power_of_two() && (0..CLASSES).all(|hash| queue(hash) == queue(hash % entries));
        if !fits {
            return Err(format!(
                "a table of {entries} entries, which does for numbers of workers that divide it: powers of two"
            ));
        }
        Ok(Self {
            function: TOEPLITZ,
            transformation: 0,
            key: key(spread, self.key.len()),
            table: (0..entries).map(queue).collect(),
            ..self.clone()
        })
    }
}

/// Packets that come by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Of clients, to frontends.
    Clients,
    /// Of endpoints, to clients and to those that we translated clients to.
    Answers,
}

/// Bits before a packet's ports, of IPv4 and of IPv6: both addresses.
const BEFORE_PORTS: [usize; 2] = [64, 256];

/// The class of packets with this hash: the hash has the first bit last.
const fn class(hash: usize) -> usize {
    ((hash as u8).reverse_bits() >> 1) as usize
}

/// The key, of `len` bytes.
fn key(spread: &Spread, len: usize) -> Vec<u8> {
    let mut key = vec![0; len];
    let mut set = |bit: usize| {
        if let Some(byte) = key.get_mut(bit / 8) {
            *byte |= 0x80 >> (bit % 8);
        }
    };
    let [shift_a, shift_b, shift_c] = SHIFTS.map(|shift| shift as usize);
    // All sums of the shifts: what `class` folds by.
    let folds = (0..8).map(|n| (n & 1) * shift_a + (n >> 1 & 1) * shift_b + (n >> 2) * shift_c);
    // By this bit of the key the last 7 bits before `end` fall into the hash, in reverse order; by those before it, others.
    let to_end = |end: usize| end - 1 + 25;
    let (v4, v6) = match spread.faces {
        Faces::Endpoints => (32, 128),
        Faces::Clients | Faces::Both => (0, 0),
    };
    let port = if spread.faces == Faces::Endpoints { 16 } else { 0 };
    for fold in folds {
        if spread.ipv4 {
            set(to_end(v4 + 32) - fold);
        }
        set(to_end(v6 + 32) - fold);
        set(to_end(v6 + 128) - fold);
    }
    set(to_end(v6 + 128) - V6_MIDDLE as usize);
    let [before_v4, before_v6] = BEFORE_PORTS;
    if spread.ipv4 {
        set(to_end(before_v4 + port + 16));
    }
    set(to_end(before_v6 + port + 16));
    key
}

impl Misses {
    fn count(&mut self, queue: u32, owner: WorkerIndex, steering: &Steering) {
        self.packets += 1;
        if queue as usize >= steering.workers() {
            self.unserved += 1;
        } else if queue != u32::from(owner.0) {
            self.handed_over += 1;
        }
    }

    /// Percent of all packets that are handed over.
    pub const fn percent(&self) -> u32 {
        match (self.handed_over * 100).checked_div(self.packets) {
            Some(percent) => percent,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests;
