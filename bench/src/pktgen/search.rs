//! How fast without loss, and how fast with a little: bounded search over trials.
//!
//! RFC 2544 §26.1 asks for the highest rate without loss; the MLRsearch draft (draft-ietf-bmwg-mlrsearch) bounds how long
//! that may take: short trials first, and a bound counts only where a trial of full length stands behind it. The answer is
//! an interval: the highest rate that passed below every one that failed, and the lowest that failed.

use std::fmt;

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Most loss that passes, 0 to 1: 0 is the NDR, 0.005 the usual PDR.
    pub loss: f64,
    /// How far apart the bounds may be, as a share of the upper: 0.01.
    pub precision: f64,
    /// Most trials.
    pub trials: usize,
}

/// What a trial said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Lost or wrong, of what was sent, 0 to 1.
    pub loss: f64,
    /// Of what was due, what the generator could not send, 0 to 1.
    pub unsent: f64,
}

/// A trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Packets a second.
    pub rate: f64,
    /// Its length as a share of a full trial's.
    pub length: f64,
    /// What it said.
    pub outcome: Outcome,
    /// Whether that is good enough.
    pub passed: bool,
}

/// Why the search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The bounds are as close as asked for.
    Precise,
    /// The highest rate there is passed.
    Highest,
    /// Above the lower bound it was the generator that could not send, not the gateway that lost.
    Generator,
    /// No trials left.
    Trials,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Found {
    /// The highest rate that passed, packets a second; 0 if none did.
    pub rate: f64,
    /// The lowest that failed.
    pub above: f64,
    /// Why no better.
    pub why: Why,
    /// All trials, in order.
    pub steps: Vec<Step>,
}

/// A trial that sends less than this share of what is due says nothing about the gateway.
const MOST_UNSENT: f64 = 0.001;
/// Short trials narrow the bounds to this much before full ones begin.
const COARSE: f64 = 0.08;
/// Length of a short trial.
const SHORT: f64 = 0.2;

/// Searches up to `highest` packets a second. `trial` runs one, with a rate and a length as a share of the full one.
pub fn search(goal: Goal, highest: f64, mut trial: impl FnMut(f64, f64) -> Outcome) -> Found {
    let mut steps: Vec<Step> = Vec::new();
    let mut measure = |rate: f64, length: f64, steps: &mut Vec<Step>| {
        let outcome = trial(rate, length);
        let passed = outcome.loss <= goal.loss && outcome.unsent <= MOST_UNSENT;
        steps.push(Step {
            rate,
            length,
            outcome,
            passed,
        });
        passed
    };
    let (mut low, mut high) = (0.0, highest);
    // Short trials: from above down to a rate that passes, then in between.
    let coarse_trials = goal.trials / 2;
    if measure(highest, SHORT, &mut steps) {
        low = highest;
    } else {
        while high - low > COARSE * high && steps.len() < coarse_trials {
            let rate = if low > 0.0 {
                (low * high).sqrt()
            } else {
                high / 2.0
            };
            if measure(rate, SHORT, &mut steps) {
                low = rate;
            } else {
                high = rate;
            }
        }
    }
    // Full trials: the lower bound first, then the upper; what a short one said is only where to begin.
    let (guess, mut low, mut high) = ((low, high), 0.0f64, highest);
    let mut next = if guess.0 > 0.0 { guess.0 } else { guess.1 / 2.0 };
    let mut why = Why::Trials;
    let mut failed = false;
    while steps.len() < goal.trials {
        if measure(next, 1.0, &mut steps) {
            low = next;
            if next >= highest {
                why = Why::Highest;
                break;
            }
        } else {
            high = next;
            failed = true;
        }
        if low > 0.0 && failed && high - low <= goal.precision * high {
            why = Why::Precise;
            break;
        }
        next = if low == 0.0 {
            // A step below, twice as far each time.
            let down = (highest - high).max(high * COARSE);
            (high - down.min(high / 2.0)).max(high / 2.0)
        } else if !failed {
            guess.1.max(low * (1.0 + COARSE)).min(highest)
        } else {
            (low + high) / 2.0
        };
    }
    let bound = |step: &&Step| step.length >= 1.0 && !step.passed && step.rate <= high;
    let generator = |step: &Step| step.outcome.unsent > MOST_UNSENT && step.outcome.loss <= goal.loss;
    if why != Why::Highest && steps.iter().rfind(bound).is_some_and(generator) {
        why = Why::Generator;
    }
    Found {
        rate: low,
        above: if failed { high } else { highest },
        why,
        steps,
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Precise => "as precise as asked for",
            Self::Highest => "the highest rate that was allowed passed",
            Self::Generator => "above it the generator could not send what was due: the gateway may do more",
            Self::Trials => "no trials left",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOAL: Goal = Goal {
        loss: 0.0,
        precision: 0.01,
        trials: 30,
    };

    /// A gateway that carries so many packets a second and loses the rest.
    fn gateway(capacity: f64) -> impl Fn(f64, f64) -> Outcome {
        move |rate, _| Outcome {
            loss: (1.0 - capacity / rate).max(0.0),
            unsent: 0.0,
        }
    }

    #[test]
    fn the_rate_without_loss_is_found_to_the_precision_asked_for_at_any_capacity() {
        for capacity in [1e3, 123_456.0, 999_000.0, 1_490_000.0] {
            let found = search(GOAL, 1.5e6, gateway(capacity));
            assert_eq!(found.why, Why::Precise, "{capacity}: {found:?}");
            assert!(found.rate <= capacity && capacity < found.above, "{found:?}");
            assert!(found.above - found.rate <= 0.01 * found.above && found.steps.len() <= 30);
        }
    }

    #[test]
    fn a_little_loss_allows_a_little_more() {
        let goal = Goal { loss: 0.005, ..GOAL };
        let found = search(goal, 2e6, gateway(1e6));
        assert!((995_000.0..1_005_100.0).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn a_gateway_faster_than_the_highest_rate_takes_two_trials() {
        let found = search(GOAL, 1e6, gateway(9e9));
        assert_eq!((found.why, found.rate, found.steps.len()), (Why::Highest, 1e6, 2));
    }

    #[test]
    fn trials_are_bounded_even_for_a_gateway_that_always_loses() {
        let found = search(GOAL, 1e6, |_, _| Outcome {
            loss: 0.1,
            unsent: 0.0,
        });
        assert_eq!((found.rate, found.why, found.steps.len()), (0.0, Why::Trials, 30));
    }

    #[test]
    fn what_the_generator_could_not_send_is_not_the_gateways_limit() {
        let found = search(GOAL, 4e6, |rate, _| Outcome {
            loss: 0.0,
            unsent: (1.0 - 1e6 / rate).max(0.0),
        });
        assert_eq!(found.why, Why::Generator);
        assert!((980_000.0..1_001_500.0).contains(&found.rate), "{found:?}");
    }

    #[test]
    fn a_short_trial_that_passed_by_luck_does_not_count() {
        // Loses only in full trials above 500 kpps: a queue that a short trial does not fill.
        let found = search(GOAL, 1e6, |rate, length| Outcome {
            loss: if length < 1.0 || rate < 5e5 { 0.0 } else { 0.01 },
            unsent: 0.0,
        });
        assert!(found.rate < 5e5 && found.rate > 4.9e5, "{found:?}");
    }
}
