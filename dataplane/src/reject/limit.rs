//! Takes a destination and the time. Gives leave to send it an ICMP error, or `RejectRateLimited` (RJ-3). Never reads a
//! clock; never grows.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::verdict::DropReason;

/// One bucket, counted in what one tick brings to a bucket of one token per second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    credit: u32,
    filled: Tick,
}

/// What one answer costs.
const TOKEN: u32 = TICKS_PER_SECOND;

impl Bucket {
    /// Adds what came since the last time, up to `depth`.
    fn fill(&mut self, now: Tick, tokens_per_second: u32, depth: u32) {
        let due = now.since(self.filled).saturating_mul(tokens_per_second);
        self.credit = self.credit.saturating_add(due).min(depth);
        self.filled = now;
    }

    const fn has_token(&self) -> bool {
        self.credit >= TOKEN
    }
}

/// Answers per second to all destinations together (RJ-3; Linux's icmp_msgs_per_sec).
const GLOBAL_RATE: u32 = 1000;
/// Answers to all destinations at once (RJ-3; Linux's icmp_msgs_burst).
const GLOBAL_BURST: u32 = 50;
/// A tick stands for 1/8 s, in which a bucket of that rate and burst lets through the burst and an eighth of the rate:
/// without the second part, coarse time alone would keep the rate at 8 × 50 per second.
const GLOBAL_DEPTH: u32 = GLOBAL_BURST * TOKEN + GLOBAL_RATE;

/// Answers per second to one destination (RJ-3).
const DESTINATION_RATE: u32 = 1;
/// Answers to one destination at once, as measured on Linux.
const DESTINATION_BURST: u32 = 6;
const DESTINATION_DEPTH: u32 = DESTINATION_BURST * TOKEN;

/// Destinations remembered. Those forgotten start with a full bucket, but the global bucket holds for them all; 128 are
/// scanned in less time than an answer takes to build.
const DESTINATIONS: usize = 128;

/// How many ICMP errors may be sent (RJ-3): a token bucket for all destinations, and one for each of the last 128. One
/// worker's.
#[derive(Debug)]
pub struct RateLimiter {
    global: Bucket,
    destinations: ArrayVec<(IpAddr, Bucket), DESTINATIONS>,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    pub fn new(now: Tick) -> Self {
        Self {
            global: Bucket {
                credit: GLOBAL_DEPTH,
                filled: now,
            },
            destinations: ArrayVec::new(),
        }
    }

    /// Takes a token for an answer to `destination`. Errors: `RejectRateLimited`, to be counted; then nothing was taken.
    pub fn take(&mut self, destination: IpAddr, now: Tick) -> Result<(), DropReason> {
        self.global.fill(now, GLOBAL_RATE, GLOBAL_DEPTH);
        // First, so that a flood of sources cannot turn over the memory of destinations once it is over the limit.
        if !self.global.has_token() {
            return Err(DropReason::RejectRateLimited);
        }
        let bucket = self
            .bucket_of(destination, now)
            .ok_or(DropReason::RejectRateLimited)?;
        bucket.fill(now, DESTINATION_RATE, DESTINATION_DEPTH);
        if !bucket.has_token() {
            return Err(DropReason::RejectRateLimited);
        }
        bucket.credit -= TOKEN;
        self.global.credit -= TOKEN;
        Ok(())
    }

