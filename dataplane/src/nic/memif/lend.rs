//! The two rings of a memif queue to whose server our frames themselves are lent: packets are received where the server wrote
//! them, and sent from where they are.
//!
//! Takes  a ring of ours as client, and the worker's frame memory, all of which is a region of the link.
//! Gives  frames that the server has filled, and back to the memory those it has read.
//! Never  believes of a descriptor more than how long a packet is and whether it goes on: which frame is where we know.
//!
//! The server can write to every frame at any time. It is trusted not to, as a NIC is: whoever is not gets copies (`ring`).

use super::region::{Descriptor, NEXT, Ring};
use super::ring::{Broken, Received, Sent};
use crate::nic::frame::RawFrame;
use crate::nic::{Burst, Frame, FrameMemory};

/// A ring, and which frames are in it: those from `done` to `at`, lent and not taken back.
#[derive(Debug)]
struct Lent {
    ring: Ring,
    /// Number of the region that frame memory is.
    region: u16,
    /// By slot: where in frame memory what was put there begins.
    addresses: Box<[u32]>,
    at: u16,
    done: u16,
}

impl Lent {
    fn new(ring: Ring, region: u16) -> Self {
        ring.set_head(0);
        Self {
            addresses: vec![0; ring.size().into()].into(),
            ring,
            region,
            at: 0,
            done: 0,
        }
    }

    const fn room(&self) -> u16 {
        self.ring.size() - self.at.wrapping_sub(self.done)
    }

    /// Lends a frame, of which the server may use `length` bytes, once it is published. There is room.
    #[inline(always)]
    fn put(&mut self, memory: &FrameMemory, frame: Frame, length: u32) {
        // The whole memory is below 4 GiB, as `Memif::open` saw to.
        let address = memory.into_raw(frame).address as u32;
        let slot = self.at & (self.ring.size() - 1);
        self.addresses[usize::from(slot)] = address;
        self.ring.set_descriptor(
            slot,
            Descriptor {
                flags: 0,
                region: self.region,
                length,
                offset: address,
                metadata: 0,
            },
        );
        self.at = self.at.wrapping_add(1);
    }

    fn publish(&self) {
        self.ring.set_head(self.at);
    }

    /// How many the server is done with.
    #[inline(always)]
    fn back(&self) -> Result<u16, Broken> {
        match self.ring.tail().wrapping_sub(self.done) {
            back if back > self.at.wrapping_sub(self.done) => Err(Broken::Index),
            back => Ok(back),
        }
    }

    /// Takes the next one back: its frame, empty, and what its descriptor says.
    #[inline(always)]
    fn take(&mut self, memory: &FrameMemory) -> (Option<Frame>, Descriptor) {
        let slot = self.done & (self.ring.size() - 1);
        let (address, len) = (self.addresses[usize::from(slot)].into(), 0);
        self.done = self.done.wrapping_add(1);
        (
            memory.from_raw(RawFrame { address, len }),
            self.ring.descriptor(slot),
        )
    }

    /// Frees the next `count`.
    fn free(&mut self, memory: &mut FrameMemory, count: u16) {
        for _ in 0..count {
            if let (Some(frame), _) = self.take(memory) {
                memory.free(frame);
            }
        }
    }

    fn free_all(&mut self, memory: &mut FrameMemory) {
        self.free(memory, self.at.wrapping_sub(self.done));
    }
}

/// The end of a ring that packets come out of.
#[derive(Debug)]
pub struct LentRx {
    lent: Lent,
    /// The packet whose last piece is still to come.
    begun: Option<Frame>,
    /// Within a packet that is dropped.
    skipping: bool,
}

impl LentRx {
    /// Of a ring that the handshake has made, to a server that has frame memory as `region`. No frame is lent yet.
    pub(super) fn new(ring: Ring, region: u16) -> Self {
        ring.want_interrupt(false);
        Self {
            lent: Lent::new(ring, region),
            begun: None,
            skipping: false,
        }
    }

    /// Frames with packets, or parts of them, in them.
    pub(super) fn ready(&self) -> Result<u16, Broken> {
        self.lent.back()
    }

