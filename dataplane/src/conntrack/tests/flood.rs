use super::*;

/// A flow that both sides have confirmed.
fn confirmed<A: Numbered>(flows: &mut Flows<A>, protocol: Protocol, n: u32) {
    let index = open(flows, &new(protocol, n), seconds(0)).unwrap();
    let packets: &[_] = match protocol {
        Protocol::TCP => &[
            (Direction::Reply, tcp::SYN | tcp::ACK),
            (Direction::Original, tcp::ACK),
        ],
        Protocol::SCTP => &[
            (Direction::Reply, chunks::INIT_ACK),
            (Direction::Original, chunks::COOKIE_ECHO),
            (Direction::Reply, chunks::COOKIE_ACK),
        ],
        _ => &[(Direction::Reply, 0)],
    };
    for &(direction, signals) in packets {
        assert_eq!(
            flows.touch(index, direction, signals, seconds(0)),
            Touched::Continues
        );
    }
}

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::SCTP, Protocol::UDP];

both_families! {
    a_flood_of_ten_tables_costs_no_confirmed_flow_and_no_memory
    confirmed_flows_are_never_evicted_not_even_by_the_last_of_a_full_table
    half_open_flows_take_no_more_than_their_share_from_those_of_other_protocols
    a_finished_connection_makes_room_for_a_new_one
    no_more_flows_than_the_configured_rate_are_opened
}

fn a_flood_of_ten_tables_costs_no_confirmed_flow_and_no_memory<A: Numbered>() {
    // CT-18.
    const CAPACITY: u32 = 4096;
    let mut flows = flows::<A>(CAPACITY as usize);
    let (bytes, confirmed_each) = (flows.bytes(), 400);
    for protocol in PROTOCOLS {
        (0..confirmed_each).for_each(|n| confirmed(&mut flows, protocol, n));
    }
    let (mut evicted, mut opened, mut refused) = (0, 3 * confirmed_each, 0);
    // A lone ACK is as easily forged as a SYN.
    let kinds = [
        (Protocol::TCP, tcp::SYN),
        (Protocol::TCP, tcp::ACK),
        (Protocol::SCTP, chunks::INIT),
        (Protocol::SCTP, 0),
        (Protocol::UDP, 0),
        (Protocol(47), 0),
    ];
    for n in 0..10 * CAPACITY {
        let (protocol, signals) = kinds[n as usize % kinds.len()];
        let forged = NewFlow {
            state: State::opening(protocol, signals).unwrap(),
            ..new::<A>(protocol, 100_000 + n)
        };
        let tick = Tick(seconds(1).0 + n / 10_000);
        match flows.open(&forged, tick, &mut |gone| {
            assert!(gone.state().dispensable().is_some());
            evicted += 1;
        }) {
            Ok(_) => opened += 1,
            Err(OpenError::Full) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(flows.embryonic() <= CAPACITY as usize / 2);
    }
    for protocol in PROTOCOLS {
        for n in 0..confirmed_each {
            assert!(
                flows.find(&new::<A>(protocol, n).reply).is_some(),
                "{protocol} {n} is gone"
            );
        }
    }
    assert_eq!(flows.usage().used, (opened - evicted) as usize);
    assert_eq!(
        flows
            .iter()
            .filter(|(_, flow)| flow.state().is_embryonic())
            .count(),
        flows.embryonic()
    );
    assert!(flows.usage().used <= CAPACITY as usize && flows.bytes() == bytes);
    // Three tenths of the table are confirmed and lie together, and are passed by.
    assert_eq!(refused, 0, "a new client still gets in");
}

fn confirmed_flows_are_never_evicted_not_even_by_the_last_of_a_full_table<A: Numbered>() {
    let mut flows = flows::<A>(300);
    for protocol in PROTOCOLS {
        (0..100).for_each(|n| confirmed(&mut flows, protocol, n));
    }
    for n in 0..1000 {
        for protocol in PROTOCOLS {
            assert_eq!(
                open(&mut flows, &new(protocol, 1000 + n), seconds(9)),
                Err(OpenError::Full)
            );
        }
    }
    assert_eq!(flows.usage().used, 300);
}

fn half_open_flows_take_no_more_than_their_share_from_those_of_other_protocols<A: Numbered>() {
    let mut flows = flows::<A>(1000);
    for n in 0..400 {
        open(&mut flows, &new(Protocol::UDP, n), seconds(0)).unwrap();
    }
    let mut refused = 0;
    for n in 0..5000 {
        let result = flows.open(&new(Protocol::TCP, n), seconds(1), &mut |gone| {
            assert!(gone.state().is_embryonic())
        });
        refused += usize::from(result.is_err());
    }
    assert_eq!((flows.embryonic(), flows.usage().used), (500, 900));
    assert!(refused < 200, "{refused}");
    // Answered, it is no longer half open.
    let (index, _) = flows
        .iter()
        .find(|(_, flow)| flow.state().is_embryonic())
        .unwrap();
    let _ = flows.touch(index, Direction::Reply, tcp::SYN | tcp::ACK, seconds(1));
    let _ = flows.touch(index, Direction::Original, tcp::ACK, seconds(1));
    assert_eq!(flows.embryonic(), 499);
}

fn a_finished_connection_makes_room_for_a_new_one<A: Numbered>() {
    let mut flows = flows::<A>(20);
    (0..20).for_each(|n| confirmed(&mut flows, Protocol::TCP, n));
    let (index, _) = flows.find(&new::<A>(Protocol::TCP, 7).original).unwrap();
    let _ = flows.touch(index, Direction::Reply, tcp::RST, seconds(1));
    let mut gone = Vec::new();
    flows
        .open(&new(Protocol::TCP, 99), seconds(1), &mut |flow| {
            gone.push(flow.key(Direction::Original))
        })
        .unwrap();
    assert_eq!(gone, [new::<A>(Protocol::TCP, 7).original]);
}

fn no_more_flows_than_the_configured_rate_are_opened<A: Numbered>() {
    let admission = Admission {
        per_second: 16,
        ..Admission::default()
    };
    let mut flows = Flows::<A>::new(FlowConfig {
        admission,
        ..config(1000)
    })
    .unwrap();
    let mut opened = |from: u32, tick| {
        let results = (from..from + 50).map(|n| open(&mut flows, &new(Protocol::UDP, n), tick));
        let (ok, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        assert!(
            refused
                .into_iter()
                .all(|error| error == Err(OpenError::RateLimited))
        );
        ok.len()
    };
    assert_eq!(
        [
            opened(0, seconds(0)),
            opened(100, seconds(0)),
            opened(200, seconds(1))
        ],
        [16, 0, 16]
    );
}
