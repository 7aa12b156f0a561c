//! What every driver must do, a function each.

use std::sync::Barrier;

use super::end::{End, FRAME_SIZE, Limit, frame, pair, settle};
use super::{MTU, Rig};
use sluice_dataplane::nic::frame::HEADROOM;
use sluice_dataplane::nic::{BURST, DriverStats, Link};

/// The suite's rings: what every rig opens, where it can say.
const RING: usize = 64;
const ETHERNET: usize = 14;

pub(super) fn order_is_kept_and_all_is_counted(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    order_is_kept(&mut near, &mut far);
    order_is_kept(&mut far, &mut near);
    near.close();
    far.close();
}

fn order_is_kept(from: &mut End, to: &mut End) {
    let (sent, received) = (from.stats(), to.stats());
    let mut next = 0;
    // Ten rounds of half a burst: more than a small ring, never more at a time.
    for round in 0..10 {
        let packets: Vec<_> = (round * 32..(round + 1) * 32).map(|n| frame(n, 64)).collect();
        from.send(&packets);
        for bytes in to.expect(packets.len()) {
            assert_eq!(bytes, frame(next, 64), "frame {next} must be the next to arrive");
            next += 1;
        }
    }
    let now = from.stats();
    let counted = (now.tx_packets - sent.tx_packets, now.tx_bytes - sent.tx_bytes);
    assert_eq!(counted, (next as u64, 64 * next as u64));
    let now = to.stats();
    // The kernel may have sent something of its own.
    assert!(now.rx_packets - received.rx_packets >= next as u64);
    assert!(now.rx_bytes - received.rx_bytes >= 64 * next as u64);
    let errors = |stats: DriverStats| stats.rx_errors + stats.tx_errors + stats.rx_missed;
    assert_eq!((errors(from.stats()), errors(to.stats())), (0, 0));
}

pub(super) fn both_ways_at_once(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    for round in 0..50 {
        let there: Vec<_> = (0..16).map(|n| frame(round * 100 + n, 60 + n)).collect();
        let back: Vec<_> = (0..16).map(|n| frame(round * 100 + 50 + n, 90 + n)).collect();
        near.send(&there);
        far.send(&back);
        assert_eq!(far.expect(16), there);
        assert_eq!(near.expect(16), back);
    }
    near.close();
    far.close();
}

/// Every burst length there is, so that bursts lie across a ring's end in every way, several times round.
pub(super) fn rings_wrap_around(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    let mut number = 0;
    for len in (1..RING).chain((1..RING).rev()) {
        let packets: Vec<_> = (0..len).map(|n| frame(number + n, 60 + n)).collect();
        number += len;
        near.send(&packets);
        assert_eq!(far.expect(len), packets);
        far.send(&packets);
        assert_eq!(near.expect(len), packets);
    }
    assert!(number > 50 * RING);
    near.close();
    far.close();
}

pub(super) fn every_length_arrives_whole(rig: &mut dyn Rig) {
    let (longest, why) = rig.longest();
    if !why.is_empty() {
        let test = std::thread::current();
        let name = test.name().unwrap_or_default();
        eprintln!("ABSENT {name}, frames longer than {longest} bytes: {why}");
    }
    if longest > MTU + ETHERNET {
        rig.set_mtu(longest - ETHERNET);
    }
    let frame_size = (longest + HEADROOM).next_power_of_two().max(FRAME_SIZE);
    let (mut near, mut far) = (End::closed(frame_size), End::closed(frame_size));
    near.open(|memory, umem| rig.near(memory, umem));
    far.open(|memory, umem| rig.far(memory, umem));
    settle(&mut near, &mut far);
    settle(&mut far, &mut near);
    let steps = (60..=128).chain((141..longest).step_by(61));
    for len in steps.chain([MTU + ETHERNET, longest - 1, longest]) {
        near.send(&[frame(len, len)]);
        assert_eq!(far.expect(1), [frame(len, len)], "{len} bytes");
        far.send(&[frame(len, len)]);
        assert_eq!(near.expect(1), [frame(len, len)], "{len} bytes");
    }
    near.close();
    far.close();
}

pub(super) fn a_vlan_tag_arrives(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    let mut tagged = frame(1, 100);
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
    let tagged = [tagged];
    near.send(&tagged);
    assert_eq!(far.expect(1), tagged);
    far.send(&tagged);
    assert_eq!(near.expect(1), tagged);
    near.close();
    far.close();
}

pub(super) fn a_sleeper_is_woken(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    settle(&mut far, &mut near);
    for n in 0..10 {
        while !near.receive().is_empty() {}
        far.send(&[frame(n, 60)]);
        near.sleep_until_readable();
        assert_eq!(near.expect(1), [frame(n, 60)]);
    }
    near.close();
    far.close();
}

