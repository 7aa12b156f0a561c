//! The memory against a plain map, and each rule by its name.

use std::collections::HashMap;
use std::sync::Barrier;

use proptest::prelude::*;

use super::*;
use crate::addr::{V4, V6};
use crate::tick::TICKS_PER_SECOND;

const SP: ServicePortIndex = ServicePortIndex(0);
/// As random as a real one (the fractional part of pi).
const SECRET: [u64; 4] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7344,
    0xa409_3822_299f_31d0,
    0x082e_fa98_ec4e_6c89,
];
const HOUR: u32 = 3_600 * TICKS_PER_SECOND;
use EndpointSetKind::{Cluster, Local};

fn memory(clients: usize) -> Affinity {
    Affinity::with_secret(clients, HashKey::from(SECRET))
}

fn occupant(slot: u32) -> Occupant {
    let slot = BackendIndex(slot);
    Occupant { slot, generation: 1 }
}

/// A flow at `now` to a set of slots below `set`, each in its first generation; `pick` is what would be picked.
fn open(affinity: &Affinity, client: V4, now: u32, set: u32, pick: u32) -> Option<u32> {
    let in_set = |slot: BackendIndex| (slot.0 < set).then_some(1);
    let pick = || (set > 0).then(|| occupant(pick));
    let choice = affinity.choose(SP, Cluster, client, HOUR, Tick(now), in_set, pick);
    choice.map(|choice| choice.backend.slot.0)
}

const ANNA: V4 = [198, 51, 100, 1];

#[test]
fn every_new_flow_of_a_client_goes_where_the_last_went_and_starts_its_time_anew_aff_1() {
    let affinity = memory(100);
    assert_eq!(open(&affinity, ANNA, 0, 9, 3), Some(3));
    assert_eq!(open(&affinity, ANNA, HOUR - 1, 9, 4), Some(3));
    assert_eq!(open(&affinity, ANNA, 2 * HOUR - 2, 9, 4), Some(3));
    assert_eq!(
        open(&affinity, ANNA, 3 * HOUR - 2, 9, 4),
        Some(4),
        "its time is up"
    );
    assert_eq!(open(&affinity, ANNA, 3 * HOUR - 1, 9, 5), Some(4));
}

#[test]
fn service_ports_kinds_of_set_and_clients_of_either_family_are_remembered_apart_aff_3() {
    let affinity = memory(1_000);
    let client6: V6 = [0xfd; 16];
    let open = |port: u32, set, pick| {
        let pick4 = affinity.choose(
            ServicePortIndex(port),
            set,
            ANNA,
            HOUR,
            Tick(0),
            |_| Some(1),
            || Some(occupant(pick)),
        );
        let pick6 = affinity.choose(
            ServicePortIndex(port),
            set,
            client6,
            HOUR,
            Tick(0),
            |_| Some(1),
            || Some(occupant(pick + 100)),
        );
        (pick4.unwrap().backend.slot.0, pick6.unwrap().backend.slot.0)
    };
    for (at, (port, set)) in [(0, Cluster), (0, Local), (1, Cluster), (1 << 16, Cluster)]
        .into_iter()
        .enumerate()
    {
        let fresh = 10 + at as u32;
        assert_eq!(open(port, set, fresh), (fresh, fresh + 100));
        assert_eq!(open(port, set, 9), (fresh, fresh + 100));
    }
}

#[test]
fn an_endpoint_that_left_the_set_is_replaced_for_good_aff_4() {
    let affinity = memory(100);
    assert_eq!(open(&affinity, ANNA, 0, 9, 8), Some(8));
    assert_eq!(open(&affinity, ANNA, 1, 5, 2), Some(2));
    assert_eq!(
        open(&affinity, ANNA, 2, 9, 7),
        Some(2),
        "the old one is back, and not remembered"
    );
}

#[test]
fn another_endpoint_in_the_same_slot_is_not_the_remembered_one() {
    let affinity = memory(100);
    assert_eq!(open(&affinity, ANNA, 0, 9, 3), Some(3));
    let successor = |_| Some(2);
    let pick = || Some(occupant(4));
    let choice = affinity.choose(SP, Cluster, ANNA, HOUR, Tick(1), successor, pick);
    assert_eq!(choice.unwrap().backend.slot.0, 4);
}

#[test]
fn a_shorter_timeout_holds_from_the_next_flow_on_aff_6() {
    let affinity = memory(100);
    let open = |timeout, now, pick| {
        let picked = || Some(occupant(pick));
        let choice = affinity.choose(SP, Cluster, ANNA, timeout, Tick(now), |_| Some(1), picked);
        choice.unwrap().backend.slot.0
    };
    assert_eq!(open(HOUR, 0, 1), 1);
    assert_eq!(open(10, 100, 2), 2);
    assert_eq!(open(HOUR, 200, 3), 2);
}

