//! What one packet costs: whole turns of a worker, `rx` to `tx`, with conntrack in both directions, counters, the table
//! check and expiry as in production. Packets are made, and judged, outside the timed region.
//!
//! Reading order: `packets` makes them, `feed` brings them, `verify` judges them, `floor` is the least that any NAT must do to them, `lives`
//! runs whole TCP connections; this file times the rest.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;
use sluice_dataplane::addr::Protocol;
use sluice_dataplane::segment::{self, Pages};
use sluice_dataplane::tick::Tick;

use crate::gateway::{CLIENT_SIDE, Gateway, Setup};
use crate::machine::Machine;
use crate::pktgen::picks::{Picks, Random};
use feed::{Feed, Ports};
use packets::{Tuple, flags};

mod feed;
mod floor;
mod lives;
mod packets;
/// The rows of the table.
pub mod rows;
/// More workers than one.
pub mod scaling;
mod verify;

/// Packets prepared at a time: the equal-work contract's 2,048 frames, so that no frame is still in the first cache.
const ROUND: usize = 2_048;

type Error = Box<dyn std::error::Error>;

/// What a packet means to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is of a flow that was opened before, from its client.
    Established,
    /// Likewise, from its endpoint.
    Reply,
    /// It opens a flow.
    New,
    /// All packets of TCP connections, from SYN to the last ACK, beside flows that stay.
    Lives,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The row's name.
    pub name: String,
    /// What is timed.
    pub kind: Kind,
    /// Flows opened before: of `New`, room for as many.
    pub flows: usize,
    /// Services, the flows' in turn.
    pub services: u32,
    /// Endpoints of each.
    pub backends: u16,
    /// Few flows have most packets (Zipf, exponent 1), instead of all as likely.
    pub zipf: bool,
    /// Full NAT instead of DNAT.
    pub full_nat: bool,
    /// IPv6.
    pub v6: bool,
    /// Flows in files that outlive the process, `flows.folder`.
    pub files: bool,
    /// What everything else is in.
    pub pages: Pages,
    /// Bytes of a frame without the FCS; shorter ones are as long as their headers.
    pub size: usize,
    /// Repeats, each of `packets`.
    pub repeats: usize,
    /// Packets per repeat.
    pub packets: usize,
    /// All of it once more, with packets that come from another core.
    pub other_core: bool,
}

/// Least, middle and most of the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Least.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// Most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| (values[i] * 100.0).round() / 100.0;
        Self {
            min: at(0),
            p50: at(values.len() / 2),
            max: at(values.len() - 1),
        }
    }
}

/// What came out: one row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The workload's name.
    pub workload: String,
    /// Flows there were.
    pub flows: usize,
    /// Services there were.
    pub services: u32,
    /// Packets timed in each repeat.
    pub packets: usize,
    /// Packets whose translation was judged outside the timed region; all were right.
    pub verified: usize,
    /// Packets that went through `Bench::time` in all, from the first that opened a flow.
    pub handled: usize,
    /// Of the whole pipeline.
    pub ns_per_packet: Spread,
    /// Likewise, with packets that another core has made, copied in and out by a ring: `Workload::other_core`.
    pub ring_ns_per_packet: Option<Spread>,
    /// From the median.
    pub mpps: f64,
    /// Whole connections in a second, from the median; of `Lives`.
    pub lives_per_second: Option<f64>,
    /// Of `floor`, in the same repeats; of flows that were opened before.
    pub floor_ns_per_packet: Option<Spread>,
    /// The medians' ratio.
    pub ratio_to_floor: Option<f64>,
    /// Memory of everything that grows with flows, with the table three quarters full.
    pub bytes_per_flow: f64,
    /// Whether flows were in files, `Workload::files`.
    pub files: bool,
    /// Which pages were asked for, `Workload::pages`.
    pub pages: Pages,
    /// Of this process, in huge pages when the row ended.
    pub huge_bytes: u64,
    /// Where.
    pub machine: Machine,
}

