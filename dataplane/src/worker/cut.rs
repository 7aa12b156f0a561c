//! Takes  a packet that is larger than its next link takes, and may be fragmented.   Gives  its fragments.
//! Drops  what has no frames for all of them.
//! Never  sends a part of it only.

use super::{Shared, Worker};
use crate::addr::Mac;
use crate::index::NicPortIndex;
use crate::nic::{Burst, Frame};
use crate::verdict::DropReason;
use crate::wire::{Ipv4, fragments_out};

impl Worker {
    /// Sends a packet that is larger than the link takes, and may be fragmented: all of it, or nothing.
    pub(super) fn send_in_fragments(
        &mut self,
        shared: &Shared,
        out: NicPortIndex,
        to: Mac,
        frame: Frame,
        l3: u16,
        mtu: usize,
    ) {
        let mut pieces = Burst::new_const();
        let cut = self.cut(&frame, l3.into(), mtu, &mut pieces);
        for piece in pieces {
            match cut {
                Ok(()) => self.send(shared, out, to, piece),
                Err(_) => self.memory.free(piece),
            }
        }
        match cut {
            Ok(()) => self.memory.free(frame),
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    /// The fragments of a packet, each in a frame with the link's header before it.
    fn cut(&mut self, frame: &Frame, l3: usize, mtu: usize, pieces: &mut Burst) -> Result<(), DropReason> {
        // Frames first: what they are filled from is borrowed while they are. A header has 60 bytes at most, and a piece a
        // multiple of eight.
        let least = mtu.saturating_sub(60 + 7).max(8);
        let most = frame.len().div_ceil(least);
        if most > pieces.capacity() {
            return Err(DropReason::TooBig);
        }
        for _ in 0..most {
            pieces.push(self.memory.alloc().ok_or(DropReason::NoFrame)?);
        }
        let (link, packet) = self
            .memory
            .bytes(frame)
            .split_at_checked(l3)
            .ok_or(DropReason::Truncated)?;
        let mut fragments = fragments_out::Fragments::of(packet, mtu)?;
        let mut used = 0;
        for piece in pieces.iter_mut() {
            let room = self.memory.max_packet();
            let fits = self.memory.set_len(piece, room);
            debug_assert!(fits, "a fresh frame holds max_packet bytes");
            let (out_link, out) = self
                .memory
                .bytes_mut(piece)
                .split_at_mut_checked(l3)
                .ok_or(DropReason::NoFrame)?;
            let Some(len) = fragments.next(out) else { break };
            out_link.copy_from_slice(link);
            let len = l3 + len?;
            let fits = self.memory.set_len(piece, len);
            debug_assert!(fits, "shorter than before");
            used += 1;
        }
        for unused in pieces.drain(used..) {
            self.memory.free(unused);
        }
        Ok(())
    }
}

/// Routers may fragment the IPv4 packet that starts at `l3` (RFC 791 §3.1: "don't fragment" is not set).
pub(super) fn may_be_fragmented(bytes: &[u8], l3: u16) -> bool {
    let ip = bytes.get(usize::from(l3)..).unwrap_or_default();
    Ipv4::new(ip).is_ok_and(|ip| !ip.dont_fragment())
}
