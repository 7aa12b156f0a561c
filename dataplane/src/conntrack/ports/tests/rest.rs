use std::collections::VecDeque;

use super::*;
use crate::addr::V6;
use crate::tick::Period;

fn resting_pool<A: Address>(range: RangeInclusive<u16>, blocks: usize, ports: usize) -> PortPool<A> {
    PortPool::new(PortPoolConfig {
        ports: SourcePorts::all(vec![range]),
        destinations: 3,
        blocks,
        rest: Rest {
            ports,
            ..Rest::default()
        },
        hash_key: HashKey::from([11, 13, 17, 19]),
    })
    .unwrap()
}

fn v6(n: u16) -> Destination<V6> {
    let backend = format!("[fd00::{}]:8080", n + 1).parse().unwrap();
    Destination::of_reply(&FlowKey::new(
        Protocol::UDP,
        backend,
        "[fd01::1]:1".parse().unwrap(),
    ))
}

#[test]
fn a_port_given_back_rests_until_its_time_has_come() {
    let mut pool = resting_pool(1..=4, 3, 10);
    let start = Tick(u32::MAX - 5);
    pool.expire(start, 10);
    let port = pool.take(destination(0), 0).unwrap();
    assert!(pool.give(destination(0), port) && !pool.give(destination(0), port));
    assert_eq!((pool.taken(), pool.taken_toward(destination(0))), (0, 0));
    for _ in 0..3 {
        assert_ne!(pool.take(destination(0), 0), Ok(port));
    }
    pool.expire(Tick(start.plus_seconds(60).0.wrapping_sub(1)), 10);
    assert_eq!(pool.destinations().used, 1);
    pool.expire(start.plus_seconds(60), 10);
    assert_eq!((pool.take(destination(0), 0), pool.reused_early()), (Ok(port), 0));
    assert_eq!(pool.taken(), 4);
}

#[test]
fn without_another_port_the_one_that_rested_longest_goes_first_and_is_counted() {
    let mut pool = resting_pool(1..=3, 3, 10);
    let ports: Vec<_> = (0..3).map(|_| pool.take(destination(0), 9).unwrap()).collect();
    for (second, &port) in (0..).zip(&ports) {
        pool.expire(Tick(0).plus_seconds(second), 10);
        assert!(pool.give(destination(0), port));
    }
    let again: Vec<_> = (0..3).map(|_| pool.take(destination(0), 7).unwrap()).collect();
    assert_eq!((again, pool.reused_early()), (ports, 3));
    assert_eq!(pool.take(destination(0), 7), Err(PortError::PortsExhausted));
}

#[test]
fn room_taken_by_ports_that_only_rest_is_no_reason_to_refuse() {
    // One block in all: another destination's resting port must not keep it.
    let mut pool = resting_pool(1..=400, 1, 10);
    let port = pool.take(destination(0), 0).unwrap();
    assert_eq!(pool.take(destination(1), 0), Err(PortError::BlocksFull));
    assert!(pool.give(destination(0), port));
    assert!(pool.take(destination(1), 0).is_ok());
    assert_eq!(
        (pool.reused_early(), pool.destinations().used, pool.taken()),
        (1, 1, 1)
    );
}

#[test]
fn more_ports_than_there_is_room_for_rest_less_and_the_oldest_first() {
    let mut pool = resting_pool(1..=4, 3, 2);
    let ports: Vec<_> = (0..3).map(|_| pool.take(destination(0), 9).unwrap()).collect();
    assert!(ports.iter().all(|&port| pool.give(destination(0), port)));
    assert_eq!(pool.reused_early(), 1);
    let free: BTreeSet<_> = (0..2).map(|_| pool.take(destination(0), 9).unwrap()).collect();
    assert!(free.contains(&ports[0]) && pool.reused_early() == 1);
}

#[test]
fn a_port_that_no_packet_left_with_is_free_at_once() {
    let mut pool = resting_pool(7..=7, 1, 10);
    let port = pool.take(destination(0), 0).unwrap();
    assert!(pool.cancel(destination(0), port) && !pool.cancel(destination(0), port));
    assert_eq!((pool.take(destination(0), 0), pool.reused_early()), (Ok(port), 0));
}

