//! Takes  frames, each with its outgoing NIC port.   Gives  them to the rings.
//! Drops  TxFull: what a ring refuses is counted and freed here and nowhere else.
//! Never  waits for room: a full ring means the wire or the peer is slower, and waiting would stall every other port.
//! Next   the wire.

use crate::nic::{Burst, Driver, Frame, FrameMemory};

/// A NIC port's queue with the frames that wait for this turn's end.
pub struct TxQueue {
    frames: Burst,
}

impl TxQueue {
    /// With nothing waiting.
    pub const fn new() -> Self {
        Self { frames: Burst::new_const() }
    }

    /// Adds a frame, sending first if the burst is full; how many were dropped to make room.
    pub fn push(&mut self, frame: Frame, driver: &mut dyn Driver, memory: &mut FrameMemory) -> usize {
        let dropped = if self.frames.is_full() { self.flush(driver, memory) } else { 0 };
        self.frames.push(frame);
        dropped
    }

    /// Sends what waits; how many the ring refused.
    pub fn flush(&mut self, driver: &mut dyn Driver, memory: &mut FrameMemory) -> usize {
        if self.frames.is_empty() {
            return 0;
        }
        driver.tx_burst(memory, &mut self.frames);
        let refused = self.frames.len();
        for frame in self.frames.drain(..) {
            memory.free(frame);
        }
        refused
    }
}

impl Default for TxQueue {
    fn default() -> Self {
        Self::new()
    }
}
