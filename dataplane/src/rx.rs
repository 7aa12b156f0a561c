//! Takes  a NIC port's queue.               Gives  a burst of frames this worker owns until `tx`.
//! Drops  nothing: what a driver cannot take it counts itself.
//! Never  waits.
//! Next   `parse`.

use crate::nic::{Burst, Driver, Frame, FrameMemory};

/// Receives into an empty burst; the bytes received, for the counters.
pub fn take(driver: &mut dyn Driver, memory: &mut FrameMemory, frames: &mut Burst) -> usize {
    debug_assert!(frames.is_empty(), "the last burst went out whole");
    driver.rx_burst(memory, frames);
    frames.iter().map(Frame::len).sum()
}