#[test]
fn a_reserved_port_is_taken_once_and_given_back_like_any() {
    let mut pool = resting_pool(1024..=2000, 3, 10);
    assert_eq!(pool.reserve(v6(0), Port::new(1500)), Ok(()));
    for port in [1500, 80] {
        assert_eq!(pool.reserve(v6(0), Port::new(port)), Err(PortError::NotFree));
    }
    assert_eq!(
        (pool.taken(), pool.taken_toward(v6(0)), pool.taken_toward(v6(1))),
        (1, 1, 0)
    );
    let others: BTreeSet<_> = (0..976)
        .map(|n| pool.take(v6(0), n * 77).unwrap().number())
        .collect();
    assert!(others.len() == 976 && !others.contains(&1500));
    assert!(pool.give(v6(0), Port::new(1500)));
    assert_eq!(pool.take(v6(0), 3), Ok(Port::new(1500)), "the only one");
}

#[test]
fn every_port_there_is_can_be_in_use_toward_one_destination_at_one_time() {
    // TP-8.
    for range in [1..=65_535, 1024..=65_535] {
        let mut pool = resting_pool(range.clone(), 400, 1000);
        let mut randoms = randoms(5);
        for _ in range.clone() {
            assert!(pool.take(v6(0), randoms.next().unwrap()).is_ok());
        }
        assert_eq!(pool.taken_toward(v6(0)), range.len());
        assert_eq!(pool.take(v6(0), 1), Err(PortError::PortsExhausted));
        assert!(pool.take(v6(1), 1).is_ok(), "others are not concerned");
        assert!(pool.give(v6(0), Port::new(40_000)));
        assert_eq!(
            pool.take(v6(0), 1),
            Ok(Port::new(40_000)),
            "and it recovers by itself"
        );
    }
}

proptest! {
    #[test]
    fn no_port_at_rest_is_taken_while_its_destination_has_another(
        steps in prop::collection::vec((0u16..2, 0u8..5, any::<u32>()), 1..400),
    ) {
        const PORTS: usize = 30;
        let mut pool = resting_pool::<V6>(1..=PORTS as u16, 3, 400);
        let mut in_use = [BTreeSet::new(), BTreeSet::new()];
        let mut resting: VecDeque<(u16, u16, Tick)> = VecDeque::new();
        let (mut now, mut early) = (Tick(0), 0);
        for (n, what, random) in steps {
            match what {
                0 | 1 => {
                    let rests = |port: &u16| resting.iter().position(|&(m, p, _)| (m, p) == (n, *port));
                    match pool.take(v6(n), random) {
                        Ok(port) => {
                            let port = port.number();
                            if let Some(at) = rests(&port) {
                                let oldest = resting.iter().position(|one| one.0 == n);
                                prop_assert_eq!(oldest, Some(at));
                                let at_rest = resting.iter().filter(|one| one.0 == n).count();
                                prop_assert_eq!(in_use[usize::from(n)].len() + at_rest, PORTS);
                                resting.remove(at);
                                early += 1;
                            }
                            prop_assert!(in_use[usize::from(n)].insert(port));
                        }
                        Err(error) => {
                            prop_assert_eq!(error, PortError::PortsExhausted);
                            prop_assert_eq!(in_use[usize::from(n)].len(), PORTS);
                        }
                    }
                }
                2 | 3 => {
                    if let Some(port) = in_use[usize::from(n)].pop_first() {
                        prop_assert!(pool.give(v6(n), Port::new(port)));
                        resting.push_back((n, port, now));
                    }
                }
                _ => {
                    now = now.plus_seconds(random % 40);
                    pool.expire(now, 100);
                    resting.retain(|one| now.since(one.2) < Period::from_seconds(60).ticks());
                }
            }
            prop_assert_eq!(pool.taken(), in_use[0].len() + in_use[1].len());
            for n in 0..2 {
                prop_assert_eq!(pool.taken_toward(v6(n)), in_use[usize::from(n)].len());
            }
            prop_assert_eq!(pool.reused_early(), early);
        }
    }
}
