//! The two rings of a memif queue: packets out of the peer's descriptors into frames, and out of frames into buffers.
//!
//! The client owns the memory. Toward the server it produces: it fills its buffers, writes descriptors and moves the head; the
//! server moves the tail when it is done with them. Toward the client the server produces: the client offers empty buffers
//! by the head, the server fills them and moves the tail.
//!
//! The peer may write whatever it likes whenever it likes: an index is believed if it claims no more than the ring has, a
//! descriptor is read once and its buffer must lie in a region. A received packet that is none is dropped and counted; a
//! ring whose index is nonsense, or that offers no place to send into, is `Broken` for good, and the connection with it.
//!
//! Packets are copied both ways, as both other implementations do at the server: a packet that stayed in shared memory could
//! change between being judged and being sent.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::region::{Buffer, Descriptor, NEXT, Region, Ring};
use crate::nic::{BURST, Burst, Frame, FrameMemory};

/// Most descriptors of one packet: a 9,000-byte frame in buffers of 256 bytes takes 36. A longer chain is not a packet.
const MAX_PIECES: usize = BURST;

/// A ring that cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The peer's index claims more descriptors than there are.
    Index,
    /// A buffer offered to be filled is in no region, or too small for a packet.
    Buffer,
}

/// Which of the two ends we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The memory is the peer's.
    Server,
    /// The memory is ours: region 0, where the ring's buffers begin in it and how many bytes each has.
    Client {
        /// First byte of the buffers.
        first: u32,
        /// Bytes of each.
        size: u32,
    },
}

/// Buffers are this much further apart than they are long: were they a power of two apart, all packets of a burst would share
/// two sets of the first cache.
pub(super) const STRIDE_EXTRA: u32 = 64;

impl End {
    /// The whole buffer of a slot, of ours: nothing the peer writes moves it.
    fn own(self, slot: u16) -> Option<Descriptor> {
        match self {
            Self::Server => None,
            Self::Client { first, size } => Some(Descriptor {
                flags: 0,
                region: 0,
                length: size,
                offset: first + u32::from(slot) * (size + STRIDE_EXTRA),
                metadata: 0,
            }),
        }
    }
}

/// A ring, which end of it is ours, and how far we are.
#[derive(Debug)]
struct Cursor {
    ring: Ring,
    end: End,
    regions: Arc<[Region]>,
    /// Our index as published.
    at: u16,
}

impl Cursor {
    /// What the descriptor of a slot with a packet says; where its buffer is we know ourselves if the memory is ours.
    #[inline(always)]
    fn filled(&self, slot: u16) -> Descriptor {
        let said = self.ring.descriptor(slot);
        match self.own(slot) {
            None => said,
            Some(own) => Descriptor {
                flags: said.flags,
                // Longer than the buffer: in no region.
                length: if said.length > own.length {
                    u32::MAX
                } else {
                    said.length
                },
                ..own
            },
        }
    }

    /// The buffer of a slot that is to be filled.
    #[inline(always)]
    fn empty(&self, slot: u16) -> Descriptor {
        self.own(slot).unwrap_or_else(|| self.ring.descriptor(slot))
    }

    #[inline(always)]
    fn own(&self, slot: u16) -> Option<Descriptor> {
        self.end.own(slot & (self.ring.size() - 1))
    }

    #[inline(always)]
    fn buffer(&self, descriptor: Descriptor) -> Option<Buffer<'_>> {
        let region = self.regions.get(usize::from(descriptor.region))?;
        region.buffer(descriptor.offset, descriptor.length)
    }

    /// Client: the next `count` descriptors offer whole buffers again.
    fn restore(&self, count: u16) {
        for nth in 0..count {
            let slot = self.at.wrapping_add(nth);
            if let Some(own) = self.own(slot) {
                self.ring.set_descriptor(slot, own);
            }
        }
    }
}

/// What was received, and what not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets dropped because a descriptor of theirs leads out of its region, or the last one says that there is more.
    pub bad_descriptors: u64,
    /// Packets dropped because they are empty or longer than a frame.
    pub bad_lengths: u64,
}

/// The end of a ring that packets come out of.
#[derive(Debug)]
pub struct RxRing {
    cursor: Cursor,
    /// Within a packet that is dropped, its last descriptor not seen yet.
    skipping: bool,
}

