//! Prefixes that hold each other, room, and what drains.

use super::*;

fn prefix(text: &str) -> Prefix {
    let net: ipnet::IpNet = text.parse().unwrap();
    (net.network(), net.prefix_len())
}

#[test]
fn a_longer_prefix_has_the_flags_of_those_around_it_and_an_own_address_only_that() {
    let mut wanted = Wanted::default();
    for (text, flag) in [
        ("10.0.0.0/8", FROM),
        ("10.96.0.0/16", TO),
        ("10.96.0.1/32", PARTLY),
        ("10.97.0.1/32", OWN),
        ("10.98.0.1/32", PARTLY),
        ("11.0.0.1/32", TO),
        ("::/0", FROM),
    ] {
        wanted.flag(prefix(text), flag);
    }
    let all = wanted.inherited();
    for (text, flags) in [
        ("10.0.0.0/8", FROM),
        ("10.96.0.0/16", FROM | TO),
        ("10.96.0.1/32", FROM | TO | PARTLY),
        ("10.97.0.1/32", OWN),
        ("10.98.0.1/32", FROM | PARTLY),
        ("11.0.0.1/32", TO),
        ("::/0", FROM),
    ] {
        assert_eq!(all[&prefix(text)], flags, "{text}");
    }
}

#[test]
fn what_found_no_room_is_counted_and_has_it_once_something_else_is_gone() {
    let maps = match SharedMaps::new([2, 1, 128], Vec::new(), None) {
        Ok(maps) => Arc::new(maps),
        Err(error) => return println!("SKIPPED: bpf(2) is not for us here: {error}"),
    };
    let mut ports = SharedPorts::new(maps, 80).unwrap();
    let mut first = Wanted::default();
    for text in ["10.96.0.1/32", "10.96.0.2/32", "10.96.0.3/32"] {
        first.flag(prefix(text), TO);
    }
    let port = |port| (IpAddr::from([192, 0, 2, 1]), Protocol::TCP, port);
    first.ports.extend([(port(80), SERVED), (port(443), SERVED)]);
    ports.mean(first);
    assert_eq!((ports.used(), ports.missing()), ([2, 1], 2));

    let mut second = Wanted::default();
    second.flag(prefix("10.96.0.3/32"), TO);
    second.ports.insert(port(443), SERVED);
    ports.mean(second);
    assert_eq!(ports.missing(), 2);
    ports.settle(Tick(1));
    assert_eq!((ports.used(), ports.missing()), ([1, 1], 0));
}

#[test]
fn what_has_gone_drains_until_its_time_is_over_or_it_is_back() {
    let maps = match SharedMaps::new([64, 64, 128], Vec::new(), None) {
        Ok(maps) => Arc::new(maps),
        Err(error) => return println!("SKIPPED: bpf(2) is not for us here: {error}"),
    };
    let mut ports = SharedPorts::new(Arc::clone(&maps), 8 * LOOK).unwrap();
    let port = |protocol| (IpAddr::from([192, 0, 2, 1]), protocol, 30_080);
    let mut first = Wanted::default();
    first.flag(prefix("192.0.2.1/32"), OWN);
    first.flag(prefix("10.244.0.0/16"), FROM);
    first.flag(prefix("10.244.0.9/32"), FROM);
    first.flag(prefix("203.0.113.9/32"), FROM);
    let mut second = Wanted::default();
    second.flag(prefix("192.0.2.1/32"), OWN);
    second.flag(prefix("10.244.0.0/16"), FROM);
    first
        .ports
        .extend([Protocol::TCP, Protocol::UDP].map(|protocol| (port(protocol), SERVED)));
    let says = || {
        let (mut prefixes, ports) = maps.contents().unwrap();
        prefixes.retain(|(prefix, _)| prefix.0 == IpAddr::from([203, 0, 113, 9]));
        (prefixes.len(), ports)
    };
    ports.mean(first.clone());
    ports.settle(Tick(0));
    assert_eq!(says().1.len(), 2);
    ports.mean(second.clone());
    ports.settle(Tick(1));
    // UDP has no connections; an endpoint in a pod range is known by that.
    assert_eq!(says(), (1, vec![(port(Protocol::TCP), DRAINING)]));
    assert_eq!(ports.used(), [3, 1]);
    let _ = ports.renew(Tick(8 * LOOK));
    assert_eq!(says().0, 1);

    // Back, and gone again: its time begins anew.
    ports.mean(first);
    assert!(says().1.contains(&(port(Protocol::TCP), SERVED)));
    ports.settle(Tick(2 * LOOK));
    ports.mean(second);
    ports.settle(Tick(3 * LOOK));
    let _ = ports.renew(Tick(10 * LOOK));
    assert_eq!(says(), (1, vec![(port(Protocol::TCP), DRAINING)]));
    let _ = ports.renew(Tick(11 * LOOK + 1));
    assert_eq!(says(), (0, Vec::new()));
}
