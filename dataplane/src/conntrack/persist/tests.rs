use std::collections::HashSet;

use tempfile::TempDir;

use super::*;
use crate::addr::{FlowKey, Protocol, V4, V6};
use crate::conntrack::tests::{Numbered, both_families, config, new, seconds};
use crate::conntrack::{FlowFlags, NewFlow, State};
use crate::nat;
use crate::tick::TICKS_PER_SECOND;

const CAPACITY: usize = 200;
const NOW: u32 = 100;

both_families! {
    the_next_process_takes_over_every_flow_and_its_tuples_states_and_rewrites
    an_adopted_flow_knows_no_slots_until_it_is_bound_again
    a_shard_that_is_another_ones_is_not_read
    a_second_process_is_kept_out
    an_entry_that_is_not_sound_is_discarded_and_counted
    of_two_flows_with_one_tuple_one_is_discarded
    an_opening_cut_at_any_byte_is_no_flow_or_the_whole_flow
    no_damage_makes_two_flows_share_a_tuple_or_a_packet_go_astray
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("flows")
    }

    fn open<A: Address>(&self) -> (Flows<A>, Adopted) {
        let path = self.path();
        Flows::open_file(&shard(&path), config(CAPACITY), seconds(NOW)).unwrap()
    }

    /// A file in which `count` flows were left.
    fn with<A: Numbered>(count: u32) -> Self {
        let place = Self::new();
        let (mut flows, adopted) = place.open::<A>();
        assert_eq!(adopted.refused, Some(Refused::New));
        for n in 0..count {
            flows.open(&flow::<A>(n), seconds(n % NOW), &mut |_| ()).unwrap();
        }
        place
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    /// Where entry `n` starts.
    fn entry<A: Address>(n: usize) -> usize {
        n * size_of::<Flow<A>>()
    }
}

fn shard(path: &Path) -> Shard<'_> {
    Shard {
        path,
        worker: WorkerIndex(1),
        workers: 2,
        boot: BootId::from([b'b'; 36]),
    }
}

/// The `n`th flow, with the deltas that are right for it.
fn flow<A: Numbered>(n: u32) -> NewFlow<A> {
    let protocol = [Protocol::TCP, Protocol::UDP, Protocol::SCTP][n as usize % 3];
    let flow = new::<A>(protocol, n);
    let (l3_delta, l4_delta) = nat::deltas(&flow.original, &flow.reply.reversed());
    NewFlow {
        l3_delta,
        l4_delta,
        ..flow
    }
}

/// What must hold of every table: each flow is found by both its tuples, which are its alone, and is rewritten rightly.
fn check<A: Address>(flows: &Flows<A>, adopted: Adopted) {
    let mut keys: HashSet<FlowKey<A>> = HashSet::new();
    for (index, flow) in flows.iter() {
        for direction in Direction::BOTH {
            let key = flow.key(direction);
            assert!(keys.insert(key), "{key:?} twice");
            assert_eq!(flows.find(&key), Some((index, direction)));
            let rewrite = flow.rewrite(direction);
            let (l3, l4) = nat::deltas(&key, &rewrite.to);
            // Zero has two forms.
            let same = |a: u16, b: u16| a == b || a ^ b == u16::MAX && (a == 0 || b == 0);
            assert!(same(l3, rewrite.l3_delta) && same(l4, rewrite.l4_delta));
        }
        assert!(flow.flags().contains(FlowFlags::ADOPTED) && flow.state().is_of(flow.protocol()));
    }
    assert_eq!((keys.len(), flows.usage().used), (2 * adopted.kept, adopted.kept));
    assert_eq!(
        flows.embryonic(),
        flows
            .iter()
            .filter(|(_, flow)| flow.state().is_embryonic())
            .count()
    );
}

