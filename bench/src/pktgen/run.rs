//! Trials in real time, and what they say as rows: the only file of the generator that reads a clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::judge::Wrong;
use super::picks::Picks;
use super::ports::Ports;
use super::schedule::Schedule;
use super::search::Outcome;
use super::tally::{Direction, Tally};
use super::trial::{Kind, Traffic, Trial};

/// After the last packet, this long without any other ends a trial.
const QUIET: Duration = Duration::from_millis(200);
/// How much longer than planned sending may take before the rest counts as unsent.
const GRACE: Duration = Duration::from_millis(100);
/// Between two looks of a watcher.
const LOOK: Duration = Duration::from_millis(200);

/// A generator's ports and traffic, ready for one trial after the other.
pub struct Generator {
    ports: Ports,
    traffic: Traffic,
    epoch: Instant,
    number: u16,
}

/// A trial's row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Seconds from the first due packet to the last that was sent.
    pub seconds: f64,
    /// Packets a second that were sent toward the gateway's clients' side, and that came out of it right toward pods.
    pub sent_pps: f64,
    /// The latter.
    pub received_pps: f64,
    /// Client to pod.
    pub forward: Flow,
    /// Pod to client; latency is from the client's due time, there and back.
    pub back: Flow,
    /// Due, but never sent.
    pub unsent: u64,
    /// Answers that were not taken by the driver.
    pub unanswered: u64,
    /// The latest that anything was sent after it was due, ns.
    pub latest_ns: u64,
    /// Frames that were not of the trial.
    pub foreign: u64,
    /// TCP connections.
    pub lives: Option<Connections>,
}

/// One direction of a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flow {
    /// Packets.
    pub sent: u64,
    /// Right, each counted once.
    pub received: u64,
    /// Sent but never received right.
    pub lost: u64,
    /// As a share of what was sent.
    pub loss: f64,
    /// Received again.
    pub duplicates: u64,
    /// Overtaken by a later packet of the same flow.
    pub overtaken: u64,
    /// Wrong ones, by what was wrong.
    pub wrong: BTreeMap<String, u64>,
    /// Nanoseconds.
    pub latency_ns: Option<Latency>,
}

/// Percentiles.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// The least.
    pub min: u64,
    /// Half.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    #[serde(rename = "p99.9")]
    pub p999: u64,
    /// 99.99 %.
    #[serde(rename = "p99.99")]
    pub p9999: u64,
    /// All.
    pub max: u64,
}

/// TCP connections of a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Begun.
    pub started: u64,
    /// Came to their end.
    pub finished: u64,
    /// Did not.
    pub failed: u64,
    /// A second.
    pub per_second: f64,
    /// From when the SYN was due to the last answer, ns.
    pub length_ns: Option<Latency>,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |percent| histogram.value_at_percentile(percent);
        (!histogram.is_empty()).then(|| Self {
            min: histogram.min(),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            p9999: at(99.99),
            max: histogram.max(),
        })
    }
}

impl Flow {
    fn of(direction: &Direction) -> Self {
        let wrong = Wrong::ALL.iter().zip(direction.wrong);
        Self {
            sent: direction.sent,
            received: direction.received,
            lost: direction.lost(),
            loss: direction.loss(),
            duplicates: direction.duplicates,
            overtaken: direction.overtaken,
            wrong: wrong
                .filter(|(_, count)| *count > 0)
                .map(|(wrong, count)| (wrong.to_string(), count))
                .collect(),
            latency_ns: Latency::of(&direction.latency),
        }
    }
}

impl Row {
    /// What a trial of so many seconds counted.
    pub fn of(tally: &Tally, seconds: f64) -> Self {
        let rate = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let lives = &tally.lives;
        Self {
            seconds,
            sent_pps: rate(tally.forward.sent),
            received_pps: rate(tally.forward.received),
            forward: Flow::of(&tally.forward),
            back: Flow::of(&tally.back),
            unsent: tally.unsent,
            unanswered: tally.unanswered,
            latest_ns: tally.latest,
            foreign: tally.foreign,
            lives: (lives.started > 0).then(|| Connections {
                started: lives.started,
                finished: lives.finished,
                failed: lives.failed,
                per_second: rate(lives.finished),
                length_ns: Latency::of(&lives.length),
            }),
        }
    }

    /// For a search: the worse direction's loss, and the share that was not sent.
    pub fn outcome(&self) -> Outcome {
        let due = self.forward.sent + self.unsent;
        Outcome {
            loss: self.forward.loss.max(self.back.loss),
            unsent: if due == 0 {
                1.0
            } else {
                self.unsent as f64 / due as f64
            },
        }
    }