#[test]
fn a_client_refused_for_want_of_endpoints_is_not_refreshed_aff_8() {
    let affinity = memory(100);
    assert_eq!(open(&affinity, ANNA, 0, 9, 3), Some(3));
    assert_eq!(open(&affinity, ANNA, HOUR - 1, 0, 0), None);
    assert_eq!(open(&affinity, ANNA, HOUR, 9, 4), Some(4));
}

#[test]
fn a_full_bucket_forgets_whoever_was_longest_without_a_flow_and_says_so_aff_7() {
    let affinity = memory(1); // one bucket
    let client = |host: usize| [10, 0, 0, host as u8];
    let open = |host, now, pick| {
        let picked = || Some(occupant(pick));
        affinity
            .choose(SP, Cluster, client(host), HOUR, Tick(now), |_| Some(1), picked)
            .unwrap()
    };
    for host in 0..WAYS {
        assert!(!open(host, host as u32, 1).evicted);
    }
    // The first speaks again, so the second is the oldest.
    open(0, 50, 2);
    assert!(open(99, 60, 3).evicted);
    assert_eq!(open(0, 61, 4).backend.slot.0, 1);
    assert_eq!(open(99, 61, 4).backend.slot.0, 3);
    assert_eq!(open(1, 62, 5).backend.slot.0, 5);
    // One whose time is up is no loss.
    assert!(!open(100, 61 + HOUR, 1).evicted);
}

#[test]
fn as_many_clients_as_were_asked_for_are_remembered_but_for_few() {
    let affinity = memory(10_000);
    let evicted = (0..10_000u32).filter(|n| {
        let pick = || Some(occupant(1));
        let choice = affinity.choose(SP, Cluster, n.to_be_bytes(), HOUR, Tick(0), |_| Some(1), pick);
        choice.unwrap().evicted
    });
    let evicted = evicted.count();
    assert!(evicted < 200, "{evicted}");
    assert!(Affinity::with_secret(Affinity::CLIENTS, HashKey::from(SECRET)).bytes() < 6 << 20);
}

#[test]
fn workers_that_open_flows_of_the_same_clients_at_once_agree_on_every_endpoint() {
    const CLIENTS: u32 = 2_000;
    const WORKERS: u32 = 4;
    let affinity = memory(CLIENTS as usize * 4);
    let barrier = Barrier::new(WORKERS as usize);
    let work = |worker: u32| {
        let open = |n: u32| {
            // All at the same few clients at once.
            if n.is_multiple_of(50) {
                barrier.wait();
            }
            open(&affinity, n.to_be_bytes(), 0, u32::MAX, worker * CLIENTS + n)
        };
        (0..CLIENTS).map(open).collect::<Vec<_>>()
    };
    let chosen: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(chosen.iter().all(|of_worker| *of_worker == chosen[0]));
}

#[derive(Clone, Debug)]
struct Flow {
    client: u8,
    service_port: u32,
    local: bool,
    after: u32,
    timeout: u32,
    set: Vec<u32>,
    picked: prop::sample::Index,
}

fn flow() -> impl Strategy<Value = Flow> {
    let who = (0..3u8, 0..2u32, any::<bool>());
    let what = (
        0..40u32,
        1..60u32,
        prop::collection::vec(0..6u32, 0..5),
        any::<prop::sample::Index>(),
    );
    (who, what).prop_map(
        |((client, service_port, local), (after, timeout, set, picked))| Flow {
            client,
            service_port,
            local,
            after,
            timeout,
            set,
            picked,
        },
    )
}

proptest! {
    /// Twelve clients in all, in buckets of ten: none is ever forgotten early.
    #[test]
    fn it_answers_as_a_map_of_clients_would(flows in prop::collection::vec(flow(), 1..80), start in any::<u32>()) {
        let affinity = memory(10_000);
        let mut model = HashMap::<(u8, u32, bool), (u32, u32)>::new();
        let mut now = start;
        for flow in flows {
            now = now.wrapping_add(flow.after);
            let pick = (!flow.set.is_empty()).then(|| *flow.picked.get(&flow.set));
            let name = (flow.client, flow.service_port, flow.local);
            let expected = match model.get(&name) {
                Some(&(slot, last)) if now.wrapping_sub(last) < flow.timeout && flow.set.contains(&slot) => Some(slot),
                _ => pick,
            };
            if let Some(slot) = expected {
                model.insert(name, (slot, now));
            }
            let choice = affinity.choose(
                ServicePortIndex(flow.service_port),
                if flow.local { Local } else { Cluster },
                [10, 0, 0, flow.client],
                flow.timeout,
                Tick(now),
                |slot| flow.set.contains(&slot.0).then_some(1),
                || pick.map(occupant),
            );
            prop_assert_eq!(choice.map(|choice| choice.backend.slot.0), expected);
            prop_assert!(choice.is_none_or(|choice| !choice.evicted));
        }
    }
}
