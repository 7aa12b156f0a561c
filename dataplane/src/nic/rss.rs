//! Receive-side scaling: which queue a NIC puts a packet in, computed as the NIC does it.
//!
//! Takes  what the driver tells of its hash function, key and indirection table; addresses and ports.
//! Gives  the queue; of many packets, how many would come to a worker that does not own their flow.
//! Never  touches a packet: what is computed here is said at start.

use std::net::IpAddr;

use crate::index::WorkerIndex;
use crate::steering::Steering;

/// How an interface shares received packets out to its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// The Toeplitz function as it is, without a transformation of its input. Else what it does is not known here.
    pub is_toeplitz: bool,
    /// Whether TCP's ports are hashed beside the addresses, of IPv4 and of IPv6; else addresses alone.
    pub hashes_ports: [bool; 2],
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
        if !self.is_toeplitz || self.key.is_empty() {
            return None;
        }
        let low = self.hash(ends)? as usize % self.table.len().max(1);
        self.table.get(low).copied()
    }

    /// Queues that packets are put in.
    pub fn queues(&self) -> u32 {
        self.table.iter().max().map_or(0, |most| most + 1)
    }

    /// How clients' packets to a frontend, and endpoints' answers to a translated client, are spread. `None` if the queue
    /// cannot be known.
    pub fn misses(&self, steering: &Steering) -> Option<(Misses, Misses)> {
        // Documentation's and benchmarks' addresses stand for everybody's (RFC 5737, RFC 2544).
        let (frontend, own, endpoint) = ([203, 0, 113, 10], [192, 0, 2, 2], [198, 51, 100, 11]);
        let (mut clients, mut answers) = (Misses::default(), Misses::default());
        let ports: Vec<u16> = (0..steering.workers())
            .flat_map(|worker| steering.slice(WorkerIndex(worker as u8)))
            .flatten()
            .collect();
        for nth in 0..SAMPLE {
            // Every address and port once, in no order (a multiplier of 2^32 that is prime to it).
            let mixed = nth.wrapping_mul(0x9e37_79b9);
            let [_, a, b, c] = mixed.rotate_left(9).to_be_bytes();
            let client = ([198, 18 + (a & 1), b, c], 1_024 + (mixed >> 7) as u16 % 60_000);
            let ends = |from: ([u8; 4], u16), to: ([u8; 4], u16)| Ends {
                from: (from.0.into(), from.1),
                to: (to.0.into(), to.1),
            };
            let owner = steering.hash_owner(client.0, crate::addr::Port::new(client.1));
            clients.count(self.queue(&ends(client, (frontend, 80)))?, owner, steering);
            if let Some(&port) = ports.get(mixed as usize % ports.len().max(1))
                && let Some(owner) = steering.port_owner(port)
            {
                answers.count(
                    self.queue(&ends((endpoint, 8_080), (own, port)))?,
                    owner,
                    steering,
                );
            }
        }
        Some((clients, answers))
    }
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
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn rss(hashes_ports: bool, table: Vec<u32>) -> Rss {
        Rss {
            is_toeplitz: true,
            hashes_ports: [hashes_ports; 2],
            key: KEY.to_vec(),
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
            is_toeplitz: false,
            ..rss(true, table)
        };
        assert_eq!(other.queue(&ends), None, "another function");
        assert_eq!(rss(true, vec![]).queue(&ends), None, "no table");
    }

    #[test]
    fn a_hash_that_knows_nothing_of_owners_misses_them_as_chance_has_it() {
        let steering = Steering::new(4, vec![1_024..=29_999, 32_768..=65_535]);
        let table: Vec<u32> = (0..128).map(|n| n % 4).collect();
        let (clients, answers) = rss(true, table).misses(&steering).unwrap();
        for misses in [clients, answers] {
            assert_eq!((misses.packets, misses.unserved), (SAMPLE, 0));
            assert!((70..80).contains(&misses.percent()), "{misses:?}");
        }
        // All packets in one queue: those of its worker's flows are where they belong.
        let (one, _) = rss(true, vec![2; 128]).misses(&steering).unwrap();
        assert!((70..80).contains(&one.percent()), "{one:?}");
        // Two queues more than there are workers.
        let table: Vec<u32> = (0..126).map(|n| n % 6).collect();
        let (more, _) = rss(true, table).misses(&steering).unwrap();
        assert!(more.unserved.abs_diff(SAMPLE / 3) < SAMPLE / 20, "{more:?}");
    }
}