/// Whether there is another core for `Workload::other_core`.
pub fn has_other_core() -> bool {
    feed::cores().len() > 1
}

/// Runs a workload. Errors: no memory; a packet that was not translated as it must.
pub fn run(workload: &Workload) -> Result<Row, Error> {
    if workload.flows == 0 || workload.packets < ROUND || workload.repeats == 0 || workload.backends == 0 {
        return Err(format!("at least one flow, backend and repeat, and {ROUND} packets a repeat").into());
    }
    // The ranges in `gateway`, toward each endpoint; three quarters, since endpoints are picked at random.
    let endpoints = workload.services as usize * usize::from(workload.backends);
    let room = endpoints * 61_744 / 4 * 3;
    if workload.full_nat && workload.flows > room {
        return Err(format!(
            "full NAT: {endpoints} endpoints have source ports for {room} flows; give more --backends"
        )
        .into());
    }
    segment::choose(workload.pages);
    let mut bench = Bench::new(workload, Feed::here())?;
    let figures = bench.run(workload)?;
    let ns = Spread::of(figures.ns);
    let floor = (!figures.floor.is_empty()).then(|| Spread::of(figures.floor));
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let (verified, handled, bytes) = (bench.verified, bench.handled, bench.gateway.bytes);
    let (huge_bytes, table) = (huge_bytes(), bench.setup.flows);
    drop(bench);
    let ring = workload
        .other_core
        .then(|| Bench::new(workload, Feed::there()?)?.run(workload))
        .transpose()?;
    Ok(Row {
        workload: workload.name.clone(),
        flows: workload.flows,
        services: workload.services,
        packets: workload.packets,
        verified,
        handled,
        ns_per_packet: ns,
        ring_ns_per_packet: ring.map(|figures| Spread::of(figures.ns)),
        mpps: round(1_000.0 / ns.p50),
        lives_per_second: (workload.kind == Kind::Lives)
            .then(|| (1e9 / (ns.p50 * lives::PACKETS as f64)).round()),
        floor_ns_per_packet: floor,
        ratio_to_floor: floor.map(|floor| round(ns.p50 / floor.p50)),
        bytes_per_flow: round(bytes as f64 / table as f64 / 0.75),
        files: workload.files,
        pages: workload.pages,
        huge_bytes,
        machine: Machine::this(),
    })
}

/// Nanoseconds a packet, one value a repeat.
#[derive(Default)]
struct Figures {
    ns: Vec<f64>,
    floor: Vec<f64>,
}

/// A gateway under measurement.
struct Bench {
    gateway: Gateway,
    feed: Feed,
    setup: Setup,
    size: usize,
    now: Tick,
    endpoints: HashSet<IpAddr>,
    verified: usize,
    handled: usize,
}

impl Bench {
    fn setup(workload: &Workload) -> Setup {
        Setup {
            flows: workload.flows + workload.flows / 3 + 64,
            services: workload.services,
            backends: workload.backends,
            keep_source: !workload.full_nat,
            protocol: match workload.kind {
                Kind::Lives => Protocol::TCP,
                _ => Protocol::UDP,
            },
            v6: workload.v6,
            files: workload.files,
        }
    }

    fn new(workload: &Workload, (ports, feed): (Ports, Feed)) -> Result<Self, Error> {
        let setup = Self::setup(workload);
        let pairs = (0..setup.services).flat_map(|s| (0..u32::from(setup.backends)).map(move |b| (s, b)));
        Ok(Self {
            gateway: Gateway::new(setup, ports)?,
            feed,
            size: workload.size.max(packets::least(&setup)),
            now: Tick(8_000),
            endpoints: pairs.map(|(s, b)| setup.endpoint(s, b)).collect(),
            verified: 0,
            handled: 0,
            setup,
        })
    }

    fn run(&mut self, workload: &Workload) -> Result<Figures, Error> {
        match workload.kind {
            Kind::Established | Kind::Reply => self.established(workload),
            Kind::New => self.new_flows(workload),
            Kind::Lives => self.lives(workload),
        }
    }