/// What was accepted at one end is received or counted as missed at the other; what was not, the caller still had.
pub(super) fn a_full_ring_is_counted(rig: &mut dyn Rig) {
    let overload = rig.overload();
    let (mut near, mut far) = pair(rig);
    for _ in 0..2 {
        overflow(&mut near, &mut far, overload);
        overflow(&mut far, &mut near, overload);
    }
    settle(&mut near, &mut far);
    order_after(&mut near, &mut far);
    near.close();
    far.close();
}

fn overflow(from: &mut End, to: &mut End, overload: usize) {
    let before = to.stats().rx_missed;
    let accepted = (0..overload).filter(|n| from.offer(&frame(*n, 60))).count() as u64;
    let missed = account(to, accepted, before, 0);
    assert!(
        missed > 0 || accepted < overload as u64,
        "{overload} frames must be more than the way holds"
    );
}

/// Receives until all that were accepted are told of, `already` having arrived; gives how many were missed.
fn account(to: &mut End, accepted: u64, missed_before: u64, already: u64) -> u64 {
    let limit = Limit::new();
    let mut received = already;
    loop {
        received += to.receive().len() as u64;
        let missed = to.stats().rx_missed - missed_before;
        if received + missed >= accepted {
            assert_eq!(received + missed, accepted);
            return missed;
        }
        limit.check(|| format!("{accepted} accepted, {received} received, {missed} missed"));
    }
}

/// Both directions work as on the first day.
fn order_after(near: &mut End, far: &mut End) {
    let packets: Vec<_> = (0..BURST / 2).map(|n| frame(n, 64)).collect();
    for _ in 0..5 {
        near.send(&packets);
        assert_eq!(far.expect(packets.len()), packets);
        far.send(&packets);
        assert_eq!(near.expect(packets.len()), packets);
    }
}

/// While a worker has no free frame, packets wait or are counted as missed, and it goes on once it has some.
pub(super) fn want_of_frames_is_counted(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    settle(&mut far, &mut near);
    while !near.receive().is_empty() {}
    let before = near.stats().rx_missed;
    let held: Vec<_> = std::iter::from_fn(|| near.memory.alloc()).collect();
    let accepted = (0..RING).filter(|n| far.offer(&frame(*n, 60))).count() as u64;
    // Three times as many calls as a driver with frames in its ring can give bursts.
    let early: usize = (0..3).map(|_| near.receive().len()).sum();
    held.into_iter().for_each(|frame| near.memory.free(frame));
    account(&mut near, accepted, before, early as u64);
    settle(&mut far, &mut near);
    order_after(&mut near, &mut far);
    near.close();
    far.close();
}

/// A thousand in all, of this rig and those beside it.
pub(super) fn a_thousand_openings_leak_nothing(rig: &mut dyn Rig) {
    let mut beside = rig.beside();
    let lanes = beside.len() + 1;
    let together = Barrier::new(lanes);
    let mut held = Vec::new();
    std::thread::scope(|scope| {
        for rig in &mut beside {
            scope.spawn(|| openings(rig.as_mut(), 1000 / lanes, &together, || ()));
        }
        openings(rig, 1000 / lanes, &together, || held.push(holdings()));
    });
    let [(descriptors, mappings, kibibytes), after] = held.try_into().expect("looked at twice");
    assert_eq!(
        (after.0, after.1),
        (descriptors, mappings),
        "descriptors and mappings"
    );
    // The allocator may keep a few pages; one leaked page a round would be 4,000.
    assert!(
        after.2 < kibibytes + 1000,
        "memory grew from {kibibytes} to {} KiB",
        after.2
    );
}

/// Opens and closes; looks after the first rounds and before the last, while all lanes stand still.
fn openings(rig: &mut dyn Rig, rounds: usize, together: &Barrier, mut look: impl FnMut()) {
    let (mut near, mut far) = (End::closed(FRAME_SIZE), End::closed(FRAME_SIZE));
    for round in 0..rounds {
        near.open(|memory, umem| rig.near(memory, umem));
        if round == 0 || !rig.far_stays() {
            far.open(|memory, umem| rig.far(memory, umem));
        }
        if round % 100 == 0 {
            settle(&mut near, &mut far);
            settle(&mut far, &mut near);
        }
        near.close();
        if round == rounds - 1 || !rig.far_stays() {
            far.close();
        }
        // Whatever the first rounds set up for ever, they have.
        if round == 10 || round == rounds - 2 {
            together.wait();
            look();
            together.wait();
        }
    }
}

/// This process's open descriptors, its mappings other than the allocator's, and its memory in KiB.
fn holdings() -> (usize, usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps
        .lines()
        .filter(|line| line.contains(" rw-s ") || line.contains('/'));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kibibytes = resident.trim().trim_end_matches(" kB").trim().parse().unwrap();
    (descriptors, mappings.count(), kibibytes)
}

/// The other side's process is killed: what is sent to nobody is refused or counted, nothing is received, and the port
/// closes with all its frames.
pub(super) fn a_peer_that_dies_harms_nobody(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    settle(&mut near, &mut far);
    far.die();
    near.expect_link(rig.link_without_peer());
    into_the_void(&mut near);
    near.close();
}

