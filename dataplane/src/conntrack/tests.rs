use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::*;
use crate::addr::{Protocol, V4, V6};
use crate::index::{BackendIndex, NextHopIndex, ServicePortIndex};
use crate::tick::TICKS_PER_SECOND;
use crate::wire::sctp::chunks;

/// As a worker finds a burst's flows: in two waves, the keys that were not guessed right afterwards.
fn find_burst<A: Address>(flows: &mut Flows<A>, keys: &[FlowKey<A>]) -> Vec<Option<(FlowIndex, Direction)>> {
    let hashes: Vec<_> = keys.iter().map(|key| flows.ask(key)).collect();
    let guesses: Vec<_> = hashes.iter().map(|&hash| flows.guess(hash)).collect();
    let found = |(guess, key): (Guess, &FlowKey<A>)| {
        let found = flows.find_guessed(guess, key);
        if let Some((flow, direction)) = flows.confirm(guess, key) {
            assert_eq!(
                (flow.key(direction), found.map(|(_, d)| d)),
                (*key, Some(direction))
            );
        }
        found
    };
    guesses.into_iter().zip(keys).map(found).collect()
}

/// Runs what is generic over the family for both.
macro_rules! both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name::<$crate::addr::V4>() })* }
        mod v6 { $(#[test] fn $name() { super::$name::<$crate::addr::V6>() })* }
    };
}

pub(super) use both_families;

/// Addresses by number, so that one test serves both families.
pub(super) trait Numbered: Address {
    /// The `n`th address of network `a`, and a port.
    fn nth(a: u8, n: u32, port: u16) -> Self::Socket;
}

impl Numbered for V4 {
    fn nth(a: u8, n: u32, port: u16) -> SocketAddrV4 {
        let [_, b, c, d] = n.to_be_bytes();
        SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port)
    }
}

impl Numbered for V6 {
    fn nth(a: u8, n: u32, port: u16) -> SocketAddrV6 {
        let [high, low] = [(n >> 16) as u16, n as u16];
        let address = Ipv6Addr::new(0xfd00, a.into(), 0, 0, 0, 0, high, low);
        SocketAddrV6::new(address, port, 0, 0)
    }
}

const HASH_KEY: [u64; 4] = [
    0x1234_5678_9abc_def1,
    0xfedc_ba98,
    0x0f1e_2d3c_4b5a_6978,
    0x9e37_79b9_7f4a_7c15,
];

pub(super) fn config(capacity: usize) -> FlowConfig {
    FlowConfig {
        capacity,
        timeouts: Timeouts::default(),
        admission: Admission::default(),
        hash_key: HashKey::from(HASH_KEY),
    }
}

fn flows<A: Address>(capacity: usize) -> Flows<A> {
    Flows::new(config(capacity)).unwrap()
}

/// What a first packet of `protocol` says.
fn opening(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::SCTP => chunks::INIT,
        _ => tcp::SYN,
    }
}

/// The `n`th TCP flow, as one that is never evicted.
fn established<A: Numbered>(n: u32) -> NewFlow<A> {
    NewFlow {
        state: State::Established,
        ..new(Protocol::TCP, n)
    }
}

/// Opens a flow for which none has to go.
fn open<A: Address>(flows: &mut Flows<A>, new: &NewFlow<A>, tick: Tick) -> Result<FlowIndex, OpenError> {
    flows.open(new, tick, &mut |gone| panic!("{gone:?} was evicted"))
}

/// The `n`th client's flow through a frontend's port 80.
pub(super) fn new<A: Numbered>(protocol: Protocol, n: u32) -> NewFlow<A> {
    let client = A::nth(100, n >> 8, 1024 + (n & 255) as u16);
    let backend = A::nth(10, n % 50, 8080);
    NewFlow {
        original: FlowKey::new(protocol, client, A::nth(11, 1, 80)),
        reply: FlowKey::new(protocol, backend, client),
        state: State::opening(protocol, opening(protocol)).unwrap(),
        backend: BackendIndex(n % 50),
        backend_generation: 3,
        service_port: ServicePortIndex(1),
        next_hops: [NextHopIndex(1), NextHopIndex(2)],
        l3_delta: 0x1234,
        l4_delta: 0xfedc,
        flags: FlowFlags::default(),
    }
}

