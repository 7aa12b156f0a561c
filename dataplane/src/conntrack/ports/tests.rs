use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::addr::Protocol;

mod rest;

fn destination(n: u16) -> Destination {
    let backend = format!("10.244.0.1:{}", 8000 + n).parse().unwrap();
    let port = 40_000 + n;
    Destination::of_reply(&FlowKey::new(
        Protocol::TCP,
        backend,
        format!("192.0.2.1:{port}").parse().unwrap(),
    ))
}

fn pool(ranges: &[RangeInclusive<u16>], destinations: usize, blocks: usize) -> PortPool {
    let hash_key = HashKey::from([11, 13, 17, 19]);
    PortPool::new(PortPoolConfig {
        ports: SourcePorts::all(ranges.to_vec()),
        destinations,
        blocks,
        rest: Rest {
            ports: 0,
            ..Rest::default()
        },
        hash_key,
    })
    .unwrap()
}

/// Random numbers for `take`.
fn randoms(seed: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(seed), |n| {
        Some(n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
    })
}

#[test]
fn every_port_of_the_slice_serves_every_destination_and_a_full_one_refuses_only_itself() {
    let mut pool = pool(&[1024..=29_999, 32_768..=65_535], 2, 400);
    let mut randoms = randoms(1);
    for n in 0..2 {
        let ports: BTreeSet<_> = (0..pool.ports_per_destination())
            .map(|_| {
                pool.take(destination(n), randoms.next().unwrap())
                    .unwrap()
                    .number()
            })
            .collect();
        assert!(ports.into_iter().eq((1024..=29_999).chain(32_768..=65_535)));
        assert_eq!(pool.take(destination(n), 7), Err(PortError::PortsExhausted));
    }
    assert_eq!(pool.take(destination(2), 7), Err(PortError::DestinationsFull));
    assert!(pool.give(destination(1), Port::new(50_000)));
    assert_eq!(pool.take(destination(0), 7), Err(PortError::PortsExhausted));
    assert_eq!(
        pool.take(destination(1), 7),
        Ok(Port::new(50_000)),
        "recovers with the only port there is"
    );
}

#[test]
fn a_destination_of_few_flows_takes_one_block_and_gives_it_back() {
    let mut pool = pool(&[1024..=65_535], 100, 100);
    let ports: Vec<_> = randoms(1)
        .take(100)
        .map(|random| pool.take(destination(0), random).unwrap())
        .collect();
    assert_eq!(
        (pool.destinations().used, pool.blocks().used, pool.taken()),
        (1, 1, 100)
    );
    assert!(ports.into_iter().all(|port| pool.give(destination(0), port)));
    assert_eq!(
        (pool.destinations().used, pool.blocks().used, pool.taken()),
        (0, 0, 0)
    );
    assert_eq!((pool.destinations().high_water, pool.blocks().high_water), (1, 1));
}

#[test]
fn running_out_of_blocks_leaves_nothing_behind_and_recovers() {
    let mut pool = pool(&[1..=1000], 3, 1);
    let port = pool.take(destination(0), 0).unwrap();
    assert_eq!(pool.take(destination(1), 0), Err(PortError::BlocksFull));
    assert_eq!(pool.destinations().used, 1);
    assert!(pool.give(destination(0), port));
    assert!(pool.take(destination(1), 0).is_ok());
}

#[test]
fn how_full_a_destination_was_is_known_by_blocks_and_never_more_than_there_are_ports() {
    let mut pool = pool(&[1..=1000], 3, 9);
    assert_eq!(pool.fullest(), 0);
    let ports: Vec<_> = randoms(1)
        .take(500)
        .map(|random| pool.take(destination(0), random).unwrap())
        .collect();
    assert_eq!(pool.fullest(), 896, "448 are not enough for 500");
    ports
        .iter()
        .for_each(|&port| assert!(pool.cancel(destination(0), port)));
    pool.take(destination(1), 0).unwrap();
    assert_eq!(pool.fullest(), 896, "ever");
    for random in randoms(2).take(1000) {
        pool.take(destination(2), random).unwrap();
    }
    assert_eq!(pool.fullest(), 1000);
}

#[test]
fn ports_spread_over_the_whole_slice() {
    let mut pool = pool(&[1024..=65_535], 1, 1);
    let mut thirds = [0; 3];
    for random in randoms(1).take(3000) {
        let port = pool.take(destination(0), random).unwrap();
        thirds[(usize::from(port.number()) - 1024) * 3 / 64_512] += 1;
        assert!(pool.give(destination(0), port));
    }
    assert!(
        thirds.iter().all(|count| (800..1200).contains(count)),
        "{thirds:?}"
    );
}

