use std::net::Ipv6Addr;
use std::sync::atomic::AtomicBool;

use super::*;

const PORT: NicPortIndex = NicPortIndex(0);

fn mac(last: u8) -> Reachability {
    Reachability::Reachable(Mac([2, 0, 0, 0, 0, last]))
}

#[test]
fn a_recent_neighbour_is_known_while_it_answers_and_nobody_else_is_taken_for_it() {
    let (hops, mut recent) = (NextHops::new(2_000), Recent::default());
    let address = |n: u32| n.to_be_bytes();
    let index = hops.insert(PORT, address(1)).unwrap();
    recent.put(address(1), index);
    assert_eq!(recent.get(&hops, address(1)), None, "it has not answered yet");
    hops.set(index, mac(1));
    assert_eq!(recent.get(&hops, address(1)), Some(index));
    // Several of these share its place.
    assert!((2..2_000).all(|n| recent.get(&hops, address(n)).is_none()));
    for n in 2..1_000 {
        let other = hops.insert(PORT, address(n)).unwrap();
        hops.set(other, mac(2));
        recent.put(address(n), other);
        assert_eq!(recent.get(&hops, address(n)), Some(other));
    }
    recent.clear();
    assert_eq!(recent.get(&hops, address(999)), None, "all is forgotten");
    recent.put(address(1), index);
    hops.set(index, Reachability::Unreachable);
    assert_eq!(recent.get(&hops, address(1)), None);
    hops.set(index, mac(1));
    hops.forget(index);
    let again = hops.insert(PORT, address(1)).unwrap();
    hops.set(again, mac(3));
    assert_ne!(
        recent.get(&hops, address(1)),
        Some(again),
        "the index was another generation's"
    );
}

#[test]
fn a_neighbour_of_either_family_keeps_its_index_while_its_mac_changes() {
    let hops = NextHops::new(100);
    let port = NicPortIndex(1);
    for address in ["10.0.0.7", "::a00:7", "fd00:1:2:3:4:5:6:7"].map(|a| a.parse::<IpAddr>().unwrap()) {
        let index = hops.insert(port, address).unwrap();
        assert_eq!(hops.get(index), (port, Reachability::Incomplete));
        for last in [1, 2] {
            hops.set(index, mac(last));
            assert_eq!(hops.look_up(port, address), Some((index, mac(last))));
            assert_eq!(hops.get(index), (port, mac(last)));
        }
        hops.set(index, Reachability::Unreachable);
        assert_eq!(hops.get(index), (port, Reachability::Unreachable));
        assert_eq!(hops.insert(port, address), Some(index));
    }
    assert_eq!(hops.used(), 3);
}

#[test]
fn a_forgotten_neighbours_slot_serves_another_and_hides_nobody() {
    let hops = NextHops::new(100);
    let all: Vec<_> = (0..=u8::MAX)
        .map_while(|n| hops.insert(PORT, [10, 0, 0, n]))
        .collect();
    assert_eq!(hops.used(), hops.limit());
    hops.forget(all[7]);
    assert_eq!(hops.look_up(PORT, [10, 0, 0, 7]), None);
    for (n, index) in all.iter().enumerate().filter(|(n, _)| *n != 7) {
        let found = hops.look_up(PORT, [10, 0, 0, n as u8]);
        assert_eq!(found, Some((*index, Reachability::Incomplete)));
    }
    assert!(hops.insert(PORT, [10, 0, 1, 7]).is_some());
}

#[test]
fn the_index_of_a_forgotten_neighbour_never_finds_its_slots_next_one() {
    let hops = NextHops::new(1);
    let mut old = Vec::new();
    for generation in 0..30 {
        let index = hops.insert(PORT, [10, 0, 0, 7]).unwrap();
        hops.set(index, mac(generation));
        if generation % 2 == 0 {
            hops.set(index, Reachability::Unreachable);
        }
        assert!(!old.contains(&index));
        hops.forget(index);
        assert_eq!(hops.get(index).1, Reachability::Forgotten);
        old.push(index);
    }
    let index = hops.insert(PORT, [10, 0, 0, 7]).unwrap();
    hops.set(index, mac(99));
    assert!(old.iter().all(|&old| hops.get(old).1 == Reachability::Forgotten));
    assert_eq!(hops.get(index).1, mac(99));
    hops.forget(index);
    let first = hops.insert(PORT, [10, 0, 0, 7]);
    assert_eq!(first, Some(old[0]), "after 31 hours at the earliest");
    assert_eq!(hops.get(NextHopIndex::UNKNOWN).1, Reachability::Forgotten);
}

#[test]
fn a_neighbour_that_never_answered_costs_its_slot_no_generation() {
    let hops = NextHops::new(1);
    let first = hops.insert(PORT, [10, 0, 0, 7]).unwrap();
    hops.set(first, Reachability::Unreachable);
    hops.forget(first);
    assert_eq!(hops.insert(PORT, [10, 0, 0, 7]), Some(first));
}

#[test]
fn the_same_address_on_another_port_is_another_neighbour() {
    let hops = NextHops::new(100);
    let one = hops.insert(PORT, [10, 0, 0, 7]);
    assert_eq!(hops.find(NicPortIndex(1), [10, 0, 0, 7]), None);
    assert_ne!(hops.insert(NicPortIndex(1), [10, 0, 0, 7]), one);
}

#[test]
fn a_full_table_refuses_new_neighbours_and_keeps_the_old() {
    let hops = NextHops::new(100);
    let known: Vec<_> = (0..=u16::MAX)
        .map(|n| [10, 0, (n >> 8) as u8, n as u8])
        .map_while(|a| hops.insert(PORT, a))
        .collect();
    assert!(known.len() >= 100 && known.len() <= hops.limit());
    assert_eq!(hops.insert(PORT, [192, 0, 2, 1]), None);
    assert_eq!(hops.find(PORT, [10, 0, 0, 0]), Some(known[0]));
}

#[test]
fn who_is_used_is_known_to_the_steward_once() {
    let hops = NextHops::new(1);
    let index = hops.insert(PORT, [10, 0, 0, 7]).unwrap();
    assert!(!hops.take_used(index));
    hops.get(index);
    hops.set(index, mac(1));
    assert!(hops.take_used(index) && !hops.take_used(index));
}

#[test]
fn a_reader_never_sees_one_neighbours_state_under_anothers_address() {
    // Two neighbours take turns in one slot: their addresses hash alike. Both words and the MAC say the same number.
    let hops = NextHops::new(1);
    let address = |n: u8| Ipv6Addr::from_bits(u128::from(n) << 64 | u128::from(n) << 32);
    assert_eq!(hops.insert(PORT, address(1)).map(|i| hops.forget(i)), Some(()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200_000u32 {
                let n = (round % 2) as u8 + 1;
                let index = hops.insert(PORT, address(n)).unwrap();
                hops.set(index, mac(n));
                hops.forget(index);
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            for n in [1, 2] {
                let seen = hops.look_up(PORT, address(n)).map(|(_, state)| state);
                let allowed = [None, Some(Reachability::Incomplete), Some(mac(n))];
                assert!(allowed.contains(&seen), "{n}: {seen:?}");
            }
        }
    });
}
