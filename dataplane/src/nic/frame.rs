#![allow(unsafe_code)]
//! Frame memory: one worker's arena of equal chunks, shared by all its NIC ports, and the move-only `Frame` that says
//! who holds a chunk. A frame is in exactly one place: a burst, a driver's ring (as a raw chunk number), or the free
//! list. Two ports of one worker therefore forward without copying.
//!
//! The arena is the worker's own, perhaps in a file for a peer that is trusted (memif), or lent by a driver whose rings hold
//! buffers of it (netmap): then a chunk comes and another goes with every packet (`trade`), and the chunks are some of the
//! lender's instead of all from 0 on.

use std::fmt::Debug;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::prefetch::prefetch;
use crate::segment::Region;

/// Bytes kept free before a received packet, so that a header can be put in front (VLAN, virtio-net): some of them, for
/// frames that are filled here (`COLOURS`).
pub const HEADROOM: usize = 256;

/// Packets begin this many cache lines apart from chunk to chunk, in turn. Chunks are a power of two apart: did all packets
/// begin at the same place in theirs, the headers of one burst would share two of the first cache's 64 sets and drive each
/// other out (measured: a third of a packet's time).
const COLOURS: u16 = 4;
const LINE: u16 = 64;

/// A packet's place in frame memory: its chunk (32 bits), its start there and its length (16 bits each), in one register,
/// since three are felt on a packet's way. Not `Clone`: whoever has it owns the bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    #[inline(always)]
    const fn new(chunk: u32, start: u16, len: u16) -> Self {
        Self(chunk as u64 | (start as u64) << 32 | (len as u64) << 48)
    }

    /// Packet length in bytes, from the Ethernet header on.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        (self.0 >> 48) as usize
    }

    /// True for a frame just allocated and not yet filled.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    const fn chunk(&self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn start(&self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// One worker's frames.
#[derive(Debug)]
pub struct FrameMemory {
    /// First byte of chunk 0.
    base: NonNull<u8>,
    chunk_size: usize,
    /// Every chunk's number is below.
    chunks: usize,
    /// Where a fresh frame's packet begins, at most; 0 where rings know no offsets.
    headroom: u16,
    count: usize,
    free: Vec<u32>,
    arena: Arena,
}

/// Whose memory it is.
#[derive(Debug)]
enum Arena {
    Own(Region),
    Lent(Lent),
}

#[derive(Debug)]
struct Lent {
    /// Which chunks are frames of ours, free or not: what a ring hands over is believed only if it is none of them, so that
    /// there can never be two frames of one chunk.
    held: Box<[bool]>,
    /// Cloned by every port that trades chunks.
    traders: Arc<()>,
    lender: Box<dyn Lender>,
}

/// Who lends frame memory, which stays mapped as long as this lives.
pub trait Lender: Debug + Send + Sync {
    /// Names the memory among all of this machine's: ports whose rings are in it trade chunks.
    fn region(&self) -> u64;

    /// Takes back the chunks that are no packet's, at the end.
    fn take_back(&mut self, chunks: &[u32]);
}

// SAFETY: `base` leads into memory that `arena` keeps mapped, whichever thread has it; that only a chunk's holder accesses
// its bytes is what `Frame` is for.
unsafe impl Send for FrameMemory {}
// SAFETY: as above: what `&FrameMemory` gives access to is governed by the borrow of a `Frame`.
unsafe impl Sync for FrameMemory {}

impl FrameMemory {
    /// `count` frames of `chunk_size` bytes (a power of two from 2048 to 32768, as AF_XDP's UMEM wants), of which
    /// up to `HEADROOM` come before the packet. Errors: InvalidInput for other sizes; ENOMEM.
    pub fn new(count: usize, chunk_size: usize) -> io::Result<Self> {
        Self::in_region(count, chunk_size, Region::anonymous)
    }

    /// The same in a file that another process can be handed (`region`), to put packets into frames that a driver offers it.
    /// Whoever gets it is trusted as a NIC is: with the bytes of all frames, at any time.
    pub fn shared(count: usize, chunk_size: usize) -> io::Result<Self> {
        Self::in_region(count, chunk_size, |bytes| Region::shared_whole("frames", bytes))
    }