/// More than any ring holds, offered and asked for.
fn into_the_void(end: &mut End) {
    let before = end.stats();
    let packets: Vec<_> = (0..BURST).map(|n| frame(n, 60)).collect();
    let mut accepted = 0;
    for _ in 0..64 {
        accepted += end.offer_all(&packets) as u64;
        end.receive();
    }
    let now = end.stats();
    let told = now.tx_packets - before.tx_packets + now.tx_errors - before.tx_errors;
    assert!(
        told >= accepted,
        "{accepted} accepted, of which {told} are told of: {now:?}"
    );
}

pub(super) fn a_peer_that_comes_back_is_served(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    for _ in 0..3 {
        settle(&mut near, &mut far);
        far.die();
        into_the_void(&mut near);
        far = End::closed(FRAME_SIZE);
        far.open(|memory, umem| rig.far(memory, umem));
        settle(&mut near, &mut far);
        settle(&mut far, &mut near);
    }
    near.expect_link(Link::Up);
    order_after(&mut near, &mut far);
    near.close();
    far.close();
}

pub(super) fn a_removed_interface_is_gone_and_works_when_back(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    settle(&mut near, &mut far);
    rig.remove();
    near.expect_link(Link::Gone);
    into_the_void(&mut near);
    into_the_void(&mut far);
    near.close();
    far.close();
    rig.make();
    near.open(|memory, umem| rig.near(memory, umem));
    far.open(|memory, umem| rig.far(memory, umem));
    settle(&mut near, &mut far);
    settle(&mut far, &mut near);
    order_after(&mut near, &mut far);
    if rig.serves_again() {
        served_again(rig, &mut near, &mut far);
    }
    near.close();
    far.close();
}

/// The port is left open.
fn served_again(rig: &mut dyn Rig, near: &mut End, far: &mut End) {
    let mac = near.mac();
    for _ in 0..3 {
        let before = near.stats();
        rig.remove();
        near.expect_link(Link::Gone);
        into_the_void(near);
        far.close();
        rig.make();
        far.open(|memory, umem| rig.far(memory, umem));
        near.expect_link(Link::Up);
        settle(near, far);
        settle(far, near);
        order_after(near, far);
        let after = near.stats();
        assert!(
            after.rx_packets > before.rx_packets && after.tx_packets > before.tx_packets,
            "{before:?}, {after:?}"
        );
        assert_eq!(near.mac(), mac);
    }
}

pub(super) fn the_mtu_is_lowered_and_restored(rig: &mut dyn Rig) {
    const LOWER: usize = 1000;
    let (mut near, mut far) = pair(rig);
    rig.set_mtu(LOWER);
    settle(&mut near, &mut far);
    settle(&mut far, &mut near);
    // Too long now: refused, counted or lost on the wire, and no obstacle to what comes after it.
    for _ in 0..RING {
        near.offer(&frame(1, MTU + ETHERNET));
        far.offer(&frame(1, MTU + ETHERNET));
    }
    settle(&mut near, &mut far);
    settle(&mut far, &mut near);
    rig.set_mtu(MTU);
    settle(&mut near, &mut far);
    settle(&mut far, &mut near);
    let whole = [frame(2, MTU + ETHERNET)];
    near.send(&whole);
    assert_eq!(far.expect(1), whole);
    far.send(&whole);
    assert_eq!(near.expect(1), whole);
    near.close();
    far.close();
}

/// The MTU is raised under an open port, and the other side sends what does not fit the port's frames.
pub(super) fn packets_longer_than_a_frame_are_counted(rig: &mut dyn Rig) {
    const LONG: usize = 3000;
    let (mut near, mut far) = (End::closed(FRAME_SIZE), End::closed(2 * FRAME_SIZE));
    near.open(|memory, umem| rig.near(memory, umem));
    rig.set_mtu(LONG - ETHERNET);
    far.open(|memory, umem| rig.far(memory, umem));
    settle(&mut far, &mut near);
    let before = near.stats().rx_errors;
    let packets: Vec<_> = (0..16).map(|n| frame(n, LONG)).collect();
    far.send(&packets);
    settle(&mut far, &mut near);
    assert_eq!(near.stats().rx_errors - before, packets.len() as u64);
    order_after(&mut near, &mut far);
    near.close();
    far.close();
}

pub(super) fn the_link_goes_down_and_up(rig: &mut dyn Rig) {
    let (mut near, mut far) = pair(rig);
    for _ in 0..3 {
        settle(&mut near, &mut far);
        rig.set_carrier(false);
        near.expect_link(Link::Down);
        into_the_void(&mut near);
        rig.set_carrier(true);
        near.expect_link(Link::Up);
        settle(&mut near, &mut far);
        settle(&mut far, &mut near);
    }
    order_after(&mut near, &mut far);
    near.close();
    far.close();
}
