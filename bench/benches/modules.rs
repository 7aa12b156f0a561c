//! What single modules of the packet path cost, one packet at a time and with everything in the nearest caches: where to look
//! when a row of `sluice-bench nat` has become slower. Beside our parser stands etherparse, which does less: it slices
//! headers, and proves neither checksums nor lengths.
//!
//! `cargo bench -p sluice-bench`; a name after `--` picks some.

use std::error::Error;
use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BatchSize, Criterion};
use etherparse::{PacketBuilder, SlicedPacket};
use sluice_bench::pktgen::world::{Endpoints, Services, World};
use sluice_bench::services::records;
use sluice_dataplane::addr::{FlowKey, Mac, Port, Protocol, V4};
use sluice_dataplane::conntrack::{Admission, FlowConfig, Flows, HashKey, NewFlow, State, Timeouts};
use sluice_dataplane::index::{BackendIndex, Generation, NextHopIndex, ServicePortIndex};
use sluice_dataplane::nat::{Rewrite, deltas, rewrite};
use sluice_dataplane::parse::{Parsed, parse, parse_into};
use sluice_dataplane::tables::{EndpointSetKind, Picker, TableLimits, TablesBuilder};
use sluice_dataplane::tick::Tick;
use sluice_dataplane::wire::checksum;

const STATION: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const TICK: Tick = Tick(8_000);

fn key(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> FlowKey<V4> {
    FlowKey {
        src: src.0.octets(),
        dst: dst.0.octets(),
        src_port: Port::new(src.1),
        dst_port: Port::new(dst.1),
        protocol: Protocol::UDP,
        zero: [0; 3],
    }
}

fn request(payload: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], STATION.0)
        .ipv4(CLIENT.octets(), FRONTEND.octets(), 64)
        .udp(40_000, 80);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0x5a; payload])?;
    Ok(frame)
}

fn parsing(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    // 18 bytes of payload make a frame of 64 bytes with its FCS; 1,472 one of Ethernet's MTU.
    for payload in [18, 1_472] {
        let frame = request(payload)?;
        let name = |what| format!("{what}, {} bytes", frame.len() + 4);
        criterion.bench_function(&name("parse: ours"), |bencher| {
            // As the worker has it: where it stays.
            let mut place = Parsed::Neighbour;
            bencher.iter(|| parse_into(black_box(&mut place), black_box(&frame), STATION));
        });
        criterion.bench_function(&name("parse: etherparse, slices only"), |bencher| {
            bencher.iter(|| SlicedPacket::from_ethernet(black_box(&frame)).is_ok());
        });
    }
    Ok(())
}

fn rewriting(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let frame = request(18)?;
    let Parsed::Ipv4(packet) = parse(&frame, STATION) else {
        return Err("the request is no packet".into());
    };
    let to = key((CLIENT, 40_000), (ENDPOINT, 8_080));
    let (l3_delta, l4_delta) = deltas(&packet.key, &to);
    let changes = Rewrite {
        to,
        l3_delta,
        l4_delta,
    };
    criterion.bench_function("rewrite: addresses, ports, checksums", |bencher| {
        let fresh = || frame.clone();
        bencher.iter_batched_ref(
            fresh,
            |frame| rewrite(frame, &packet, black_box(&changes)),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("checksum: 20 bytes", |bencher| {
        bencher.iter(|| checksum::sum(black_box(&frame[14..34])));
    });
    let long = request(1_472)?;
    criterion.bench_function("checksum: 1,480 bytes", |bencher| {
        bencher.iter(|| checksum::sum(black_box(&long[34..])));
    });
    Ok(())
}

fn tracking(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    const FLOWS: u16 = 1_000;
    let mut flows = Flows::<V4>::new(FlowConfig {
        capacity: 2_048,
        timeouts: Timeouts::default(),
        admission: Admission::default(),
        hash_key: HashKey::random()?,
    })?;
    let new = |port| NewFlow {
        original: key((CLIENT, port), (FRONTEND, 80)),
        reply: key((ENDPOINT, 8_080), (CLIENT, port)),
        state: State::Unreplied,
        backend: BackendIndex(0),
        backend_generation: 1,
        service_port: ServicePortIndex(0),
        next_hops: [NextHopIndex::UNKNOWN; 2],
        l3_delta: 0,
        l4_delta: 0,
        flags: Default::default(),
    };
    for port in 2_000..2_000 + FLOWS {
        flows.open(&new(port), TICK, &mut |_| {})?;
    }
    let known = new(2_500);
    criterion.bench_function("conntrack: hash", |bencher| {
        bencher.iter(|| flows.ask(black_box(&known.original)))
    });
    criterion.bench_function("conntrack: find", |bencher| {
        bencher.iter(|| flows.find(black_box(&known.original)))
    });
    let stranger = new(60_000);
    criterion.bench_function("conntrack: find none", |bencher| {
        bencher.iter(|| flows.find(black_box(&stranger.original)));
    });
    criterion.bench_function("conntrack: open and close", |bencher| {
        bencher.iter(|| {
            let opened = flows.open(black_box(&stranger), TICK, &mut |_| {});
            opened.map(|index| flows.close(index).is_some())
        });
    });
    Ok(())
}

fn choosing(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let limits = TableLimits::default();
    let world = World {
        clients: CLIENT.into(),
        services: Services {
            first: FRONTEND.into(),
            count: 1_000,
            port: 80,
        },
        endpoints: Endpoints {
            first: ENDPOINT.into(),
            addresses: 1 << 16,
            per_service: 10,
            port: 8_080,
        },
        snat: Vec::new(),
        direct: false,
    };
    let records = records(&world, "10.244.0.0/16".parse()?, &[Protocol::UDP]);
    let tables = TablesBuilder::new(limits).apply(Generation(1), &[], &records)?;
    criterion.bench_function("tables: frontend of 1,000", |bencher| {
        bencher.iter(|| tables.frontend(black_box(FRONTEND.octets()), Protocol::UDP, Port::new(80)));
    });
    let mut picker = Picker::new(1, &limits);
    criterion.bench_function("tables: one endpoint of 10 at random", |bencher| {
        let service = ServicePortIndex(7);
        bencher
            .iter(|| tables.choose::<[u8; 4]>(black_box(service), EndpointSetKind::Cluster, 1, &mut picker));
    });
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    parsing(&mut criterion)?;
    rewriting(&mut criterion)?;
    tracking(&mut criterion)?;
    choosing(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