both_families! {
    a_flow_is_found_by_both_tuples_and_neither_after_it_closed
    a_rewrite_leads_to_the_other_side_and_its_deltas_cancel
    no_two_flows_share_a_tuple
    a_full_table_refuses_new_flows_keeps_the_old_and_recovers
    a_new_syn_on_a_finished_connection_reopens_and_changes_nothing
    a_flow_expires_after_its_states_timeout_and_not_before
    a_sweep_looks_at_no_more_than_its_budget_and_reaches_every_flow_in_time
    a_sweep_spares_the_flows_in_use_over_the_clocks_wrap
    each_direction_has_the_next_hop_it_was_opened_with
}

pub(super) fn seconds(seconds: u32) -> Tick {
    Tick(1000).plus_seconds(seconds)
}

fn a_flow_is_found_by_both_tuples_and_neither_after_it_closed<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let n = new::<A>(Protocol::TCP, 1);
    let index = open(&mut flows, &n, Tick(5)).unwrap();
    assert_eq!(flows.find(&n.original), Some((index, Direction::Original)));
    assert_eq!(flows.find(&n.reply), Some((index, Direction::Reply)));
    assert_eq!(flows.find(&n.original.reversed()), None);
    assert_eq!(
        flows.find(&FlowKey {
            protocol: Protocol::UDP,
            ..n.original
        }),
        None
    );
    let closed = flows.close(index).unwrap();
    assert_eq!(Direction::BOTH.map(|d| closed.key(d)), [n.original, n.reply]);
    assert_eq!((flows.find(&n.original), flows.find(&n.reply)), (None, None));
    assert!(flows.close(index).is_none(), "closed twice");
}

fn a_rewrite_leads_to_the_other_side_and_its_deltas_cancel<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let n = new::<A>(Protocol::TCP, 1);
    let index = open(&mut flows, &n, Tick(5)).unwrap();
    let there = flows.rewrite(index, Direction::Original);
    let back = flows.rewrite(index, Direction::Reply);
    assert_eq!(
        there,
        Rewrite {
            to: n.reply.reversed(),
            l3_delta: 0x1234,
            l4_delta: 0xfedc
        }
    );
    assert_eq!(back.to, n.original.reversed());
    // A number and its negation add to ones-complement zero.
    assert_eq!(
        (there.l3_delta + back.l3_delta, there.l4_delta + back.l4_delta),
        (0xffff, 0xffff)
    );
}

fn no_two_flows_share_a_tuple<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let first = new::<A>(Protocol::UDP, 1);
    open(&mut flows, &first, Tick(5)).unwrap();
    let same_original = NewFlow {
        original: first.original,
        ..new::<A>(Protocol::UDP, 2)
    };
    let same_reply = NewFlow {
        reply: first.reply,
        ..new::<A>(Protocol::UDP, 2)
    };
    let crossed = NewFlow {
        reply: first.original,
        ..new::<A>(Protocol::UDP, 2)
    };
    let own = NewFlow {
        reply: new::<A>(Protocol::UDP, 2).original,
        ..new::<A>(Protocol::UDP, 2)
    };
    assert_eq!(
        open(&mut flows, &same_original, Tick(5)),
        Err(OpenError::OriginalTaken)
    );
    assert_eq!(open(&mut flows, &same_reply, Tick(5)), Err(OpenError::ReplyTaken));
    assert_eq!(open(&mut flows, &crossed, Tick(5)), Err(OpenError::ReplyTaken));
    assert_eq!(open(&mut flows, &own, Tick(5)), Err(OpenError::ReplyTaken));
    assert_eq!(flows.usage().used, 1);
    assert_eq!(flows.find(&new::<A>(Protocol::UDP, 2).original), None);
}

fn a_full_table_refuses_new_flows_keeps_the_old_and_recovers<A: Numbered>() {
    const CAPACITY: u32 = 20_000;
    let mut flows = flows::<A>(CAPACITY as usize);
    let opened: Vec<_> = (0..CAPACITY)
        .map(|n| open(&mut flows, &established::<A>(n), Tick(5)).unwrap())
        .collect();
    assert_eq!(
        open(&mut flows, &established::<A>(CAPACITY), Tick(5)),
        Err(OpenError::Full)
    );
    for (n, index) in (0..CAPACITY).zip(&opened) {
        assert_eq!(
            flows.find(&new::<A>(Protocol::TCP, n).reply),
            Some((*index, Direction::Reply))
        );
    }
    // One key in 45 lives in its second bucket now: bursts must find those, too.
    let keys: Vec<_> = (0..CAPACITY)
        .map(|n| new::<A>(Protocol::TCP, n).original)
        .collect();
    let found = find_burst(&mut flows, &keys);
    assert!(
        found
            .iter()
            .zip(&opened)
            .all(|(found, &index)| *found == Some((index, Direction::Original)))
    );
    flows.close(opened[77]).unwrap();
    open(&mut flows, &established::<A>(CAPACITY), Tick(5)).unwrap();
    let limit = CAPACITY as usize;
    assert_eq!(
        flows.usage(),
        Usage {
            used: limit,
            limit,
            high_water: limit
        }
    );
}

