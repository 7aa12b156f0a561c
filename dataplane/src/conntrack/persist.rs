//! A shard that outlives its process (CT-12): flows live in a named file, and the next process takes over what it can
//! prove sound.
//!
//! Only entries are kept. The hash table, the free entries and the counts are made anew from them, so nothing has to agree
//! with anything else, and a process may be killed between any two instructions: an entry is a flow from the last write of
//! its opening to the first of its closing (`Flow::publish`).
//!
//! Nothing is believed: not the file (magic, layout, boot, capacity, worker, checksum), not an entry (`Flow::is_sound`), and
//! two entries with one tuple are not both taken. What is refused is counted and made free. What an entry says about the old
//! process's tables and neighbours means nothing here: slots are unknown until `rebind` and `set_next_hops`.

use std::io;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

use super::flow::Flow;
use super::pool::Pool;
use super::{Direction, FlowConfig, Flows, State, word};
use crate::addr::Address;
use crate::index::{BackendIndex, FlowIndex, NextHopIndex, ServicePortIndex, WorkerIndex};
use crate::segment::Slab;
use crate::segment::named::{HEAD, NamedFile};
use crate::tick::Tick;

/// Of this boot of the machine: ticks of another mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId([u8; 36]);

impl BootId {
    /// The kernel's (random(4)). Errors: what reading it says.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read("/proc/sys/kernel/random/boot_id")?;
        let id = text.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(*id))
    }
}

impl From<[u8; 36]> for BootId {
    fn from(id: [u8; 36]) -> Self {
        Self(id)
    }
}

/// Which shard a file holds.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    /// The file, on a tmpfs.
    pub path: &'a Path,
    /// Whose flows, of how many workers: with another number of workers, others own them.
    pub worker: WorkerIndex,
    /// How many workers there are.
    pub workers: u8,
    /// This boot.
    pub boot: BootId,
}

/// What became of the flows in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Taken over.
    pub kept: usize,
    /// Not proven sound, and forgotten.
    pub discarded: usize,
    /// Why the file as a whole was not read, where it was not; its flows were not counted.
    pub refused: Option<Refused>,
    /// Whether the file is in small pages, where the kernel gave no huge ones.
    pub small_pages: bool,
}

/// Why a whole file was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There was none, or of another capacity.
    #[error("there was no such file, or one for another capacity")]
    New,
    /// Not a file of ours, or damaged.
    #[error("the file's head is damaged")]
    Damaged,
    /// Written by another version of this program.
    #[error("another version of the program wrote the file")]
    Layout,
    /// Written before the machine was started.
    #[error("the file is older than this start of the machine")]
    Boot,
    /// Another worker's, or for another number of workers.
    #[error("the file is of another worker, or for another number of workers")]
    Worker,
}

const MAGIC: [u8; 8] = *b"sluiceF\x01";

#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    layout: u64,
    capacity: u64,
    boot: [u8; 36],
    worker: u8,
    workers: u8,
    zero: [u8; 2],
    checksum: u64,
}

impl Head {
    fn new<A: Address>(shard: &Shard<'_>, capacity: usize) -> Self {
        let head = Self {
            magic: MAGIC,
            layout: Flow::<A>::layout(),
            capacity: capacity as u64,
            boot: shard.boot.0,
            worker: shard.worker.0,
            workers: shard.workers,
            zero: [0; 2],
            checksum: 0,
        };
        head.summed()
    }

    fn summed(mut self) -> Self {
        self.checksum = 0;
        self.checksum = fnv(bytemuck::bytes_of(&self));
        self
    }

