use proptest::prelude::*;

use super::*;
use crate::parse::{Parsed, parse};
use crate::wire::samples::{STATION, Sample, fix_ip_checksum};

const NOW: Tick = Tick(1000);

fn fragments(datagrams: usize, held: usize) -> Fragments<V4> {
    Fragments::new(FragmentConfig {
        datagrams,
        held,
        frame_size: 2048,
    })
    .unwrap()
}

/// `payload` bytes of one datagram from `start` on, as a frame.
fn frame(protocol: Protocol, identification: u16, start: usize, payload: usize, last: bool) -> Vec<u8> {
    let whole = Sample {
        payload: (0..4000).map(|i| i as u8).collect(),
        ..Sample::of(protocol)
    }
    .frame();
    let mut frame = whole[..34].to_vec();
    frame.extend(&whole[34 + start..34 + start + payload]);
    frame[16..18].copy_from_slice(&(20 + payload as u16).to_be_bytes());
    frame[18..20].copy_from_slice(&identification.to_be_bytes());
    let offset = (start / 8) as u16 | if last { 0 } else { 0x2000 };
    frame[20..22].copy_from_slice(&offset.to_be_bytes());
    fix_ip_checksum(&mut frame);
    frame
}

fn udp(start: usize, payload: usize, last: bool) -> Vec<u8> {
    frame(Protocol::UDP, 7, start, payload, last)
}

fn pass(fragments: &mut Fragments<V4>, frame: &[u8]) -> Passage {
    match parse(frame, STATION) {
        Parsed::Ipv4(packet) => fragments.pass(&packet, frame, NicPortIndex(3), NOW),
        other => panic!("{other:?}"),
    }
}

fn transport(length: u16) -> Transport {
    Transport {
        protocol: Protocol::UDP,
        src_port: Port::new(40_000),
        dst_port: Port::new(53),
        length,
    }
}

fn released(fragments: &mut Fragments<V4>) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        fragments.release(|port, bytes, transport| {
            assert_eq!((port, transport.dst_port), (NicPortIndex(3), Port::new(53)));
            bytes.to_vec()
        })
    })
    .collect()
}

#[test]
fn frg_1_later_fragments_borrow_the_ports_of_the_first() {
    let mut fragments = fragments(4, 4);
    assert_eq!(
        pass(&mut fragments, &udp(0, 800, false)),
        Passage::Known(transport(0))
    );
    assert_eq!(
        pass(&mut fragments, &udp(800, 800, false)),
        Passage::Known(transport(0))
    );
    assert_eq!(
        pass(&mut fragments, &udp(1600, 5, true)),
        Passage::Known(transport(1605))
    );
    assert_eq!(fragments.usage(), (0, 4), "all of it has passed");
}

#[test]
fn what_comes_before_the_first_waits_for_it_and_goes_after_it() {
    let mut fragments = fragments(4, 4);
    let (middle, end) = (udp(800, 800, false), udp(1600, 5, true));
    assert_eq!(pass(&mut fragments, &end), Passage::Held);
    assert_eq!(pass(&mut fragments, &middle), Passage::Held);
    assert_eq!(released(&mut fragments).len(), 0);
    assert_eq!(
        pass(&mut fragments, &udp(0, 800, false)),
        Passage::Known(transport(1605))
    );
    assert_eq!(released(&mut fragments), [end, middle]);
    assert_eq!(
        (fragments.usage(), fragments.expire(NOW.plus_seconds(40))),
        ((0, 4), 0)
    );
}

#[test]
fn datagrams_are_told_apart_by_their_number_and_protocol() {
    let mut fragments = fragments(4, 4);
    pass(&mut fragments, &udp(0, 800, false));
    assert_eq!(
        pass(&mut fragments, &frame(Protocol::UDP, 8, 800, 8, true)),
        Passage::Held
    );
    assert_eq!(
        pass(&mut fragments, &frame(Protocol::TCP, 7, 800, 8, true)),
        Passage::Held
    );
}

#[test]
fn a_duplicate_passes_and_does_not_complete_a_datagram() {
    let mut fragments = fragments(4, 4);
    for frame in [
        udp(0, 800, false),
        udp(0, 800, false),
        udp(1600, 5, true),
        udp(1600, 5, true),
    ] {
        assert!(matches!(pass(&mut fragments, &frame), Passage::Known(_)));
    }
    assert_eq!(fragments.usage().0, 1, "the middle is missing");
}

#[test]
fn overlapping_fragments_break_their_datagram() {
    // RFC 5722 §4: everything that is to come is dropped, too.
    let bad = Passage::Drop(DropReason::BadFragment);
    for (start, payload, last) in [(792, 16, false), (8, 800, false), (8, 400, true)] {
        let mut fragments = fragments(4, 4);
        pass(&mut fragments, &udp(0, 800, false));
        assert_eq!(pass(&mut fragments, &udp(start, payload, last)), bad, "{start}");
        assert_eq!(pass(&mut fragments, &udp(1600, 5, true)), bad);
        assert_eq!(pass(&mut fragments, &udp(0, 800, false)), bad);
    }
}

#[test]
fn a_first_fragment_without_its_whole_transport_header_is_dropped() {
    // RFC 1858 §3: nobody but a prober hides ports or flags.
    let mut fragments = fragments(4, 4);
    let tiny = frame(Protocol::TCP, 7, 0, 16, false);
    assert_eq!(
        pass(&mut fragments, &tiny),
        Passage::Drop(DropReason::BadFragment)
    );
    assert_eq!(fragments.usage().0, 0);
}