    fn in_region(
        count: usize,
        chunk_size: usize,
        region: impl FnOnce(usize) -> io::Result<Region>,
    ) -> io::Result<Self> {
        let sound = chunk_size.is_power_of_two() && (2048..=32768).contains(&chunk_size);
        if !sound || count == 0 || u32::try_from(count).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "frame size must be a power of two, 2048 to 32768",
            ));
        }
        let bytes = count.checked_mul(chunk_size).ok_or(io::ErrorKind::OutOfMemory)?;
        let region = region(bytes)?;
        // Highest first, so that the first frames handed out are the lowest addresses: easier to read in dumps.
        let free = (0..count as u32).rev().collect();
        Ok(Self {
            base: region.base(),
            chunk_size,
            chunks: count,
            headroom: HEADROOM as u16,
            count,
            free,
            arena: Arena::Own(region),
        })
    }

    /// The chunks `mine` of `lender`'s memory, which has `chunks` of `chunk_size` bytes (at most 65,535) from `base` on.
    /// Packets begin at the chunk's first byte.
    ///
    /// # Safety
    /// All chunks must stay mapped for the lender's life, and `mine` be distinct, below `chunks`, and nobody else's to use.
    pub unsafe fn lent(
        base: NonNull<u8>,
        chunk_size: usize,
        chunks: usize,
        mine: Vec<u32>,
        lender: Box<dyn Lender>,
    ) -> Self {
        let mut held = vec![false; chunks];
        mine.iter().for_each(|&chunk| held[chunk as usize] = true);
        Self {
            base,
            chunk_size,
            chunks,
            headroom: 0,
            count: mine.len(),
            free: mine,
            arena: Arena::Lent(Lent {
                held: held.into(),
                traders: Arc::default(),
                lender,
            }),
        }
    }

    /// A free frame, empty, at most `HEADROOM` bytes into its chunk, and at least a cache line; `None` when all are in use.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        let chunk = self.free.pop()?;
        // Of 2,048 bytes, two chunks in a row have different sets by themselves.
        let colour = (chunk >> 1) as u16 % COLOURS;
        Some(Frame::new(chunk, self.headroom.saturating_sub(colour * LINE), 0))
    }

    /// Takes a frame back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        debug_assert!(self.free.len() < self.count, "more frames freed than exist");
        self.free.push(frame.chunk());
    }

    /// Takes frames back.
    #[inline]
    pub fn free_all(&mut self, frames: impl IntoIterator<Item = Frame>) {
        self.free.extend(frames.into_iter().map(|frame| frame.chunk()));
        debug_assert!(self.free.len() <= self.count, "more frames freed than exist");
    }

    /// The packet's bytes.
    #[inline(always)]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        let at = self.offset(frame);
        // SAFETY: every Frame is made by this module with start + len <= chunk_size and chunk < chunks, so the range
        // lies in the arena; only the holder of the Frame may write it, and it is borrowed here. Another process that has
        // the memory is trusted to keep to that, see `shared`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), frame.len()) }
    }

    /// Begins to bring in the packet's first cache line, which all headers of most packets are in.
    #[inline(always)]
    pub fn prefetch(&self, frame: &Frame) {
        if let Some(first) = self.bytes(frame).first() {
            prefetch(first);
        }
    }

    /// The packet's bytes, writable by the frame's holder.
    #[allow(
        clippy::mut_from_ref,
        reason = "`frame` is move-only and borrowed mutably: it is the exclusive right"
    )]
    #[inline(always)]
    pub fn bytes_mut(&self, frame: &mut Frame) -> &mut [u8] {
        let at = self.offset(frame);
        // SAFETY: in bounds as in `bytes`. Exclusive because `&mut Frame` of a move-only Frame is the only way to
        // this chunk: no second Frame for it exists, and drivers hold raw chunks only while no Frame exists.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), frame.len()) }
    }

    /// Sets the packet's length, keeping its start; what is added holds whatever was there. `false` (and no change)
    /// if it would not fit the chunk.
    #[must_use]
    pub fn set_len(&self, frame: &mut Frame, len: usize) -> bool {
        let fits = frame.start() as usize + len <= self.chunk_size;
        if fits {
            *frame = Frame::new(frame.chunk(), frame.start(), len as u16);
        }
        fits
    }

    /// Moves the packet's first byte by `by` (negative: forward into the headroom), keeping its end. `false` (and no
    /// change) if that would leave the chunk or pass the end. In memory without headroom the packet makes room itself.
    #[must_use]
    pub fn move_start(&self, frame: &mut Frame, by: isize) -> bool {
        if self.headroom == 0 && by < 0 && frame.start() as isize + by < 0 {
            let wanted = (-by) as usize;
            if !self.move_packet(frame, wanted) {
                return false;
            }
        }
        let start = frame.start() as isize + by;
        let len = frame.len() as isize - by;
        let fits = start >= 0 && len >= 0 && start + len <= self.chunk_size as isize;
        if fits {
            *frame = Frame::new(frame.chunk(), start as u16, len as u16);
        }
        fits
    }

    /// Moves the whole packet to `start` of its chunk. `false` (and no change) if it does not fit there.
    #[must_use]
    pub(crate) fn move_packet(&self, frame: &mut Frame, start: usize) -> bool {
        let fits = start + frame.len() <= self.chunk_size;
        if fits && start != frame.start() as usize {
            let moved = Frame::new(frame.chunk(), start as u16, frame.len() as u16);
            let (from, to) = (self.offset(frame), self.offset(&moved));
            // SAFETY: both ranges lie in the chunk of a Frame that is borrowed exclusively, as in `bytes_mut`.
            unsafe {
                let base = self.base.as_ptr();
                std::ptr::copy(base.add(from), base.add(to), frame.len());
            }
            *frame = moved;
        }
        fits
    }

    /// A new frame holding a copy of `packet`; `None` when there is no free frame or the packet is too long for one.
    pub fn copy_in(&mut self, packet: &[u8]) -> Option<Frame> {
        if packet.len() > self.max_packet() {
            return None;
        }
        let fresh = self.alloc()?;
        let mut frame = Frame::new(fresh.chunk(), fresh.start(), packet.len() as u16);
        self.bytes_mut(&mut frame).copy_from_slice(packet);
        Some(frame)
    }

    /// The longest packet a fresh frame can hold.
    pub const fn max_packet(&self) -> usize {
        self.chunk_size - self.headroom as usize
    }

    /// Gives up the frame to a kernel or device ring: its chunk number, and the packet's offset in the whole region.
    /// The chunk comes back by `from_raw`.
    pub fn into_raw(&self, frame: Frame) -> RawFrame {
        RawFrame {
            address: self.offset(&frame) as u64,
            len: frame.len() as u32,
        }
    }

    /// Takes back a frame from a ring by the address (anywhere in the chunk) and length that the ring reports. `None`
    /// if they do not lie in one chunk, which a sound peer never reports.
    ///
    /// The caller vouches that the chunk was given up by `into_raw` and not taken back since.
    pub fn from_raw(&self, raw: RawFrame) -> Option<Frame> {
        let address = usize::try_from(raw.address).ok()?;
        let (chunk, start) = (address / self.chunk_size, address % self.chunk_size);
        let len = raw.len as usize;
        if chunk >= self.chunks || start + len > self.chunk_size {
            return None;
        }
        Some(Frame::new(chunk as u32, start as u16, len as u16))
    }

    /// In lent memory: gives away the chunk of `given` and takes `taken` for it, as a free frame of `len` bytes from its
    /// first on. `given` comes back if `taken` can be no chunk of a ring's: one that is not there, or ours already.
    pub fn trade(&mut self, given: Frame, taken: u32, len: usize) -> Result<(Frame, u32), Frame> {
        let (chunk_size, Arena::Lent(lent)) = (self.chunk_size, &mut self.arena) else {
            return Err(given);
        };
        match lent.held.get_mut(taken as usize) {
            Some(held) if !*held && len <= chunk_size => *held = true,
            _ => return Err(given),
        }
        lent.held[given.chunk() as usize] = false;
        Ok((Frame::new(taken, 0, len as u16), given.chunk()))
    }

    /// Whether it is lent and of `region`; then a token for a port to keep while it trades chunks.
    pub fn trader(&self, region: u64) -> Option<Arc<()>> {
        match &self.arena {
            Arena::Lent(lent) if lent.lender.region() == region => Some(Arc::clone(&lent.traders)),
            _ => None,
        }
    }

    /// Whether all frames are free and, if lent, no port trades: then nothing knows its chunks.
    pub fn is_whole(&self) -> bool {
        let traded = matches!(&self.arena, Arena::Lent(lent) if Arc::strong_count(&lent.traders) > 1);
        self.free.len() == self.count && !traded
    }

    /// The arena if it is the worker's own, for registering it with a driver (XDP_UMEM_REG), or for handing over its file.
    pub const fn region(&self) -> Option<&Region> {
        match &self.arena {
            Arena::Own(region) => Some(region),
            Arena::Lent(_) => None,
        }
    }

    /// Bytes per frame, headroom included.
    pub const fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// Frames in all.
    pub const fn capacity(&self) -> usize {
        self.count
    }

    /// Frames not in use.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    #[inline(always)]
    const fn offset(&self, frame: &Frame) -> usize {
        frame.chunk() as usize * self.chunk_size + frame.start() as usize
    }
}

impl Drop for FrameMemory {
    fn drop(&mut self) {
        if let Arena::Lent(lent) = &mut self.arena {
            lent.lender.take_back(&self.free);
        }
    }
}

/// A frame as rings know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// Offset of the packet's first byte in the frame memory.
    pub address: u64,
    /// Packet length.
    pub len: u32,
}

#[cfg(test)]
mod tests;