#[test]
fn a_tuple_without_room_in_its_buckets_leaves_nothing_behind_and_fits_once_there_is_room() {
    // A secret that makes the product zero for one pair of ports: all these replies share both buckets.
    let reply = |n| FlowKey::<V4>::new(Protocol::UDP, V4::nth(10, n, 53), V4::nth(100, 7, 4000));
    let [_, ports]: [u64; 2] = bytemuck::cast(reply(0));
    let hash_key = HashKey::from([0x0123_4567_89ab_cdef, ports, 0x9e37_79b9_7f4a_7c15, 1]);
    let timeouts = Timeouts::default();
    let mut flows = Flows::<V4>::new(FlowConfig {
        capacity: 1000,
        timeouts,
        admission: Admission::default(),
        hash_key,
    })
    .unwrap();
    let new = |n| NewFlow {
        reply: reply(n),
        ..new(Protocol::UDP, n)
    };

    let refused = (0..)
        .find(|&n| open(&mut flows, &new(n), seconds(0)).is_err())
        .unwrap();
    assert!(
        (15..=20).contains(&refused),
        "two buckets of ten, some places taken by originals: {refused}"
    );
    for _ in 0..1000 {
        assert_eq!(
            open(&mut flows, &new(refused), seconds(0)),
            Err(OpenError::BucketsFull)
        );
    }
    assert_eq!(
        (flows.usage().used, flows.iter().count()),
        (refused as usize, refused as usize)
    );
    let (index, _) = flows.find(&new(3).reply).unwrap();
    flows.close(index).unwrap();
    open(&mut flows, &new(refused), seconds(0)).unwrap();
    for n in (0..=refused).filter(|&n| n != 3) {
        let found =
            [new(n).original, new(n).reply].map(|key| flows.find(&key).map(|(_, direction)| direction));
        assert_eq!(found, Direction::BOTH.map(Some));
    }
}

#[test]
fn a_flow_costs_at_most_128_bytes_when_the_table_is_three_quarters_full() {
    let capacity = 1 << 20;
    assert!(flows::<V4>(capacity).bytes() <= 128 * (capacity * 3 / 4));
}