#[test]
fn what_was_never_taken_cannot_be_given() {
    let mut pool = pool(&[1024..=2000], 4, 4);
    let port = pool.take(destination(0), 5).unwrap();
    let other = Port::new(if port.number() == 1500 { 1501 } else { 1500 });
    for (n, port) in [(1, port), (0, other), (0, Port::new(80))] {
        assert!(!pool.give(destination(n), port));
    }
    assert!(pool.give(destination(0), port) && !pool.give(destination(0), port));
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let new = |ranges: &[RangeInclusive<u16>]| {
        let hash_key = HashKey::from([1; 4]);
        let config = PortPoolConfig {
            ports: SourcePorts::all(ranges.to_vec()),
            destinations: 1,
            blocks: 1,
            rest: Rest::default(),
            hash_key,
        };
        PortPool::<V4>::new(config).err().map(|error| error.to_string())
    };
    #[allow(clippy::reversed_empty_ranges, reason = "the point of the test")]
    let backwards = 9..=3;
    for (ranges, says) in [
        (&[][..], "no source ports"),
        (&[0..=10], "from 1 or more"),
        (&[backwards], "runs upward"),
        (&[50..=60, 1..=50], "overlap"),
    ] {
        assert!(new(ranges).unwrap().contains(says));
    }
    assert_eq!(new(&[50..=60, 1..=49]), None);
}

/// The ranges of the property test below; the second makes up the number of ports.
fn two_ranges(ports: u16) -> [RangeInclusive<u16>; 2] {
    [100..=102, 2000..=2000 + ports - 4]
}

/// Ports in use per block of those ranges, for the blocks that have any.
fn per_block(taken: &BTreeSet<u16>) -> BTreeMap<u16, usize> {
    let mut blocks = BTreeMap::new();
    for port in taken {
        let at = if *port <= 102 { port - 100 } else { port - 2000 + 3 };
        *blocks.entry(at / BLOCK_PORTS as u16).or_default() += 1;
    }
    blocks
}

proptest! {
    // Each case is thousands of steps.
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn ports_taken_are_exactly_ports_given(
        // Runs of takes or gives toward one destination, long enough to fill and to empty blocks.
        runs in prop::collection::vec((0u16..4, any::<bool>(), 1usize..400), 1..30),
        seed: u32,
        // Less than one block, and around one and two.
        ports in prop::sample::select(vec![5u16, 448, 449, 900, 1000]),
    ) {
        let ranges = two_ranges(ports);
        let mut pool = pool(&ranges, 3, 7);
        let mut oracle: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
        let mut randoms = randoms(seed);
        let steps = runs.into_iter().flat_map(|(n, give, count)| std::iter::repeat_n((n, give), count));
        for (n, give) in steps {
            let random = randoms.next().unwrap();
            let taken = oracle.get(&n).cloned().unwrap_or_default();
            let known = taken.range(random as u16 % 3000..).next().or_else(|| taken.first()).copied();
            if give {
                if let Some(port) = known {
                    prop_assert!(pool.give(destination(n), Port::new(port)));
                    let left = oracle.entry(n).or_default();
                    left.remove(&port);
                    if left.is_empty() {
                        oracle.remove(&n);
                    }
                }
            } else {
                // Blocks are made only when those there are have no free port.
                let all_full = per_block(&taken).into_iter().all(|(number, used)| {
                    used == BLOCK_PORTS.min(usize::from(ports) - usize::from(number) * BLOCK_PORTS)
                });
                let blocks = pool.blocks().used;
                match pool.take(destination(n), random) {
                    Ok(port) => {
                        prop_assert!(ranges.iter().any(|range| range.contains(&port.number())));
                        prop_assert!(oracle.entry(n).or_default().insert(port.number()), "{} is in use", port);
                        prop_assert_eq!(pool.blocks().used, blocks + usize::from(all_full));
                    }
                    Err(PortError::PortsExhausted) => prop_assert_eq!(taken.len(), usize::from(ports)),
                    Err(PortError::DestinationsFull) => prop_assert!(taken.is_empty() && oracle.len() == 3),
                    Err(PortError::BlocksFull) => prop_assert!(all_full && blocks == 7),
                    Err(PortError::NotFree) => prop_assert!(false),
                }
            }
            prop_assert_eq!(pool.destinations().used, oracle.len());
            prop_assert_eq!(pool.blocks().used, oracle.values().map(|taken| per_block(taken).len()).sum::<usize>());
            prop_assert_eq!(pool.taken(), oracle.values().map(BTreeSet::len).sum::<usize>());
        }
        for (n, taken) in oracle {
            prop_assert_eq!(pool.taken_toward(destination(n)), taken.len());
        }
    }
}
