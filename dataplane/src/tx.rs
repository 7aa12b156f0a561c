//! Takes  frames, each with its outgoing NIC port.   Gives  them to the rings.
//! Drops  TxFull, NoPeer: what a ring refuses is counted and freed here and nowhere else.
//! Never  waits for room: a full ring means the wire or the peer is slower, and waiting would stall every other port.
//! Next   the wire.

use crate::nic::{Burst, Driver, Frame, FrameMemory};

/// What became of the frames that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Frames given to the ring.
    pub packets: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Frames it refused, now free.
    pub refused: usize,
    /// It refused them because nobody is at the other side.
    pub no_peer: bool,
}

/// A NIC port's queue with the frames that wait for this turn's end.
pub struct TxQueue {
    frames: Burst,
}

impl TxQueue {
    /// With nothing waiting.
    pub const fn new() -> Self {
        Self {
            frames: Burst::new_const(),
        }
    }

    /// Whether it must be flushed before it takes another frame.
    #[inline(always)]
    pub const fn is_full(&self) -> bool {
        self.frames.is_full()
    }

    /// Adds a frame; the queue is not full.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    /// Sends what waits.
    pub fn flush(&mut self, driver: &mut dyn Driver, memory: &mut FrameMemory) -> Flushed {
        if self.frames.is_empty() {
            return Flushed::default();
        }
        let (packets, bytes) = (self.frames.len(), self.bytes());
        driver.tx_burst(memory, &mut self.frames);
        let refused = self.frames.len();
        let flushed = Flushed {
            packets: packets - refused,
            bytes: bytes - self.bytes(),
            refused,
            no_peer: refused > 0 && !driver.has_peer(),
        };
        memory.free_all(self.frames.drain(..));
        flushed
    }

    fn bytes(&self) -> usize {
        self.frames.iter().map(Frame::len).sum()
    }
}

impl Default for TxQueue {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::memory::port_with_peer;

    #[test]
    fn what_the_ring_refuses_is_freed_and_not_counted_as_sent() {
        let mut memory = FrameMemory::new(8, 2048).unwrap();
        let (mut port, _peer) = port_with_peer("a", 2);
        let mut queue = TxQueue::new();
        for len in [60, 70, 80] {
            let frame = memory.copy_in(&[0; 100][..len]).unwrap();
            queue.push(frame);
        }
        let flushed = queue.flush(&mut port, &mut memory);
        assert_eq!(
            flushed,
            Flushed {
                packets: 2,
                bytes: 130,
                refused: 1,
                no_peer: false
            }
        );
        assert_eq!(queue.flush(&mut port, &mut memory), Flushed::default());
    }

    #[test]
    #[cfg(all(feature = "nic", not(miri)))]
    fn what_is_refused_since_nobody_is_there_is_told_from_a_full_ring() {
        use crate::nic::memif::{MemifSpec, Role};
        use crate::nic::open::{DriverSpec, PortSpec, open};

        let mut memory = FrameMemory::new(8, 2048).unwrap();
        let options = MemifSpec::new(format!("@sluice-nobody-{}", std::process::id()), Role::Client);
        let spec = PortSpec::new("a", "memif0", DriverSpec::Memif(options));
        let mut port = open(&spec, &mut memory, &mut None).unwrap();
        let mut queue = TxQueue::new();
        queue.push(memory.copy_in(&[0; 60]).unwrap());
        let flushed = queue.flush(port.as_mut(), &mut memory);
        assert_eq!(
            (flushed.refused, flushed.no_peer, memory.available()),
            (1, true, 8)
        );
    }
}
