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
mod tests {
    use super::*;

    /// Of "Verifying the RSS Hash Calculation", as the vectors below are.
    const VERIFYING: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn rss(hashes_ports: bool, table: Vec<u32>) -> Rss {
        Rss {
            function: TOEPLITZ,
            transformation: 0,
            hashes_ports: [hashes_ports; 2],
            hashes_udp_ports: [hashes_ports; 2],
            key: VERIFYING.to_vec(),
            table,
        }
    }

    #[test]
    fn the_hash_is_that_of_the_published_vectors() {
        // Destination, source, hash of the addresses, hash with TCP's ports.
        let vectors = [
            (
                ("161.142.100.80", 1766),
                ("66.9.149.187", 2794),
                0x323e_8fc2,
                0x51cc_c178,
            ),
            (
                ("65.69.140.83", 4739),
                ("199.92.111.2", 14230),
                0xd718_262a,
                0xc626_b0ea,
            ),
            (
                ("12.22.207.184", 38024),
                ("24.19.198.95", 12898),
                0xd2d0_a5de,
                0x5c2b_394a,
            ),
            (
                ("209.142.163.6", 2217),
                ("38.27.205.30", 48228),
                0x8298_9176,
                0xafc7_327f,
            ),
            (
                ("202.188.127.2", 1303),
                ("153.39.163.191", 44251),
                0x5d18_09c5,
                0x10e8_28a2,
            ),
            (
                ("3ffe:2501:200:3::1", 1766),
                ("3ffe:2501:200:1fff::7", 2794),
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                ("ff02::1", 4739),
                ("3ffe:501:8::260:97ff:fe40:efab", 14230),
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                ("fe80::200:f8ff:fe21:67cf", 38024),
                ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
                0x4b61_e985,
                0x02d1_feef,
            ),
        ];
        for (to, from, addresses, ports) in vectors {
            let end = |(address, port): (&str, u16)| (address.parse().unwrap(), port);
            let ends = Ends {
                from: end(from),
                to: end(to),
            };
            assert_eq!(rss(false, vec![]).hash(&ends), Some(addresses), "{ends:?}");
            assert_eq!(rss(true, vec![]).hash(&ends), Some(ports), "{ends:?}");
        }
    }

    #[test]
    fn the_low_bits_of_the_hash_choose_from_the_table() {
        let ends = Ends {
            from: ("66.9.149.187".parse().unwrap(), 2794),
            to: ("161.142.100.80".parse().unwrap(), 1766),
        };
        let mut table = vec![0; 128];
        table[0x78] = 3; // of 0x51ccc178
        assert_eq!(rss(true, table.clone()).queue(&ends), Some(3));
        assert_eq!(rss(true, table.clone()).queues(), 4);
        let other = Rss {
            transformation: 1,
            ..rss(true, table)
        };
        assert_eq!(other.queue(&ends), None, "another function");
        assert_eq!(rss(true, vec![]).queue(&ends), None, "no table");
    }

    #[test]
    fn a_hash_that_knows_nothing_of_owners_misses_them_as_chance_has_it() {
        let steering = Steering::new(4, vec![1_024..=29_999, 32_768..=65_535]);
        let misses = |table, traffic, ipv6| rss(true, table).misses(traffic, ipv6, &steering).unwrap();
        for traffic in [Traffic::Clients, Traffic::Answers] {
            for ipv6 in [false, true] {
                let misses = misses((0..128).map(|n| n % 4).collect(), traffic, ipv6);
                assert_eq!((misses.packets, misses.unserved), (SAMPLE, 0));
                assert!((70..80).contains(&misses.percent()), "{misses:?}");
            }
        }
        // All packets in one queue: those of its worker's flows are where they belong.
        let one = misses(vec![2; 128], Traffic::Clients, false);
        assert!((70..80).contains(&one.percent()), "{one:?}");
        // Two queues more than there are workers.
        let more = misses((0..126).map(|n| n % 6).collect(), Traffic::Clients, false);
        assert!(more.unserved.abs_diff(SAMPLE / 3) < SAMPLE / 20, "{more:?}");
    }

    /// An interface with another key and table, and one set for this.
    fn set(faces: Faces, workers: u8, ipv4: bool, entries: usize) -> (Steering, Option<Rss>) {
        let steering = Steering::new(workers, vec![1_024..=29_999, 32_768..=65_535]);
        let spread = Spread {
            faces,
            owners: *steering.owners(),
            ipv4,
        };
        let before = rss(true, vec![0; entries]);
        (steering, before.set_for(&spread).ok())
    }

    #[test]
    fn with_the_key_that_is_made_for_it_every_packet_comes_to_its_owner() {
        for (faces, traffic) in [
            (Faces::Clients, Traffic::Clients),
            (Faces::Endpoints, Traffic::Answers),
        ] {
            for workers in [1, 2, 3, 4, 12, 64] {
                for entries in [128, 512, 2_048] {
                    let (steering, rss) = set(faces, workers, true, entries);
                    let misses = rss.unwrap().misses(traffic, false, &steering).unwrap();
                    assert_eq!(
                        misses,
                        Misses {
                            packets: SAMPLE,
                            ..Misses::default()
                        },
                        "{faces:?} {workers} {entries}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_same_key_is_made_for_ipv6_unless_there_are_answers_of_both_families() {
        let misses = |faces, traffic, ipv4| {
            let (steering, rss) = set(faces, 4, ipv4, 128);
            rss.unwrap().misses(traffic, true, &steering).unwrap().handed_over
        };
        assert_eq!(misses(Faces::Clients, Traffic::Clients, true), 0);
        assert_eq!(misses(Faces::Clients, Traffic::Clients, false), 0);
        assert_eq!(misses(Faces::Endpoints, Traffic::Answers, false), 0);
        assert!(
            misses(Faces::Endpoints, Traffic::Answers, true) > 0,
            "as the module says"
        );
    }

    #[test]
    fn a_short_table_does_for_as_many_workers_as_divide_it() {
        for (workers, fits) in [(2, true), (64, true), (3, false)] {
            let (steering, rss) = set(Faces::Clients, workers, true, 64);
            assert_eq!(rss.is_some(), fits, "{workers}");
            let misses = rss.map(|rss| rss.misses(Traffic::Clients, false, &steering).unwrap());
            assert_eq!(misses.map_or(0, |misses| misses.handed_over), 0);
        }
        assert_eq!(
            set(Faces::Clients, 2, true, 100).1,
            None,
            "no bits choose from it"
        );
        assert_eq!(set(Faces::Clients, 2, true, 0).1, None);
        let spread = Spread {
            faces: Faces::Clients,
            owners: *Steering::new(2, vec![]).owners(),
            ipv4: true,
        };
        let short = Rss {
            key: vec![0; 39],
            ..rss(true, vec![0; 128])
        };
        assert!(short.set_for(&spread).unwrap_err().contains("a key of 39 bytes"));
    }
}