    fn bytes(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..size_of::<Self>()].copy_from_slice(bytemuck::bytes_of(self));
        bytes
    }

    /// Why what `self` describes is not what `wanted` does.
    fn refusal(&self, wanted: &Self) -> Option<Refused> {
        if self.magic != wanted.magic || *self != self.summed() {
            Some(Refused::Damaged)
        } else if self.layout != wanted.layout {
            Some(Refused::Layout)
        } else if self.boot != wanted.boot {
            Some(Refused::Boot)
        } else if (self.worker, self.workers) != (wanted.worker, wanted.workers) {
            Some(Refused::Worker)
        } else {
            (self != wanted).then_some(Refused::New)
        }
    }
}

/// FNV-1a: notices damage, and is no defence: whoever can write the file can forward packets.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

impl<A: Address> Flows<A> {
    /// The flows of a file, at `now`; an empty table in it if there are none that can be taken over. The file stays locked
    /// and is written to as long as the table lives. Errors: as `new`; WouldBlock while another process has the file; what
    /// the file system says.
    pub fn open_file(shard: &Shard<'_>, config: FlowConfig, now: Tick) -> io::Result<(Self, Adopted)> {
        let capacity = config.check()?.capacity;
        let bytes = capacity
            .checked_mul(size_of::<Flow<A>>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let file = NamedFile::open(shard.path, bytes)?;
        let wanted = Head::new::<A>(shard, capacity);
        let refused = match file.head()? {
            None => Some(Refused::New),
            Some(bytes) => bytemuck::pod_read_unaligned::<Head>(&bytes[..size_of::<Head>()]).refusal(&wanted),
        };
        if refused.is_some() {
            file.clear()?;
            file.set_head(&wanted.bytes())?;
        }
        let region = file.map()?;
        let mut adopted = Adopted {
            refused,
            small_pages: region.small_pages,
            ..Adopted::default()
        };
        let mut flows = Self::over(Pool::empty(Slab::over(region, capacity)?), config)?;
        if refused.is_none() {
            flows.adopt(now, &mut adopted);
        }
        Ok((flows, adopted))
    }

    /// Takes over the entries that are sound, makes the others free.
    fn adopt(&mut self, now: Tick, adopted: &mut Adopted) {
        let mut end = 0;
        for at in 0..self.flows.len() {
            if self.flows[at].is_free() {
                self.flows[at].clear();
            } else if self.flows[at].is_sound(now) && self.enter(FlowIndex(at as u32)) {
                self.flows[at].adopted();
                let state = self.flows[at].state();
                self.embryonic += usize::from(state.is_embryonic());
                self.victims.moved(at, State::Free, state);
                adopted.kept += 1;
                end = at + 1;
            } else {
                self.flows[at].clear();
                adopted.discarded += 1;
            }
        }
        self.flows.recount(end, |flow| !flow.is_free());
    }

    /// Enters both tuples of flow `index` into the table, or neither: not if another flow has one of them.
    fn enter(&mut self, index: FlowIndex) -> bool {
        let [original, reply] = Direction::BOTH.map(|direction| self.flow(index).key(direction));
        let hashes = [original, reply].map(|key| self.hash_key.hash(&key));
        if self.find_hashed(hashes[0], &original).is_some() || self.find_hashed(hashes[1], &reply).is_some() {
            return false;
        }
        let [first, second] = Direction::BOTH.map(|direction| word(index, direction));
        if self.insert(hashes[0], first).is_err() {
            return false;
        }
        if self.insert(hashes[1], second).is_err() {
            self.table.remove(hashes[0], first);
            return false;
        }
        true
    }

    /// Tells an adopted flow which slots its endpoint and service port have now.
    pub fn rebind(
        &mut self,
        index: FlowIndex,
        backend: BackendIndex,
        backend_generation: u32,
        service_port: ServicePortIndex,
    ) {
        self.flows[index.get()].rebind(backend, backend_generation, service_port);
    }

    /// Tells a flow where its packets go: of the original direction, of the reply direction.
    pub fn set_next_hops(&mut self, index: FlowIndex, next_hops: [NextHopIndex; 2]) {
        self.flows[index.get()].set_next_hops(next_hops);
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
