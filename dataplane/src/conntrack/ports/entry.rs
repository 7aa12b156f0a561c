#![allow(
    clippy::multiple_bound_locations,
    reason = "the derive of AnyBitPattern repeats the bound"
)]
//! What the pool keeps of a destination and of a block of its ports: a cache line each.

use bytemuck::{AnyBitPattern, Pod, Zeroable};

use crate::addr::{Address, FlowKey, Port, V4, V6};
use crate::conntrack::pool::Linked;

/// Words of a block's bitmap: with eight bytes of identity they fill a cache line.
pub(super) const BLOCK_WORDS: usize = 7;
/// Ports in a block.
pub(super) const BLOCK_PORTS: usize = BLOCK_WORDS * 64;
/// Words with a bit per block: all 65,535 ports are 147 blocks.
pub(super) const SUMMARY_WORDS: usize = 3;

/// A destination with ports in use.
#[derive(Clone, Copy, AnyBitPattern)]
#[repr(C, align(64))]
pub(super) struct Entry<A: Address> {
    pub(super) key: FlowKey<A>,
    /// Blocks that exist. While the entry is free, the chain's link.
    pub(super) present: [u64; SUMMARY_WORDS],
    /// Blocks that exist and have a free port.
    pub(super) open: [u64; SUMMARY_WORDS],
}

/// 448 ports of a destination.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Block {
    /// Ports not in use.
    pub(super) free: [u64; BLOCK_WORDS],
    /// The destination's entry. While the block is free, the chain's link.
    pub(super) destination: u32,
    /// Which of the destination's blocks it is.
    pub(super) number: u16,
    /// Ports not free: in use or at rest.
    pub(super) used: u16,
}

const _: () =
    assert!(size_of::<Entry<V4>>() == 64 && size_of::<Entry<V6>>() == 128 && size_of::<Block>() == 64);

pub(super) const fn destination_word(at: u32) -> u32 {
    at << 1
}

pub(super) const fn block_word(at: u32) -> u32 {
    at << 1 | 1
}

pub(super) fn key_of<A: Address>(destinations: &[Entry<A>], blocks: &[Block], word: u32) -> FlowKey<A> {
    let at = (word >> 1) as usize;
    if word & 1 == 0 {
        return destinations[at].key;
    }
    let Block {
        destination, number, ..
    } = blocks[at];
    block_key(&destinations[destination as usize].key, number.into())
}

/// A destination's key has no destination port; a block of it is found by its number in that place.
pub(super) fn block_key<A: Address>(destination: &FlowKey<A>, number: usize) -> FlowKey<A> {
    FlowKey {
        dst_port: Port::new(number as u16 + 1),
        ..*destination
    }
}

impl<A: Address> Linked for Entry<A> {
    fn link(&self) -> u32 {
        self.present[0] as u32
    }

    fn set_link(&mut self, link: u32) {
        self.present[0] = link.into();
    }
}

impl Linked for Block {
    fn link(&self) -> u32 {
        self.destination
    }

    fn set_link(&mut self, link: u32) {
        self.destination = link;
    }
}