#[test]
fn only_the_last_fragment_may_end_anywhere() {
    let mut fragments = fragments(4, 4);
    assert_eq!(
        pass(&mut fragments, &udp(800, 12, false)),
        Passage::Drop(DropReason::BadFragment)
    );
    assert_eq!(
        pass(&mut fragments, &udp(800, 0, true)),
        Passage::Drop(DropReason::BadFragment)
    );
}

#[test]
fn a_number_that_comes_round_begins_another_datagram() {
    let mut fragments = fragments(4, 4);
    pass(&mut fragments, &udp(0, 800, false));
    let mut other = udp(0, 800, false);
    other[34..36].copy_from_slice(&50_000u16.to_be_bytes());
    assert!(matches!(pass(&mut fragments, &other), Passage::Known(t) if t.src_port == Port::new(50_000)));
    assert!(
        matches!(pass(&mut fragments, &udp(800, 8, true)), Passage::Known(t) if t.src_port == Port::new(50_000))
    );
}

#[test]
fn a_datagram_without_its_first_is_forgotten_after_its_time_and_counted() {
    let mut fragments = fragments(4, 4);
    pass(&mut fragments, &udp(800, 8, true));
    assert_eq!(fragments.expire(NOW.plus_seconds(29)), 0);
    assert_eq!(fragments.expire(NOW.plus_seconds(30)), 1);
    assert_eq!(fragments.usage().0, 0);
    assert_eq!(
        pass(&mut fragments, &udp(0, 800, false)),
        Passage::Known(transport(0))
    );
    assert_eq!(released(&mut fragments).len(), 0);
}

#[test]
fn memory_is_bounded_and_the_oldest_datagram_makes_room() {
    let mut fragments = fragments(2, 3);
    for identification in 0..50 {
        let passage = pass(
            &mut fragments,
            &frame(Protocol::UDP, identification, 800, 8, true),
        );
        assert_eq!(passage, Passage::Held, "{identification}");
    }
    assert_eq!((fragments.usage(), fragments.expire(NOW)), ((2, 2), 48));
    for start in [8, 16, 24] {
        pass(&mut fragments, &frame(Protocol::UDP, 60, start, 8, false));
    }
    let full = pass(&mut fragments, &frame(Protocol::UDP, 60, 32, 8, false));
    assert_eq!(full, Passage::Drop(DropReason::FragmentsFull));
}

#[test]
fn sctp_waits_for_its_last_fragment_and_goes_first_to_last() {
    let mut fragments = fragments(4, 4);
    // What etherparse calls an unknown protocol has ports like any other's: the payload's first bytes.
    let part = |start, payload, last| frame(Protocol::SCTP, 7, start, payload, last);
    let (first, middle, end) = (part(0, 800, false), part(800, 800, false), part(1600, 4, true));
    assert_eq!(pass(&mut fragments, &middle), Passage::Held);
    assert_eq!(pass(&mut fragments, &first), Passage::Held);
    assert_eq!(pass(&mut fragments, &end), Passage::Held);
    let mut order = Vec::new();
    while fragments
        .release(|_, bytes, transport| order.push((bytes.to_vec(), transport.length)))
        .is_some()
    {}
    assert_eq!(order, [(first, 1604), (middle, 1604), (end, 1604)]);
    assert_eq!(fragments.usage().0, 0);
}

proptest! {
    /// In whatever order and however often they come: every fragment passes exactly as often as it came, all with the
    /// ports, and nothing stays behind.
    #[test]
    fn frg_1_any_order_of_any_cut_passes_whole(
        cuts in proptest::collection::btree_set(1usize..150, 0..12), order in any::<proptest::sample::Index>(), seed in any::<u64>(),
    ) {
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut * 8).collect();
        ends.push(1205);
        let mut start = 0;
        let mut frames = Vec::new();
        for end in ends {
            frames.push(udp(start, end - start, end == 1205));
            start = end;
        }
        let whole = frames.len() == 1;
        let mut seed = seed | 1;
        for i in (1..frames.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            frames.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let again = frames[order.index(frames.len())].clone();
        let mut fragments = fragments(2, 64);
        let mut passed = Vec::new();
        for frame in frames.iter().filter(|_| !whole) {
            match pass(&mut fragments, frame) {
                Passage::Known(transport) => {
                    prop_assert_eq!(transport.dst_port, Port::new(53));
                    passed.push(frame.clone());
                }
                Passage::Held => {}
                Passage::Drop(reason) => prop_assert!(false, "{:?}", reason),
            }
            passed.extend(released(&mut fragments));
        }
        prop_assert_eq!(fragments.usage().0, 0);
        if !whole {
            passed.sort();
            frames.sort();
            prop_assert_eq!(passed, frames);
            let late = pass(&mut fragments, &again);
            prop_assert!(!matches!(late, Passage::Drop(_)));
        }
    }
}

#[test]
fn what_waits_in_the_place_of_a_forgotten_datagram_goes_on_waiting() {
    let mut fragments = fragments(1, 1);
    let (first, last) = (udp(0, 800, false), udp(1600, 5, true));
    assert_eq!(pass(&mut fragments, &last), Passage::Held);
    assert_eq!(pass(&mut fragments, &first), Passage::Known(transport(1605)));
    // Before what was held is asked for, another datagram takes its place, and it the other's.
    let other = frame(Protocol::UDP, 8, 0, 800, false);
    assert_eq!(pass(&mut fragments, &other), Passage::Known(transport(0)));
    assert_eq!(pass(&mut fragments, &last), Passage::Held);
    assert_eq!(released(&mut fragments).len(), 0);
    assert_eq!(pass(&mut fragments, &first), Passage::Known(transport(1605)));
    assert_eq!(released(&mut fragments), [last], "neither lost nor its memory");
}
