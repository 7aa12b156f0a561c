//! Tests of `nat`.

use super::rows::workload;
use super::*;

fn small(kind: Kind) -> Workload {
    Workload {
        kind,
        flows: 5_000,
        repeats: 2,
        packets: ROUND,
        ..workload("by-hand")
    }
}

#[test]
fn more_full_nat_flows_than_source_ports_are_refused_with_what_to_do() {
    let workload = Workload {
        flows: 1_000_000,
        full_nat: true,
        ..small(Kind::Established)
    };
    assert!(run(&workload).unwrap_err().to_string().contains("--backends"));
}

#[test]
fn every_flow_is_opened_verified_and_followed_in_both_modes() {
    for (full_nat, v6, kind) in [
        (false, false, Kind::Established),
        (true, false, Kind::Established),
        (true, false, Kind::Reply),
        (false, true, Kind::Established),
        (true, true, Kind::Reply),
    ] {
        let workload = Workload {
            full_nat,
            v6,
            services: 3,
            ..small(kind)
        };
        let row = run(&workload).unwrap();
        assert!(row.verified > 5_000 && row.ratio_to_floor.is_some(), "{row:?}");
    }
}

#[test]
fn packets_from_another_core_are_translated_as_well() {
    if !has_other_core() {
        println!("skipped: 1 (packets from another core: this machine has one)");
        return;
    }
    for kind in [Kind::Established, Kind::Reply, Kind::New, Kind::Lives] {
        let workload = Workload {
            full_nat: kind == Kind::Reply,
            other_core: true,
            ..small(kind)
        };
        let row = run(&workload).unwrap();
        assert!(row.ring_ns_per_packet.is_some_and(|ns| ns.min > 0.0), "{row:?}");
    }
}

#[test]
fn no_turn_allocates() {
    for kind in [Kind::Established, Kind::New] {
        for (v6, full_nat) in [(false, false), (false, true), (true, true)] {
            let workload = Workload {
                v6,
                full_nat,
                ..small(kind)
            };
            let mut bench = Bench::new(&workload, Feed::here()).unwrap();
            bench.open(0..2_048, false).unwrap();
            // Of flows that are known, then of new ones.
            for first in [0, 2_048] {
                let tuples = (first..first + ROUND).map(|i| packets::tuple(&bench.setup, i));
                let tuples: Vec<_> = tuples.map(|tuple| (tuple, flags::ACK)).collect();
                bench.load(false, tuples.into_iter()).unwrap();
                let counted = allocation_counter::measure(|| {
                    bench.time(ROUND);
                });
                assert_eq!(counted.count_total, 0, "{kind:?} from {first}");
            }
            let counted = allocation_counter::measure(|| bench.expire_all());
            assert_eq!(counted.count_total, 0, "while flows expire");
        }
    }
}

#[test]
fn new_flows_and_whole_lives_are_measured_on_a_table_that_fills() {
    let new = run(&small(Kind::New)).unwrap();
    assert!(new.verified == 5_000 && new.ratio_to_floor.is_none(), "{new:?}");
    let lives = run(&small(Kind::Lives)).unwrap();
    assert!(
        lives.lives_per_second.is_some_and(|lives| lives > 0.0),
        "{lives:?}"
    );
}