    fn established(&mut self, workload: &Workload) -> Result<Figures, Error> {
        let replies = workload.kind == Kind::Reply;
        let answers = self.open(0..workload.flows, true)?;
        // A flow is established when it has been answered: the first answer changes its state.
        for round in answers.chunks(ROUND) {
            self.judge(round, true)?;
        }
        let setup = self.setup;
        let tuple = |flow: usize| match replies {
            true => answers[flow],
            false => packets::tuple(&setup, flow),
        };
        let mut random = Random(1);
        let mut picks = if workload.zipf {
            Picks::zipf(workload.flows, 1.0)
        } else {
            Picks::Uniform
        };
        let mut floor = floor::Floor::new(&setup, workload.flows, tuple)?;
        // Which flows are the frequent ones must not be which were opened first.
        let mut shuffled: Vec<u32> = (0..workload.flows as u32).collect();
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, random.below(i + 1));
        }
        let mut next = || tuple(shuffled[picks.next(workload.flows, &mut random)] as usize);
        let mut figures = Figures::default();
        for repeat in 0..=workload.repeats {
            let (mut spent, mut floor_spent, mut done) = (0, 0, 0);
            while done < workload.packets {
                let tuples: Vec<Tuple> = (0..ROUND).map(|_| next()).collect();
                if repeat == 0 {
                    // The untimed pass: every packet out is judged.
                    self.judge(&tuples, replies)?;
                    done += ROUND * 8;
                    continue;
                }
                self.load(replies, tuples.iter().map(|&tuple| (tuple, flags::ACK)))?;
                spent += self.time(ROUND);
                done += ROUND;
                floor.load(
                    self.frames(tuples.iter().map(|&tuple| (tuple, flags::ACK)))
                        .iter(),
                );
                let start = now();
                let known = floor.run(self.now.0);
                floor_spent += start.elapsed().as_nanos() as u64;
                // It compares no second key: where two of a bucket have one tag, it takes the wrong entry.
                if known < ROUND / 100 * 99 {
                    return Err("the floor's table has lost a flow".into());
                }
            }
            if repeat > 0 {
                figures.ns.push(spent as f64 / done as f64);
                figures.floor.push(floor_spent as f64 / done as f64);
            }
        }
        Ok(figures)
    }

    /// Every packet opens a flow. The table is filled once before, and emptied by time, so that its memory has been
    /// touched; then each repeat fills a part of it, from empty to three quarters.
    fn new_flows(&mut self, workload: &Workload) -> Result<Figures, Error> {
        self.open(0..workload.flows, false)?;
        self.expire_all();
        let mut flow = workload.flows;
        let share = workload.flows / workload.repeats / ROUND * ROUND;
        if share == 0 {
            return Err(format!(
                "--flows must be at least {} for new ones",
                workload.repeats * ROUND
            )
            .into());
        }
        let mut figures = Figures::default();
        for _ in 0..workload.repeats {
            let mut spent = 0;
            for _ in 0..share / ROUND {
                let tuples: Vec<Tuple> = (flow..flow + ROUND)
                    .map(|i| packets::tuple(&self.setup, i))
                    .collect();
                self.load(false, tuples.iter().map(|&tuple| (tuple, flags::SYN)))?;
                spent += self.time(ROUND);
                flow += ROUND;
            }
            figures.ns.push(spent as f64 / share as f64);
        }
        Ok(figures)
    }

    /// Opens flows by a packet of each, and judges it as it leaves; their replies' tuples, if they are wanted.
    fn open(&mut self, flows: std::ops::Range<usize>, replies: bool) -> Result<Vec<Tuple>, Error> {
        let mut reply_tuples = Vec::new();
        self.feed.keep_sent(false, true);
        for first in flows.clone().step_by(ROUND) {
            let tuples: Vec<Tuple> = (first..(first + ROUND).min(flows.end))
                .map(|flow| packets::tuple(&self.setup, flow))
                .collect();
            self.load(false, tuples.iter().map(|&tuple| (tuple, flags::SYN)))?;
            self.time(tuples.len());
            let sent = self.feed.sent(false);
            if sent.len() != tuples.len() {
                return Err(format!("{} of {} first packets came out", sent.len(), tuples.len()).into());
            }
            for (mark, packet) in verify::in_order(&sent)?.into_iter().enumerate() {
                let (before, after) = (tuples[mark], verify::tuple(packet)?);
                let endpoints = |address| self.endpoints.contains(&address);
                verify::toward_endpoint(before, after, endpoints, self.setup.keep_source)?;
                if replies {
                    reply_tuples.push(after.reversed());
                }
            }
            self.verified += tuples.len();
        }
        self.feed.keep_sent(false, false);
        Ok(reply_tuples)
    }

    /// One untimed round of packets of known flows, judged.
    fn judge(&mut self, tuples: &[Tuple], replies: bool) -> Result<(), Error> {
        self.feed.keep_sent(replies, true);
        self.load(replies, tuples.iter().map(|&tuple| (tuple, flags::ACK)))?;
        self.time(tuples.len());
        let sent = self.feed.sent(replies);
        self.feed.keep_sent(replies, false);
        if sent.len() != tuples.len() {
            return Err(format!("{} of {} packets came out", sent.len(), tuples.len()).into());
        }
        for (mark, packet) in verify::in_order(&sent)?.into_iter().enumerate() {
            let (before, after) = (tuples[mark], verify::tuple(packet)?);
            if replies {
                let frontend = after.src.1 == crate::gateway::PORT && !self.endpoints.contains(&after.src.0);
                if !frontend {
                    return Err(format!("a client saw {:?}", after.src).into());
                }
            } else {
                let endpoints = |address| self.endpoints.contains(&address);
                verify::toward_endpoint(before, after, endpoints, self.setup.keep_source)?;
            }
        }
        self.verified += tuples.len();
        Ok(())
    }

    /// Moves time until every flow has been idle for too long.
    fn expire_all(&mut self) {
        self.now = self.now.plus_seconds(600);
        // Every tick's share of the sweep, twice over.
        for _ in 0..64 {
            self.now = Tick(self.now.0 + 1);
            for _ in 0..self.setup.flows / 16 / 4_096 + 2 {
                self.gateway.turn(self.now);
            }
        }
    }

    fn frames(&self, packets: impl Iterator<Item = (Tuple, u8)>) -> crate::treadmill::Packets {
        let mut frames = crate::treadmill::Packets::default();
        for (tuple, tcp_flags) in packets {
            packets::write(
                frames.add(self.size),
                (CLIENT_SIDE, self.setup.protocol),
                tuple,
                tcp_flags,
                0,
            );
        }
        frames
    }

    /// Puts packets on the port that they come by.
    fn load(&mut self, replies: bool, packets: impl Iterator<Item = (Tuple, u8)>) -> Result<(), Error> {
        self.feed.load(replies, self.size, self.setup.protocol, packets)?;
        if let Feed::Here(_) = self.feed {
            self.gateway.turn(self.now); // stages the frames
        }
        Ok(())
    }

    /// Nanoseconds of the turns that handle `packets`. Kept a function of its own, whose instructions can be counted.
    #[inline(never)]
    fn time(&mut self, packets: usize) -> u64 {
        let mut handled = 0;
        let start = now();
        while handled < packets {
            let turn = self.gateway.turn(self.now);
            if turn == 0 {
                break;
            }
            handled += turn;
        }
        let spent = start.elapsed().as_nanos() as u64;
        self.handled += handled;
        spent
    }
}

// A benchmark's business is the wall clock; the pipeline under it gets its time as a Tick, as ever.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Bytes of this process's memory that are in huge pages.
fn huge_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    };
    (kib("AnonHugePages:") + kib("ShmemPmdMapped:") + kib("Private_Hugetlb:")) * 1024
}

#[cfg(test)]
mod tests;