impl RxRing {
    /// Our end of a ring that the handshake has found sound. The client offers all its buffers.
    pub(super) fn new(ring: Ring, end: End, regions: Arc<[Region]>) -> Self {
        ring.want_interrupt(false);
        let new = Self {
            cursor: Cursor {
                ring,
                end,
                regions,
                at: 0,
            },
            skipping: false,
        };
        new.cursor.restore(new.cursor.ring.size());
        new.publish();
        new
    }

    /// Descriptors with packets in them.
    pub(super) fn ready(&self) -> Result<u16, Broken> {
        let filled = match self.cursor.end {
            End::Server => self.cursor.ring.head(),
            End::Client { .. } => self.cursor.ring.tail(),
        };
        match filled.wrapping_sub(self.cursor.at) {
            ready if ready > self.cursor.ring.size() => Err(Broken::Index),
            ready => Ok(ready),
        }
    }

    /// Whether the peer shall interrupt us for the next packet.
    pub(super) fn want_interrupt(&self, wanted: bool) {
        self.cursor.ring.want_interrupt(wanted);
    }

    /// Appends received packets, at most as many as `frames` has room for and `memory` has frames; others wait.
    pub fn receive(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        received: &mut Received,
    ) -> Result<(), Broken> {
        let ready = self.ready()?;
        let window = usize::from(ready).min(MAX_PIECES);
        if window == 0 || frames.is_full() {
            return Ok(());
        }
        // All descriptors first, each read once, so that the packets are on their way while the first is copied.
        let mut pieces: ArrayVec<(Descriptor, Option<Buffer<'_>>), MAX_PIECES> = ArrayVec::new_const();
        for nth in 0..window as u16 {
            let descriptor = self.cursor.filled(self.cursor.at.wrapping_add(nth));
            let buffer = self.cursor.buffer(descriptor);
            if let Some(buffer) = &buffer {
                buffer.prefetch();
            }
            pieces.push((descriptor, buffer));
        }
        let whole = window == usize::from(ready);
        let mut rest = &pieces[..];
        let mut skipping = self.skipping;
        while !rest.is_empty() && !frames.is_full() {
            let Some(last) = rest.iter().position(|(piece, _)| piece.flags & NEXT == 0) else {
                // It goes on behind the window: next time, from its beginning. Or it has no end, or is no packet.
                if skipping || whole || rest.len() == MAX_PIECES {
                    received.bad_descriptors += u64::from(!skipping);
                    skipping = !whole;
                    rest = &[];
                }
                break;
            };
            let (packet, behind) = rest.split_at(last + 1);
            if !std::mem::take(&mut skipping) {
                match copy_in(memory, packet) {
                    Ok(frame) => {
                        received.packets += 1;
                        received.bytes += frame.len() as u64;
                        frames.push(frame);
                    }
                    Err(Refused::NoFrame) => break,
                    Err(Refused::Descriptor) => received.bad_descriptors += 1,
                    Err(Refused::Length) => received.bad_lengths += 1,
                }
            }
            rest = behind;
        }
        let done = (window - rest.len()) as u16;
        drop(pieces);
        self.skipping = skipping;
        if done > 0 {
            self.cursor.restore(done);
            self.cursor.at = self.cursor.at.wrapping_add(done);
            self.publish();
        }
        Ok(())
    }

    /// Gives back what is done with: the client offers its buffers anew, so that all without a packet are offered.
    fn publish(&self) {
        let Cursor { ring, end, at, .. } = &self.cursor;
        match end {
            End::Server => ring.set_tail(*at),
            End::Client { .. } => ring.set_head(at.wrapping_add(ring.size())),
        }
    }
}

/// Why a packet is not received.
enum Refused {
    NoFrame,
    Descriptor,
    Length,
}

/// A frame with the packet that is in these pieces.
#[inline(always)]
fn copy_in(memory: &mut FrameMemory, pieces: &[(Descriptor, Option<Buffer<'_>>)]) -> Result<Frame, Refused> {
    let mut len = 0;
    for (_, buffer) in pieces {
        len += buffer.as_ref().ok_or(Refused::Descriptor)?.len();
    }
    if len == 0 || len > memory.max_packet() {
        return Err(Refused::Length);
    }
    let mut frame = memory.alloc().ok_or(Refused::NoFrame)?;
    if !memory.set_len(&mut frame, len) {
        memory.free(frame);
        return Err(Refused::Length);
    }
    let mut to = memory.bytes_mut(&mut frame);
    for buffer in pieces.iter().filter_map(|(_, buffer)| buffer.as_ref()) {
        let (part, rest) = to.split_at_mut(buffer.len());
        buffer.read(part);
        to = rest;
    }
    Ok(frame)
}

/// What was sent, and what not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether the peer waits for an interrupt.
    pub interrupt: bool,
}

/// The end of a ring that packets go into.
#[derive(Debug)]
pub struct TxRing {
    cursor: Cursor,
}

impl TxRing {
    /// Our end of a ring that the handshake has found sound.
    pub(super) fn new(ring: Ring, end: End, regions: Arc<[Region]>) -> Self {
        match end {
            End::Server => ring.set_tail(0),
            End::Client { .. } => ring.set_head(0),
        }
        Self {
            cursor: Cursor {
                ring,
                end,
                regions,
                at: 0,
            },
        }
    }

    /// Descriptors that can be filled.
    fn room(&self) -> Result<u16, Broken> {
        let Cursor { ring, end, at, .. } = &self.cursor;
        match end {
            End::Server => match ring.head().wrapping_sub(*at) {
                offered if offered > ring.size() => Err(Broken::Index),
                offered => Ok(offered),
            },
            End::Client { .. } => {
                let full = at.wrapping_sub(ring.tail());
                ring.size().checked_sub(full).ok_or(Broken::Index)
            }
        }
    }

    /// Sends frames from the front of `frames` and frees them; those there is no room for stay.
    pub fn send(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        sent: &mut Sent,
    ) -> Result<(), Broken> {
        let room = self.room()?;
        // To read, though they will be written: taking the lines from the peer this early cost a third of the packets.
        for nth in 0..room.min(frames.len() as u16) {
            let next = self.cursor.empty(self.cursor.at.wrapping_add(nth));
            if let Some(buffer) = self.cursor.buffer(next) {
                buffer.prefetch();
            }
        }
        let (mut used, mut done) = (0, 0);
        let mut result = Ok(());
        for frame in frames.iter() {
            let packet = memory.bytes(frame);
            match self.put(packet, self.cursor.at.wrapping_add(used), room - used) {
                Ok(0) => break,
                Ok(pieces) => used += pieces,
                Err(broken) => {
                    result = Err(broken);
                    break;
                }
            }
            sent.packets += 1;
            sent.bytes += packet.len() as u64;
            done += 1;
        }
        frames.drain(..done).for_each(|frame| memory.free(frame));
        if used > 0 {
            let Cursor { ring, end, at, .. } = &mut self.cursor;
            *at = at.wrapping_add(used);
            match end {
                End::Server => ring.set_tail(*at),
                End::Client { .. } => ring.set_head(*at),
            }
            sent.interrupt |= ring.wants_interrupt();
        }
        result
    }

    /// Writes a packet into the buffers from `at` on; how many it took, none if `room` are too few.
    #[inline(always)]
    fn put(&self, packet: &[u8], at: u16, room: u16) -> Result<u16, Broken> {
        // All of its buffers first: a descriptor that was written no longer says how large its buffer is.
        let mut pieces: ArrayVec<(Descriptor, Buffer<'_>), MAX_PIECES> = ArrayVec::new_const();
        let mut capacity = 0;
        while capacity < packet.len() {
            let taken = pieces.len() as u16;
            if taken == room {
                return Ok(0);
            }
            let descriptor = self.cursor.empty(at.wrapping_add(taken));
            let buffer = self.cursor.buffer(descriptor).filter(|buffer| buffer.len() > 0);
            let Some(buffer) = buffer.filter(|_| !pieces.is_full()) else {
                return Err(Broken::Buffer);
            };
            capacity += buffer.len();
            pieces.push((descriptor, buffer));
        }
        let mut rest = packet;
        for (nth, (descriptor, buffer)) in pieces.iter().enumerate() {
            let (part, behind) = rest.split_at(rest.len().min(buffer.len()));
            buffer.write(part);
            rest = behind;
            let filled = Descriptor {
                flags: if rest.is_empty() { 0 } else { NEXT },
                length: part.len() as u32,
                ..*descriptor
            };
            self.cursor
                .ring
                .set_descriptor(at.wrapping_add(nth as u16), filled);
        }
        Ok(pieces.len() as u16)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