fn the_next_process_takes_over_every_flow_and_its_tuples_states_and_rewrites<A: Numbered>() {
    // CT-12.
    let place = Place::new();
    let (mut flows, _) = place.open::<A>();
    for n in 0..100 {
        let index = flows.open(&flow::<A>(n), seconds(n % 7), &mut |_| ()).unwrap();
        if n % 2 == 0 {
            let _ = flows.touch(index, Direction::Reply, 0x12, seconds(20 + n % 7));
        }
    }
    for n in (0..100).step_by(5) {
        let (index, _) = flows.find(&flow::<A>(n).original).unwrap();
        flows.close(index).unwrap();
    }
    let left = |flows: &Flows<A>| -> Vec<_> {
        let all = flows.iter().map(|(index, flow)| {
            let keys = Direction::BOTH.map(|direction| flow.key(direction));
            (index, keys, flow.state(), flow.last_seen(), flow.opened())
        });
        all.collect()
    };
    let before = left(&flows);
    drop(flows);
    let (mut flows, adopted) = place.open::<A>();
    assert_eq!(
        adopted,
        Adopted {
            kept: 80,
            ..Adopted::default()
        }
    );
    check(&flows, adopted);
    assert_eq!(left(&flows), before);
    // Free entries are found again, and full is full.
    for n in 100..220 {
        flows
            .open(
                &NewFlow {
                    state: State::Replied,
                    ..flow::<A>(3 * n + 1)
                },
                seconds(NOW),
                &mut |_| panic!(),
            )
            .unwrap();
    }
    assert_eq!(flows.usage().used, CAPACITY);
}

fn an_adopted_flow_knows_no_slots_until_it_is_bound_again<A: Numbered>() {
    let place = Place::with::<A>(1);
    let (mut flows, _) = place.open::<A>();
    let index = FlowIndex(0);
    let unknown = NextHopIndex::UNKNOWN;
    assert_eq!(
        Direction::BOTH.map(|d| flows.flow(index).next_hop(d)),
        [unknown; 2]
    );
    assert_eq!(flows.flow(index).backend(), BackendIndex(u32::MAX));
    flows.rebind(index, BackendIndex(7), 9, ServicePortIndex(3));
    flows.set_next_hops(index, [NextHopIndex(4), NextHopIndex(5)]);
    let flow = flows.flow(index);
    assert_eq!(
        (flow.backend(), flow.backend_generation(), flow.service_port()),
        (BackendIndex(7), 9, ServicePortIndex(3))
    );
    assert_eq!(
        Direction::BOTH.map(|d| flow.next_hop(d)),
        [NextHopIndex(4), NextHopIndex(5)]
    );
    assert!(!flow.flags().contains(FlowFlags::ADOPTED));
}

fn a_shard_that_is_another_ones_is_not_read<A: Numbered>() {
    let place = Place::with::<A>(10);
    let (path, bytes) = (place.path(), place.bytes());
    let own = shard(&path);
    let others = [
        (
            Shard {
                worker: WorkerIndex(0),
                ..own
            },
            CAPACITY,
            Refused::Worker,
        ),
        (Shard { workers: 3, ..own }, CAPACITY, Refused::Worker),
        (
            Shard {
                boot: BootId::from([b'c'; 36]),
                ..own
            },
            CAPACITY,
            Refused::Boot,
        ),
        (own, 10 * CAPACITY, Refused::New),
    ];
    for (shard, capacity, why) in others {
        place.write(&bytes);
        let (flows, adopted) = Flows::<A>::open_file(&shard, config(capacity), seconds(NOW)).unwrap();
        assert_eq!(
            (adopted.kept, adopted.refused, flows.iter().count()),
            (0, Some(why), 0)
        );
    }
    // The other family's entries, in as many bytes.
    place.write(&bytes);
    let other = if size_of::<A>() == 4 {
        Flows::<V6>::open_file(&own, config(CAPACITY / 2), seconds(NOW))
            .unwrap()
            .1
    } else {
        Flows::<V4>::open_file(&own, config(CAPACITY * 2), seconds(NOW))
            .unwrap()
            .1
    };
    assert_eq!((other.kept, other.refused), (0, Some(Refused::Layout)));
    // A file from before it was refused is not read by its owner either: it is empty now.
    assert_eq!(place.open::<A>().1.kept, 0);
}

fn a_second_process_is_kept_out<A: Numbered>() {
    let place = Place::with::<A>(3);
    let (first, _) = place.open::<A>();
    let path = place.path();
    let second = Flows::<A>::open_file(&shard(&path), config(CAPACITY), seconds(NOW));
    assert_eq!(
        second.err().map(|error| error.kind()),
        Some(io::ErrorKind::WouldBlock)
    );
    drop(first);
    assert_eq!(place.open::<A>().1.kept, 3);
}

