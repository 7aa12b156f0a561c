//! The least that any NAT must do to the same packets: the same headers brought in, the same hash, one bucket line and
//! one entry line a packet (IPv6: two) of tables of the same size, asked for in the same waves; the same header bytes
//! written. No checks, no states, no features. What a row costs beyond this is the price of being right.

use bytemuck::{Pod, Zeroable};
use sluice_dataplane::prefetch::prefetch;
use sluice_dataplane::segment::Slab;

use super::packets::{self, Tuple};
use crate::gateway::{CLIENT_SIDE, Setup};

const BURST: usize = 64;
const PLACES: usize = 8;

#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Bucket {
    tags: [u16; PLACES],
    words: [u32; PLACES],
    unused: [u64; 2],
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u64; 8]);

/// See the module.
pub(super) struct Floor {
    buckets: Slab<Bucket>,
    entries: Slab<Line>,
    /// Lines of an entry.
    lines: usize,
    /// Frames 2 KiB apart, as in frame memory.
    frames: Slab<u8>,
    loaded: usize,
    setup: Setup,
}

const STRIDE: usize = 2_048;
const FRAMES: usize = 2_048;

/// Where a frame's packet begins: staggered as those of frame memory are.
const fn place(frame: usize) -> usize {
    frame * STRIDE + 256 - (frame / 2 % 4) * 64
}

impl Floor {
    /// With `flows` flows in tables as large as the gateway's.
    pub(super) fn new(setup: &Setup, flows: usize, tuple: impl Fn(usize) -> Tuple) -> std::io::Result<Self> {
        let lines = if setup.v6 { 2 } else { 1 };
        let mut floor = Self {
            // Two keys a flow, three places for two keys, ten places a line.
            buckets: Slab::zeroed((setup.flows * 3).div_ceil(10).max(2))?,
            entries: Slab::zeroed(setup.flows * lines)?,
            lines,
            frames: Slab::zeroed(FRAMES * STRIDE)?,
            loaded: 0,
            setup: *setup,
        };
        let mut frame = vec![0; packets::least(setup)];
        let to = (CLIENT_SIDE, setup.protocol);
        for flow in 0..flows {
            packets::write(&mut frame, to, tuple(flow), packets::flags::ACK, 0);
            let key = floor.key(&frame);
            floor.insert(key, flow as u32);
        }
        Ok(floor)
    }

    /// Takes packets into its frames.
    pub(super) fn load<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) {
        self.loaded = 0;
        for (n, packet) in packets.take(FRAMES).enumerate() {
            let at = place(n);
            self.frames[at..at + packet.len()].copy_from_slice(packet);
            self.loaded = n + 1;
        }
    }

    /// Translates them all; how many it knew.
    pub(super) fn run(&mut self, tick: u32) -> usize {
        let mut known = 0;
        for burst in 0..self.loaded / BURST {
            let at = |i: usize| place(burst * BURST + i);
            for i in 0..BURST {
                prefetch(&self.frames[at(i)]);
            }
            let mut keys = [[0u64; 5]; BURST];
            let mut hashes = [0u64; BURST];
            for i in 0..BURST {
                keys[i] = self.key(&self.frames[at(i)..at(i) + 64]);
                hashes[i] = hash(&keys[i]);
                prefetch(&self.buckets[self.bucket(hashes[i])]);
            }
            let mut words = [0u32; BURST];
            for i in 0..BURST {
                words[i] = self.word(hashes[i]);
                prefetch(&self.entries[words[i] as usize * self.lines]);
                if self.lines == 2 {
                    prefetch(&self.entries[words[i] as usize * 2 + 1]);
                }
            }
            for i in 0..BURST {
                let entry = &mut self.entries[words[i] as usize * self.lines..][..self.lines];
                known += usize::from(entry[0].0[0] == keys[i][0] && entry[0].0[1] == keys[i][1]);
                entry[0].0[7] = tick.into();
                let last = entry[self.lines - 1].0;
                rewrite(&mut self.frames[at(i)..at(i) + 64], self.setup.v6, last);
            }
        }
        known
    }

    fn key(&self, frame: &[u8]) -> [u64; 5] {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&frame[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        if self.setup.v6 {
            [word(22), word(30), word(38), word(46), word(54) & 0xffff_ffff]
        } else {
            [word(26), word(34) & 0xffff_ffff, 0, 0, 0]
        }
    }

    fn bucket(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    fn word(&self, hash: u64) -> u32 {
        let mut at = self.bucket(hash);
        loop {
            let bucket = &self.buckets[at];
            let tag = hash as u16 | 1;
            let matching = (0..PLACES).fold(0u32, |bits, i| bits | u32::from(bucket.tags[i] == tag) << i);
            if matching != 0 {
                return bucket.words[matching.trailing_zeros() as usize];
            }
            if bucket.tags[PLACES - 1] == 0 {
                return 0;
            }
            at = (at + 1) % self.buckets.len();
        }
    }

    fn insert(&mut self, key: [u64; 5], flow: u32) {
        let hash = hash(&key);
        let mut at = self.bucket(hash);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.tags.iter().position(|&tag| tag == 0) {
                bucket.tags[place] = hash as u16 | 1;
                bucket.words[place] = flow;
                break;
            }
            at = (at + 1) % self.buckets.len();
        }
        let entry = &mut self.entries[flow as usize * self.lines];
        entry.0[..5].copy_from_slice(&key);
    }
}

