//! When packets are due: an open loop. What is due does not wait for what was sent before it, so a gateway that stalls
//! does not slow its own examination down.

use super::rate::Rate;

/// A stretch of time with a rate that grows or falls evenly; both in packets a second, above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// At its start.
    pub from: f64,
    /// At its end.
    pub to: f64,
    /// Nanoseconds.
    pub length: f64,
}

/// Due times, one after the other.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// By rate.
    Paced {
        /// What is to come.
        phases: Vec<Phase>,
        /// Which is now.
        phase: usize,
        /// When it began, and when the next is due; nanoseconds.
        began: f64,
        /// The same.
        due: f64,
    },
    /// Always, until then.
    Max {
        /// Nanoseconds.
        until: u64,
    },
}

impl Schedule {
    /// An even rate, or as fast as possible, for `length` ns from `start` on. `packets`: the rate, where it has one.
    pub fn even(packets: Option<f64>, start: u64, length: u64) -> Self {
        match packets {
            Some(rate) => Self::phases(
                vec![Phase {
                    from: rate,
                    to: rate,
                    length: length as f64,
                }],
                start,
            ),
            None => Self::Max {
                until: start + length,
            },
        }
    }

    /// Phases from `start` on.
    pub const fn phases(phases: Vec<Phase>, start: u64) -> Self {
        Self::Paced {
            phases,
            phase: 0,
            began: start as f64,
            due: start as f64,
        }
    }

    /// When the next is due, if it is by `now`; the one after it is the next then.
    #[inline]
    pub fn take(&mut self, now: u64) -> Option<u64> {
        match self {
            Self::Max { until } => (now < *until).then_some(now),
            Self::Paced {
                phases,
                phase,
                began,
                due,
            } => {
                if *due > now as f64 {
                    return None;
                }
                let mut this = phases.get(*phase)?;
                while *due - *began >= this.length {
                    *began += this.length;
                    *phase += 1;
                    this = phases.get(*phase)?;
                }
                let this_due = *due;
                let rate = this.from + (this.to - this.from) * (*due - *began) / this.length;
                *due += 1e9 / rate;
                Some(this_due as u64)
            }
        }
    }

    /// Whether all have been taken, or will be by themselves.
    pub fn is_over(&self, now: u64) -> bool {
        match self {
            Self::Max { until } => now >= *until,
            Self::Paced {
                phases,
                phase,
                began,
                due,
            } => {
                let rest: f64 = phases[(*phase).min(phases.len())..]
                    .iter()
                    .map(|phase| phase.length)
                    .sum();
                *due >= *began + rest
            }
        }
    }

    /// How many it is in all; `None` for as many as possible.
    pub fn planned(&self) -> Option<u64> {
        match self {
            Self::Max { .. } => None,
            Self::Paced { phases, .. } => Some(
                phases
                    .iter()
                    .map(|p| (p.from + p.to) / 2.0 * p.length / 1e9)
                    .sum::<f64>() as u64,
            ),
        }
    }
}

/// A rate for people: with what it is in packets.
pub fn describe(rate: Rate, packets: Option<f64>) -> String {
    match (rate, packets) {
        (Rate::Share(_), Some(packets)) => format!("{rate}, {}", super::rate::Pps(packets)),
        _ => rate.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: &mut Schedule, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(now)).collect()
    }

    #[test]
    fn what_is_due_does_not_wait_and_keeps_the_time_it_was_due() {
        let mut schedule = Schedule::even(Some(1e6), 5_000, 10_000);
        assert!(all(&mut schedule, 4_999).is_empty());
        assert_eq!(all(&mut schedule, 6_500), [5_000, 6_000]);
        // Nobody asked for a while: all of them come, each with its own time.
        assert_eq!(
            all(&mut schedule, 1_000_000),
            [7_000, 8_000, 9_000, 10_000, 11_000, 12_000, 13_000, 14_000]
        );
        assert!(schedule.is_over(0));
    }

    #[test]
    fn a_ramp_sends_its_mean_rate_and_faster_at_its_end() {
        let phase = Phase {
            from: 1e3,
            to: 9e3,
            length: 1e9,
        };
        let mut schedule = Schedule::phases(vec![phase], 0);
        assert_eq!(schedule.planned(), Some(5_000));
        let due = all(&mut schedule, u64::MAX);
        assert!((4_980..=5_020).contains(&due.len()), "{}", due.len());
        assert_eq!((due[1] - due[0]) / 1_000, 1_000);
        assert!(due[due.len() - 1] - due[due.len() - 2] < 112_000);
    }

    #[test]
    fn as_fast_as_possible_is_due_now() {
        let mut schedule = Schedule::even(None, 10, 5);
        assert_eq!([schedule.take(12), schedule.take(15)], [Some(12), None]);
        assert!(schedule.is_over(15) && !schedule.is_over(14));
    }
}
