//! Coarse time: the worker reads the clock once a turn and hands the `Tick` down. The only module below the worker
//! that knows what a clock is, so everything else is tested by moving time by hand.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Ticks in a second: 1/8 s is fine enough for timeouts of 2 s and more, and 2³² of them last 17 years.
pub const TICKS_PER_SECOND: u32 = 8;

/// An instant of coarse monotonic time, in 1/8 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Tick(pub u32);

impl Tick {
    /// The clock's reading now (CLOCK_MONOTONIC_COARSE: no system call on Linux).
    pub fn now() -> Self {
        let t = clock_gettime(ClockId::MonotonicCoarse);
        let eighths = t.tv_nsec / (1_000_000_000 / i64::from(TICKS_PER_SECOND));
        // Wraps after 17 years of uptime; `since` is wrapping, too.
        Self(
            (t.tv_sec as u32)
                .wrapping_mul(TICKS_PER_SECOND)
                .wrapping_add(eighths as u32),
        )
    }

    /// The tick `seconds` after this one.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u32) -> Self {
        Self(self.0.wrapping_add(seconds.wrapping_mul(TICKS_PER_SECOND)))
    }

    /// Ticks from `earlier` to this one; 0 if `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> u32 {
        let ticks = self.0.wrapping_sub(earlier.0);
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }
}

/// `duration` in whole ticks, rounded up so that nothing expires early.
pub fn ticks(duration: Duration) -> u32 {
    let per_tick = 1_000_000_000 / u128::from(TICKS_PER_SECOND);
    u32::try_from(duration.as_nanos().div_ceil(per_tick)).unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_round_up_and_saturate() {
        assert_eq!(ticks(Duration::from_secs(2)), 16);
        assert_eq!(ticks(Duration::from_millis(1)), 1);
        assert_eq!(ticks(Duration::MAX), u32::MAX / 2);
    }

    #[test]
    fn elapsed_time_survives_the_wrap_and_never_runs_backwards() {
        let before = Tick(u32::MAX - 3);
        assert_eq!(before.plus_seconds(1).since(before), TICKS_PER_SECOND);
        assert_eq!(before.since(before.plus_seconds(1)), 0);
    }
}