    /// The destination's bucket; for a new destination a full one, in place of the one asked for longest ago.
    fn bucket_of(&mut self, destination: IpAddr, now: Tick) -> Option<&mut Bucket> {
        let at = match self
            .destinations
            .iter()
            .position(|(address, _)| *address == destination)
        {
            Some(at) => at,
            None => {
                let new = (
                    destination,
                    Bucket {
                        credit: DESTINATION_DEPTH,
                        filled: now,
                    },
                );
                match self.destinations.try_push(new) {
                    Ok(()) => self.destinations.len() - 1,
                    Err(_) => {
                        let ages = self
                            .destinations
                            .iter()
                            .map(|(_, bucket)| now.since(bucket.filled));
                        let (oldest, _) = ages.enumerate().max_by_key(|(_, age)| *age)?;
                        self.destinations[oldest] = new;
                        oldest
                    }
                }
            }
        };
        self.destinations.get_mut(at).map(|(_, bucket)| bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Hosts of both families by turns.
    fn host(number: u32) -> IpAddr {
        if number.is_multiple_of(2) {
            Ipv4Addr::from(0x0a00_0000 + number).into()
        } else {
            Ipv6Addr::from(0xfd << 120 | u128::from(number)).into()
        }
    }

    /// Answers let through of `asked` to one destination at one instant.
    fn granted(limiter: &mut RateLimiter, to: IpAddr, now: Tick, asked: usize) -> usize {
        (0..asked).filter(|_| limiter.take(to, now).is_ok()).count()
    }

    #[test]
    fn a_destination_gets_six_answers_at_once_then_one_a_second() {
        // RJ-3.
        let start = Tick(u32::MAX - 20); // The clock's wrap is in the middle of it.
        let mut limiter = RateLimiter::new(start);
        assert_eq!(granted(&mut limiter, host(1), start, 100), 6);
        assert_eq!(limiter.take(host(1), start), Err(DropReason::RejectRateLimited));
        for second in 1..10 {
            let now = start.plus_seconds(second);
            let just_before = Tick(now.0.wrapping_sub(1));
            assert_eq!(
                granted(&mut limiter, host(1), just_before, 10),
                0,
                "second {second}"
            );
            assert_eq!(granted(&mut limiter, host(1), now, 10), 1, "second {second}");
        }
        assert_eq!(
            granted(&mut limiter, host(2), start.plus_seconds(9), 10),
            6,
            "another has its own bucket"
        );
        assert_eq!(
            granted(&mut limiter, host(1), start.plus_seconds(3600), 10),
            6,
            "never more than the burst"
        );
    }

    #[test]
    fn all_destinations_together_get_the_burst_and_a_thousand_a_second() {
        // RJ-3. Within k ticks: 50 + k × 125, however many ask.
        let mut limiter = RateLimiter::new(Tick(0));
        let mut total = 0;
        for tick in 0..80 {
            let fresh = (0..400).map(|i| host(tick * 400 + i));
            let granted = fresh.filter(|to| limiter.take(*to, Tick(tick)).is_ok()).count();
            assert_eq!(granted, if tick == 0 { 175 } else { 125 }, "tick {tick}");
            total += granted;
        }
        assert_eq!(total, 50 + 80 * 125);
    }

    #[test]
    fn a_destination_over_its_own_limit_takes_nothing_from_the_others() {
        let mut limiter = RateLimiter::new(Tick(0));
        assert_eq!(granted(&mut limiter, host(0), Tick(0), 10_000), 6);
        let others = (1..200)
            .filter(|i| limiter.take(host(*i), Tick(0)).is_ok())
            .count();
        assert_eq!(others, 175 - 6);
    }

    #[test]
    fn of_more_destinations_than_are_remembered_the_one_asked_for_longest_ago_is_forgotten() {
        let mut limiter = RateLimiter::new(Tick(0));
        let last = DESTINATIONS as u32 - 1;
        for i in 0..=last {
            assert_eq!(granted(&mut limiter, host(i), Tick(i), 10), 6);
        }
        // Asked for again (refilled meanwhile), the eldest is no longer the oldest.
        let now = Tick(last);
        assert_eq!(granted(&mut limiter, host(0), now, 10), 6);
        assert_eq!(granted(&mut limiter, host(1000), now, 10), 6);
        assert_eq!(limiter.destinations.len(), DESTINATIONS);
        assert_eq!(granted(&mut limiter, host(0), now, 10), 0, "still remembered");
        assert!(
            !limiter
                .destinations
                .iter()
                .any(|(address, _)| *address == host(1)),
            "forgotten"
        );
    }

    #[test]
    fn time_that_seems_to_run_backwards_grants_nothing() {
        let mut limiter = RateLimiter::new(Tick(100));
        assert_eq!(granted(&mut limiter, host(1), Tick(100), 10), 6);
        assert_eq!(granted(&mut limiter, host(1), Tick(90), 10), 0);
    }
}
