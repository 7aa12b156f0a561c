//! Coarse time: the worker reads the clock once a turn and hands the `Tick` down. The only module below the worker
//! that knows what a clock is, so everything else is tested by moving time by hand.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

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

/// A length of coarse time as an operator sets it: whole seconds, or as Kubernetes writes durations (`90s`, `1h30m`).
/// Between one second and 30 days: less would be no time at all, and more nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(u32);

impl Period {
    /// The longest, in seconds.
    pub const MAX_SECONDS: u32 = 30 * 86_400;

    /// So many seconds, brought into the bounds.
    pub const fn from_seconds(seconds: u32) -> Self {
        let bounded = match seconds {
            0 => 1,
            1..=Self::MAX_SECONDS => seconds,
            _ => Self::MAX_SECONDS,
        };
        Self(bounded * TICKS_PER_SECOND)
    }

    /// In ticks.
    #[inline(always)]
    pub const fn ticks(self) -> u32 {
        self.0
    }

    fn parse(text: &str) -> Option<u64> {
        let mut seconds = 0u64;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let number: u64 = rest[..digits].parse().ok()?;
            let unit = match rest.as_bytes()[digits] {
                b's' => 1,
                b'm' => 60,
                b'h' => 3600,
                b'd' => 86_400,
                _ => return None,
            };
            seconds = seconds.checked_add(number.checked_mul(unit)?)?;
            rest = &rest[digits + 1..];
        }
        Some(seconds)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Clone, Copy)]
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds or a duration like \"90s\" or \"1h30m\", from 1s to 30d")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Period, E> {
                match u32::try_from(seconds) {
                    Ok(seconds @ 1..=Period::MAX_SECONDS) => Ok(Period::from_seconds(seconds)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(seconds), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Period, E> {
                self.visit_u64(u64::try_from(seconds).unwrap_or(0))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                let seconds = Period::parse(text);
                self.visit_u64(seconds.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?)
            }
        }
        deserializer.deserialize_any(Seconds)
    }
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
    fn a_period_is_written_in_seconds_or_as_kubernetes_writes_durations() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h30m", 5400),
            ("24h", 86_400),
            ("5d", 432_000),
            ("0s", 0),
        ] {
            assert_eq!(Period::parse(text), Some(seconds));
        }
        for text in [
            "90",
            "s",
            "1h 30m",
            "-1s",
            "1y",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(Period::parse(text), None, "{text}");
        }
        assert_eq!(Period::from_seconds(90).ticks(), 720);
    }

    #[test]
    fn elapsed_time_survives_the_wrap_and_never_runs_backwards() {
        let before = Tick(u32::MAX - 3);
        assert_eq!(before.plus_seconds(1).since(before), TICKS_PER_SECOND);
        assert_eq!(before.since(before.plus_seconds(1)), 0);
    }
}
