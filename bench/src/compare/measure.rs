//! One gateway's row: how many packets at most, what each cost the gateway's core, and how long packets took below that.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::gateway::{Cores, Gateway};
use crate::pktgen::picks::{Picks, Weighted};
use crate::pktgen::ports::Driver;
use crate::pktgen::run::{self, Generator};
use crate::pktgen::schedule::Schedule;
use crate::pktgen::template::Template;
use crate::pktgen::trial::{Kind, Tcp, Traffic};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Flows.
    pub flows: u32,
    /// Frame size with FCS.
    pub size: usize,
    /// A trial's length.
    pub length: Duration,
    /// Packets a second at which latency is taken.
    pub rate: f64,
    /// The generator's driver.
    pub driver: Driver,
    /// Who is where.
    pub cores: Cores,
}

/// Rungs of the ladder below a flood, each half of the one before: a 64th of it is no load for any gateway.
const RUNGS: u32 = 6;
/// Share of packets that may be lost where the ladder ends: who loses no more has no use for less load.
const HARDLY_LOST: f64 = 0.01;

/// A flood of one direction, then half as much, and so on until hardly any is lost; and a trial of both at a rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Which gateway.
    pub gateway: String,
    /// Which turn.
    pub repeat: usize,
    /// Flows that were known when it began.
    pub opened: u64,
    /// Millions of packets a second that came out in the flood.
    pub mpps: f64,
    /// Nanoseconds of the gateway's threads per packet that came out, at the load at which that was least.
    pub gateway_ns_per_packet: f64,
    /// Millions of packets per second of the gateway's threads: the figure that is fair to compare.
    pub mpps_per_gateway_core: f64,
    /// Share of the flood's time that they ran.
    pub gateway_busy: f64,
    /// The flood and what followed it.
    pub ladder: Vec<Rung>,
    /// The flood.
    pub flood: run::Row,
    /// The trial at a rate, with answers.
    pub paced: run::Row,
    /// Nanoseconds of the gateway's threads per packet of that, both directions counted.
    pub paced_gateway_ns_per_packet: f64,
    /// What our gateway dropped in this turn, by its reasons.
    pub drops: BTreeMap<String, u64>,
}

/// One load of one direction. A gateway may do best under a flood, since bursts are longer, or far below it: where the kernel
/// receives first, it has paid for what is then lost at a full ring.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rung {
    /// Packets a second that were sent.
    pub sent_pps: f64,
    /// Share of them that did not come out.
    pub loss: f64,
    /// Nanoseconds of the gateway's threads per packet that did.
    pub gateway_ns_per_packet: f64,
    /// Share of the time that they ran.
    pub gateway_busy: f64,
    /// Packets that came out wrong.
    pub wrong: u64,
}

/// One turn.
pub fn measure(gateway: &Gateway, settings: &Settings, repeat: usize) -> io::Result<Row> {
    let (ports, threads) = gateway.connect(settings.driver, settings.cores)?;
    let dropped = gateway.drops();
    let from = ports.clients.driver.info().mac;
    let template = Template::udp(gateway.world.family(), from, gateway.mac(), settings.size);
    let traffic = Traffic {
        world: gateway.world.clone(),
        flows: settings.flows,
        picks: Picks::Uniform,
        mix: (Weighted::new(&[1.0]), vec![Kind::Udp(template.clone())]),
        tcp: Tcp::none(template),
        answer: true,
        seed: repeat as u64,
    };
    let mut generator = Generator::new(ports, traffic);
    // Slow enough for every gateway; answered, so that each knows its flows as established.
    let opened = generator.open_flows(50_000.0).back.received;
    let length = settings.length;
    let nanos = length.as_nanos() as u64;
    let before = threads.ran();
    let (tally, paced) = generator.trial(
        length,
        |start| Schedule::even(Some(settings.rate), start, nanos),
        |_, _| {},
    );
    let paced_ran = threads.ran() - before;
    say(gateway, &tally);
    generator.traffic().answer = false;
    let per = |ns: u64, packets: u64| ns as f64 / packets.max(1) as f64;
    let mut climb = |rate: Option<f64>, length: Duration| {
        let (before, nanos) = (threads.ran(), length.as_nanos() as u64);
        let (tally, row) = generator.trial(length, |start| Schedule::even(rate, start, nanos), |_, _| {});
        let ran = threads.ran() - before;
        say(gateway, &tally);
        let rung = Rung {
            sent_pps: row.sent_pps,
            loss: row.forward.loss,
            gateway_ns_per_packet: per(ran, row.forward.received),
            gateway_busy: ran as f64 / 1e9 / row.seconds,
            wrong: row.wrong(),
        };
        (row, rung)
    };
    let (flood, mut rung) = climb(None, length);
    let mut ladder = vec![rung];
    for step in 1..=RUNGS {
        if rung.loss <= HARDLY_LOST {
            break;
        }
        let rate = flood.sent_pps / f64::from(1 << step);
        (_, rung) = climb(Some(rate), length / 2);
        ladder.push(rung);
    }
    let costs = ladder.iter().map(|rung| rung.gateway_ns_per_packet);
    let cost = costs.filter(|cost| *cost > 0.0).reduce(f64::min).unwrap_or(0.0);
    Ok(Row {
        gateway: gateway.kind.name(),
        repeat,
        opened,
        mpps: flood.received_pps / 1e6,
        gateway_ns_per_packet: cost,
        mpps_per_gateway_core: if cost > 0.0 { 1e3 / cost } else { 0.0 },
        gateway_busy: ladder[0].gateway_busy,
        ladder,
        paced_gateway_ns_per_packet: per(paced_ran, paced.forward.received + paced.back.received),
        flood,
        paced,
        drops: gateway
            .drops()
            .into_iter()
            .map(|(reason, count)| {
                let before = dropped.get(&reason).copied().unwrap_or(0);
                (reason, count - before)
            })
            .filter(|(_, count)| *count > 0)
            .collect(),
    })
}

fn say(gateway: &Gateway, tally: &crate::pktgen::tally::Tally) {
    if let Some((side, wrong, bytes)) = &tally.sample {
        let hex: String = bytes.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
        eprintln!(
            "{}: wrong at the {side}' side ({wrong}): {hex}",
            gateway.kind.name()
        );
    }
}