#[test]
fn a_capacity_that_makes_no_sense_is_refused() {
    for capacity in [0, MAX_CAPACITY + 1] {
        let config = FlowConfig {
            capacity,
            ..config(1)
        };
        assert_eq!(
            Flows::<V4>::new(config).err().unwrap().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}

fn a_new_syn_on_a_finished_connection_reopens_and_changes_nothing<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let index = open(&mut flows, &new::<A>(Protocol::TCP, 1), seconds(0)).unwrap();
    assert_eq!(
        flows.touch(index, Direction::Reply, tcp::RST | tcp::ACK, seconds(1)),
        Touched::Continues
    );
    assert_eq!(
        flows.touch(index, Direction::Original, tcp::SYN, seconds(2)),
        Touched::Reopens
    );
    assert_eq!(
        (flows.flow(index).state(), flows.flow(index).last_seen()),
        (State::Close, seconds(1))
    );
}

fn a_flow_expires_after_its_states_timeout_and_not_before<A: Numbered>() {
    // Protocol, packets after the first (second, direction, flags), seconds from the last packet to the end.
    type Life<'a> = (Protocol, &'a [(u32, Direction, u8)], u32);
    use Direction::{Original, Reply};
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    let handshake: &[_] = &[(0, Reply, SYN_ACK), (0, Original, tcp::ACK)];
    let association: &[_] = &[
        (0, Reply, chunks::INIT_ACK),
        (0, Original, chunks::COOKIE_ECHO),
        (0, Reply, chunks::COOKIE_ACK),
    ];
    let lives: &[Life] = &[
        (Protocol::TCP, &[], 120),
        (Protocol::TCP, &[(1, Reply, tcp::SYN)], 120),
        (Protocol::TCP, &handshake[..1], 60),
        (Protocol::TCP, handshake, 86_400),
        (Protocol::TCP, &[handshake[0], (1, Original, FIN_ACK)], 120),
        (
            Protocol::TCP,
            &[handshake[0], (1, Original, FIN_ACK), (1, Reply, tcp::ACK)],
            3600,
        ),
        (
            Protocol::TCP,
            &[handshake[0], (1, Original, FIN_ACK), (1, Reply, FIN_ACK)],
            30,
        ),
        (
            Protocol::TCP,
            &[
                handshake[0],
                (1, Original, FIN_ACK),
                (1, Reply, FIN_ACK),
                (1, Original, tcp::ACK),
            ],
            120,
        ),
        (Protocol::TCP, &[(1, Reply, tcp::RST)], 10),
        (Protocol::UDP, &[], 30),
        (Protocol::UDP, &[(20, Original, 0)], 30),
        (Protocol::UDP, &[(1, Reply, 0), (2, Original, 0)], 30),
        (Protocol::UDP, &[(1, Reply, 0), (3, Original, 0)], 120),
        (Protocol::UDP, &[(3, Reply, 0)], 120),
        (Protocol::SCTP, &[], 3),
        (Protocol::SCTP, association, 210),
        (
            Protocol::SCTP,
            &[association[0], (1, Original, chunks::COOKIE_ECHO)],
            3,
        ),
        (
            Protocol::SCTP,
            &[association[1], association[2], (1, Original, chunks::SHUTDOWN)],
            3,
        ),
        (
            Protocol::SCTP,
            &[association[1], association[2], (1, Reply, chunks::SHUTDOWN)],
            3,
        ),
        (
            Protocol::SCTP,
            &[association[1], association[2], (1, Reply, chunks::SHUTDOWN_ACK)],
            3,
        ),
        (Protocol::SCTP, &[(1, Reply, chunks::ABORT)], 10),
        (Protocol::ICMP, &[(1, Reply, 0)], 30),
        (Protocol(47), &[(1, Reply, 0)], 600),
    ];
    for life @ (protocol, packets, timeout) in lives {
        let mut flows = flows::<A>(10);
        let index = open(&mut flows, &new::<A>(*protocol, 1), seconds(0)).unwrap();
        for &(second, direction, flags) in *packets {
            assert_eq!(
                flows.touch(index, direction, flags, seconds(second)),
                Touched::Continues
            );
        }
        let end = packets.last().map_or(0, |last| last.0) + timeout;
        let mut gone = 0;
        flows.expire(seconds(end), 10, &mut |_| gone += 1);
        assert_eq!(gone, 0, "early: {life:?}");
        flows.expire(Tick(seconds(end).0 + 1), 10, &mut |_| gone += 1);
        assert_eq!((gone, flows.usage().used), (1, 0), "late: {life:?}");
        assert_eq!(flows.find(&new::<A>(*protocol, 1).reply), None);
    }
}

fn a_sweep_looks_at_no_more_than_its_budget_and_reaches_every_flow_in_time<A: Numbered>() {
    let mut flows = flows::<A>(1000);
    for n in 0..300 {
        open(&mut flows, &new::<A>(Protocol::UDP, n), seconds(0)).unwrap();
    }
    let mut ends = Vec::new();
    for _ in 0..3 {
        let before = ends.len();
        flows.expire(seconds(31), 100, &mut |flow| {
            ends.push(flow.key(Direction::Original))
        });
        assert_eq!(ends.len() - before, 100);
    }
    assert_eq!(flows.usage().used, 0);
    flows.expire(seconds(31), usize::MAX, &mut |_| panic!("nothing is left"));
}

fn a_sweep_spares_the_flows_in_use_over_the_clocks_wrap<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let start = Tick(u32::MAX - TICKS_PER_SECOND);
    open(&mut flows, &new::<A>(Protocol::UDP, 1), start).unwrap();
    flows.expire(start.plus_seconds(30), 10, &mut |_| panic!("still young"));
    let mut gone = 0;
    flows.expire(start.plus_seconds(31), 10, &mut |_| gone += 1);
    assert_eq!(gone, 1);
}

fn each_direction_has_the_next_hop_it_was_opened_with<A: Numbered>() {
    let mut flows = flows::<A>(10);
    let next_hops = [NextHopIndex(1), NextHopIndex(9)];
    let opening = NewFlow {
        next_hops,
        ..new::<A>(Protocol::UDP, 1)
    };
    let index = open(&mut flows, &opening, seconds(0)).unwrap();
    assert_eq!(Direction::BOTH.map(|d| flows.flow(index).next_hop(d)), next_hops);
}

mod flood;
mod oracle;