    /// Packets that came out wrong, both directions.
    pub fn wrong(&self) -> u64 {
        self.forward.wrong.values().chain(self.back.wrong.values()).sum()
    }
}

#[allow(clippy::disallowed_methods, reason = "a generator measures real time")]
fn clock() -> Instant {
    Instant::now()
}

impl Generator {
    /// With ports that are open.
    pub fn new(ports: Ports, traffic: Traffic) -> Self {
        Self {
            ports,
            traffic,
            epoch: clock(),
            number: 0,
        }
    }

    /// What is sent; to be changed between trials.
    pub const fn traffic(&mut self) -> &mut Traffic {
        &mut self.traffic
    }

    /// The ports, for their drivers' counters.
    pub const fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Runs a trial whose packets are due as `schedule` says from its argument on, in ns, for `length`. `watch` is told
    /// a few times a second how far it is, 0 to 1.
    pub fn trial(
        &mut self,
        length: Duration,
        schedule: impl FnOnce(u64) -> Schedule,
        mut watch: impl FnMut(f64, &Tally),
    ) -> (Tally, Row) {
        self.number = self.number.wrapping_add(1);
        let epoch = self.epoch;
        let now = move || epoch.elapsed().as_nanos() as u64;
        let began = now();
        let schedule = schedule(began);
        let over = began + (length + GRACE).as_nanos() as u64;
        let mut trial = Trial::begin(&mut self.ports, &mut self.traffic, schedule, self.number, began);
        let mut looked = began;
        let mut time = began;
        while !trial.is_sent(time) && time < over {
            // Never yields: a scheduler that takes that as consent is away for milliseconds.
            trial.turn(now);
            time = now();
            if time - looked >= LOOK.as_nanos() as u64 {
                looked = time;
                let share = (time - began) as f64 / length.as_nanos().max(1) as f64;
                watch(share.min(1.0), trial.tally());
            }
        }
        let seconds = (time - began) as f64 / 1e9;
        let mut heard = time;
        trial.stop_sending();
        while !trial.is_complete() && time - heard < QUIET.as_nanos() as u64 {
            if trial.turn(now) > 0 {
                heard = time;
            }
            time = now();
        }
        let tally = trial.end();
        let row = Row::of(&tally, seconds);
        (tally, row)
    }

    /// A datagram on every flow at so many a second, so that a later trial meets flows that are known. The same flows are
    /// opened anew by each call.
    pub fn open_flows(&mut self, per_second: f64) -> Row {
        let flows = f64::from(self.traffic.flows);
        let size = self
            .traffic
            .mix
            .1
            .iter()
            .find(|kind| matches!(kind, Kind::Udp(_)));
        let Some(kind) = size.cloned() else {
            return Row::default();
        };
        let picks = std::mem::replace(&mut self.traffic.picks, Picks::InTurn(0));
        let mix = std::mem::replace(
            &mut self.traffic.mix,
            (super::picks::Weighted::new(&[1.0]), vec![kind]),
        );
        let length = flows / per_second;
        let schedule = |start| Schedule::even(Some(per_second), start, (length * 1e9) as u64);
        let (_, row) = self.trial(Duration::from_secs_f64(length), schedule, |_, _| {});
        (self.traffic.picks, self.traffic.mix) = (picks, mix);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::Device;
    use super::super::plan::Plan;
    use super::*;

    /// The example without root, in real time: whatever the machine is doing, what was sent and came out is right.
    #[test]
    fn a_gateway_on_its_own_thread_translates_everything_rightly() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/pktgen/memory.yaml");
        let plan = Plan::load(&path).unwrap();
        let (_device, ports) = Device::start(
            &plan.world,
            plan.tracked(),
            (plan.clients.ring_size as usize, plan.frames),
            None,
        )
        .unwrap();
        let traffic = plan.traffic(ports.clients.driver.info().mac).unwrap();
        let mut generator = Generator::new(ports, traffic);
        let length = Duration::from_millis(300);
        let (tally, row) = generator.trial(
            length,
            |start| Schedule::even(Some(20_000.0), start, length.as_nanos() as u64),
            |_, _| {},
        );
        assert_eq!(row.wrong(), 0, "{:?}", tally.sample);
        assert_eq!((row.forward.duplicates, row.back.duplicates), (0, 0));
        assert!(row.forward.received > 0 && row.forward.latency_ns.is_some());
        assert_eq!(
            tally.forward.sent + tally.unsent,
            tally.forward.received + tally.forward.lost() + tally.unsent
        );
        let json = serde_json::to_string(&row).unwrap();
        assert!(json.contains("\"p99.99\""), "{json}");
        let again: Row = serde_json::from_str(&json).unwrap();
        assert_eq!(again.forward.received, row.forward.received);
    }
}