fn hash(key: &[u64; 5]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let mut mixed = fold(key[0] ^ 0x243f_6a88_85a3_08d3, key[1] ^ 0x1319_8a2e_0370_7344);
    if key[2] != 0 {
        mixed = fold(mixed ^ key[2], key[3] ^ 0xa409_3822_299f_31d0) ^ key[4];
    }
    fold(mixed, 0x082e_fa98_ec4e_6c89)
}

/// MAC addresses, addresses, ports, time to live and both checksums: some bytes of the entry, where they belong.
fn rewrite(frame: &mut [u8], v6: bool, entry: [u64; 8]) {
    let bytes = |i: usize| entry[i].to_le_bytes();
    frame[..8].copy_from_slice(&bytes(0));
    frame[8..12].copy_from_slice(&bytes(1)[..4]);
    if v6 {
        frame[21] = frame[21].wrapping_sub(1);
        for i in 0..4 {
            frame[22 + 8 * i..30 + 8 * i].copy_from_slice(&bytes(i));
        }
        frame[54..58].copy_from_slice(&bytes(4)[..4]);
        change(frame, 60, entry[5] as u16);
    } else {
        frame[22] = frame[22].wrapping_sub(1);
        change(frame, 24, entry[5] as u16);
        frame[26..34].copy_from_slice(&bytes(2));
        frame[34..38].copy_from_slice(&bytes(4)[..4]);
        change(frame, 40, (entry[5] >> 16) as u16);
    }
}

fn change(frame: &mut [u8], at: usize, delta: u16) {
    let (sum, carry) = u16::from_ne_bytes([frame[at], frame[at + 1]]).overflowing_add(delta);
    frame[at..at + 2].copy_from_slice(&sum.wrapping_add(carry.into()).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_is_known() {
        for v6 in [false, true] {
            let setup = Setup {
                flows: 1_400,
                v6,
                ..Setup::default()
            };
            let tuple = |flow| packets::tuple(&setup, flow);
            let mut floor = Floor::new(&setup, 1_000, tuple).unwrap();
            let mut frame = vec![0; packets::least(&setup).max(64)];
            let frames: Vec<Vec<u8>> = (0..128)
                .map(|i| {
                    packets::write(&mut frame, (CLIENT_SIDE, setup.protocol), tuple(i * 7), 0, 0);
                    frame.clone()
                })
                .collect();
            floor.load(frames.iter().map(Vec::as_slice));
            assert_eq!(floor.run(1), 128);
        }
    }
}
