//! A file of flows with any bytes in it: what is sound is taken over, the rest is counted, and the table works.

use std::cell::RefCell;
use std::fs;

use sluice_dataplane::addr::{Address, FlowKey, Port, Protocol, V4, V6};
use sluice_dataplane::conntrack::persist::{BootId, Shard};
use sluice_dataplane::conntrack::{
    Admission, Direction, FlowConfig, FlowFlags, Flows, HashKey, NewFlow, State, Timeouts,
};
use sluice_dataplane::index::{BackendIndex, NextHopIndex, ServicePortIndex, WorkerIndex};
use sluice_dataplane::tick::Tick;

use crate::bytes::Bytes;

const CAPACITY: usize = 16;
const NOW: Tick = Tick(10_000);

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

pub(crate) fn run(data: &[u8]) {
    FOLDER.with_borrow_mut(|folder| {
        let path = folder
            .get_or_insert_with(|| tempfile::tempdir().unwrap())
            .path()
            .join("flows");
        let mut bytes = Bytes(data);
        if bytes.byte() & 1 == 0 {
            adopt::<V4>(&path, bytes)
        } else {
            adopt::<V6>(&path, bytes)
        }
    });
}

fn config() -> FlowConfig {
    FlowConfig {
        capacity: CAPACITY,
        timeouts: Timeouts::default(),
        admission: Admission::default(),
        hash_key: HashKey::from([1, 2, 3, 4]),
    }
}

fn adopt<A: Address>(path: &std::path::Path, mut bytes: Bytes<'_>) {
    let _ = fs::remove_file(path);
    let boot = BootId::from([b'b'; 36]);
    let shard = Shard {
        path,
        worker: WorkerIndex(0),
        workers: 1,
        boot,
    };
    let (mut flows, _) = Flows::<A>::open_file(&shard, config(), NOW).unwrap();
    for n in 0..bytes.below(CAPACITY + 1) {
        let _ = flows.open(&flow::<A>(n as u16, &mut bytes), NOW, &mut |_: &_| ());
    }
    drop(flows);
    // The file as another process would leave it: a true one, with bytes of the input's here and there.
    let mut file = fs::read(path).unwrap();
    while !bytes.is_empty() {
        let (at, len) = (usize::from(bytes.word()), bytes.below(24));
        let part = bytes.take(len);
        let at = at % file.len();
        let room = (file.len() - at).min(part.len());
        file[at..at + room].copy_from_slice(&part[..room]);
    }
    fs::write(path, file).unwrap();
    let (mut flows, adopted) = Flows::<A>::open_file(&shard, config(), NOW).unwrap();
    assert_eq!(flows.usage().used, adopted.kept);
    assert!(adopted.kept + adopted.discarded <= CAPACITY);
    let all: Vec<_> = flows.iter().map(|(index, flow)| (index, *flow)).collect();
    assert_eq!(all.len(), adopted.kept, "what is kept is there");
    for (index, flow) in &all {
        for direction in Direction::BOTH {
            let found = flows.find(&flow.key(direction));
            assert_eq!(
                found,
                Some((*index, direction)),
                "each tuple is one flow's, and leads to it"
            );
        }
        let _ = flows.touch(*index, Direction::Reply, 0xff, NOW);
    }
    let mut gone = 0;
    for hours in 1..30 {
        flows.expire(NOW.plus_seconds(hours * 3600), 2 * CAPACITY, &mut |_: &_| {
            gone += 1
        });
    }
    assert_eq!((flows.usage().used, gone), (0, all.len()), "every flow ends");
}

fn flow<A: Address>(number: u16, bytes: &mut Bytes<'_>) -> NewFlow<A> {
    let protocol = bytes.one_of(&[Protocol::TCP, Protocol::UDP, Protocol::SCTP]);
    let key = FlowKey {
        src_port: Port::new(number + 1),
        dst_port: Port::new(80),
        protocol,
        ..FlowKey::default()
    };
    NewFlow {
        original: key,
        reply: FlowKey {
            dst_port: Port::new(number + 1000),
            src_port: Port::new(8080),
            ..key
        },
        state: State::opening(protocol, if protocol == Protocol::TCP { 2 } else { 0 }).unwrap(),
        backend: BackendIndex(bytes.byte().into()),
        backend_generation: 1,
        service_port: ServicePortIndex(bytes.byte().into()),
        next_hops: [NextHopIndex(1), NextHopIndex(2)],
        l3_delta: 0,
        l4_delta: 0,
        flags: FlowFlags::default(),
    }
}