fn an_entry_that_is_not_sound_is_discarded_and_counted<A: Numbered>() {
    // Entry 4 is of UDP; offsets as `flow.rs` draws them, from the end of the tuples on.
    let after_tuples = 2 * (2 * size_of::<A>() + 4);
    let tick = |seconds: u32| (1000 + seconds * TICKS_PER_SECOND).to_ne_bytes();
    let damages: &[(&str, usize, &[u8])] = &[
        ("a protocol of no Service", after_tuples, &[1]),
        ("another protocol's state", after_tuples, &[6]),
        ("no state", after_tuples + 1, &[200]),
        (
            "another protocol's state",
            after_tuples + 1,
            &[State::Established as u8],
        ),
        ("an unknown flag", after_tuples + 2, &[0x80]),
        ("a byte that is always zero", after_tuples + 3, &[1]),
        ("seen in the future", after_tuples + 4, &tick(NOW + 1)),
        ("opened after it was seen", after_tuples + 8, &tick(NOW)),
        ("wrong delta of addresses", after_tuples + 12, &[0xab, 0xcd]),
        ("wrong delta of ports", after_tuples + 14, &[0xab, 0xcd]),
        ("an address that is none", 0, &[0; 16][..size_of::<A>()]),
        ("a client whose address is not kept, without SNAT", 3, &[77]),
    ];
    for &(what, offset, damage) in damages {
        let place = Place::with::<A>(10);
        let mut bytes = place.bytes();
        let at = Place::entry::<A>(4) + offset;
        bytes[at..at + damage.len()].copy_from_slice(damage);
        place.write(&bytes);
        let (flows, adopted) = place.open::<A>();
        assert_eq!(
            (adopted.kept, adopted.discarded, adopted.refused),
            (9, 1, None),
            "{what}"
        );
        check(&flows, adopted);
    }
}

fn of_two_flows_with_one_tuple_one_is_discarded<A: Numbered>() {
    let place = Place::with::<A>(10);
    let mut bytes = place.bytes();
    let (from, to) = (Place::entry::<A>(3), Place::entry::<A>(8));
    bytes.copy_within(from..from + size_of::<Flow<A>>(), to);
    place.write(&bytes);
    let (flows, adopted) = place.open::<A>();
    assert_eq!((adopted.kept, adopted.discarded), (9, 1));
    check(&flows, adopted);
}

fn an_opening_cut_at_any_byte_is_no_flow_or_the_whole_flow<A: Numbered>() {
    let place = Place::with::<A>(3);
    let whole = place.bytes();
    let (start, size) = (Place::entry::<A>(2), size_of::<Flow<A>>());
    let state = start + 2 * (2 * size_of::<A>() + 4) + 1;
    for cut in 0..=size {
        // Written up to `cut`, over what was there; the state not yet.
        let mut bytes = whole.clone();
        bytes[start + cut..start + size].fill(0);
        bytes[state] = State::Free as u8;
        place.write(&bytes);
        let (flows, adopted) = place.open::<A>();
        assert_eq!((adopted.kept, adopted.discarded), (2, 0), "cut at {cut}");
        check(&flows, adopted);
    }
}

fn no_damage_makes_two_flows_share_a_tuple_or_a_packet_go_astray<A: Numbered>() {
    let whole = Place::with::<A>(150).bytes();
    let place = Place::new();
    let mut random = 7u64;
    let mut below = move |bound: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    for round in 0..300 {
        let mut bytes = whole.clone();
        let damages = 1 + below(30);
        for _ in 0..damages {
            // In the head, which has a page of its own at the end, or in the entries; what is in between holds nothing.
            let at = if below(50) == 0 {
                whole.len() - rustix::param::page_size() + below(HEAD)
            } else {
                Place::entry::<A>(0) + below(150 * size_of::<Flow<A>>())
            };
            match below(3) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = below(256) as u8,
                _ => {
                    let (from, len) = (Place::entry::<A>(below(150)), size_of::<Flow<A>>());
                    bytes.copy_within(from..from + len, Place::entry::<A>(below(150)));
                }
            }
        }
        if round % 10 == 0 {
            bytes.truncate(below(whole.len()));
        }
        place.write(&bytes);
        let (flows, adopted) = place.open::<A>();
        check(&flows, adopted);
        if adopted.refused.is_none() {
            // What was not damaged is kept; a copy may cost its double.
            assert!(adopted.kept + 2 * damages >= 150, "{adopted:?} after {damages}");
        }
    }
}