    /// Whether the server shall interrupt us for the next packet.
    pub(super) fn want_interrupt(&self, wanted: bool) {
        self.lent.ring.want_interrupt(wanted);
    }

    /// Lends as many frames as the ring has room for.
    pub(super) fn top_up(&mut self, memory: &mut FrameMemory) {
        let capacity = memory.max_packet() as u32;
        let mut lent = false;
        while self.lent.room() > 0
            && let Some(frame) = memory.alloc()
        {
            self.lent.put(memory, frame, capacity);
            lent = true;
        }
        if lent {
            self.lent.publish();
        }
    }

    /// Appends received packets, at most as many as `frames` has room for; others wait.
    pub(super) fn receive(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        received: &mut Received,
    ) -> Result<(), Broken> {
        for _ in 0..self.lent.back()? {
            if frames.is_full() {
                break;
            }
            let (frame, said) = self.lent.take(memory);
            let Some(piece) = frame else { continue };
            let more = said.flags & NEXT != 0;
            if self.skipping {
                memory.free(piece);
                self.skipping = more;
                continue;
            }
            match self.add(memory, piece, said.length as usize) {
                Some(frame) if more => self.begun = Some(frame),
                Some(frame) => {
                    received.packets += 1;
                    received.bytes += frame.len() as u64;
                    frames.push(frame);
                }
                None => {
                    received.bad_lengths += 1;
                    self.skipping = more;
                }
            }
        }
        self.top_up(memory);
        Ok(())
    }

    /// The packet so far, with a piece of `len` bytes more; `None`, and no frame of it is kept, if it is empty or too long.
    #[inline(always)]
    fn add(&mut self, memory: &mut FrameMemory, mut piece: Frame, len: usize) -> Option<Frame> {
        // Longer than the server was told that it may write.
        let sound = len > 0 && len <= memory.max_packet() && memory.set_len(&mut piece, len);
        let Some(mut begun) = self.begun.take() else {
            if sound {
                return Some(piece);
            }
            memory.free(piece);
            return None;
        };
        let (before, whole) = (begun.len(), begun.len() + len);
        let fits = sound && whole <= memory.max_packet() && memory.set_len(&mut begun, whole);
        if fits {
            memory.bytes_mut(&mut begun)[before..].copy_from_slice(memory.bytes(&piece));
        }
        memory.free(piece);
        if fits {
            return Some(begun);
        }
        memory.free(begun);
        None
    }

    /// Gives all frames back. The server must have been left.
    pub(super) fn free_all(&mut self, memory: &mut FrameMemory) {
        self.lent.free_all(memory);
        if let Some(frame) = self.begun.take() {
            memory.free(frame);
        }
    }
}

/// The end of a ring that packets go into.
#[derive(Debug)]
pub struct LentTx {
    lent: Lent,
}

impl LentTx {
    /// As `LentRx::new`.
    pub(super) fn new(ring: Ring, region: u16) -> Self {
        Self {
            lent: Lent::new(ring, region),
        }
    }

    /// Frees the frames that the server has read.
    #[inline(always)]
    pub(super) fn reclaim(&mut self, memory: &mut FrameMemory) -> Result<(), Broken> {
        let back = self.lent.back()?;
        self.lent.free(memory, back);
        Ok(())
    }

    /// Sends frames from the front of `frames`; those there is no room for stay.
    pub(super) fn send(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        sent: &mut Sent,
    ) -> Result<(), Broken> {
        self.reclaim(memory)?;
        let room = frames.len().min(self.lent.room().into());
        for frame in frames.drain(..room) {
            sent.packets += 1;
            sent.bytes += frame.len() as u64;
            let len = frame.len() as u32;
            self.lent.put(memory, frame, len);
        }
        if room > 0 {
            self.lent.publish();
            sent.interrupt |= self.lent.ring.wants_interrupt();
        }
        Ok(())
    }

    /// Gives all frames back. The server must have been left.
    pub(super) fn free_all(&mut self, memory: &mut FrameMemory) {
        self.lent.free_all(memory);
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
