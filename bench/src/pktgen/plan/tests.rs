use super::*;

const SMALL: &str = "
clients: {driver: af_packet, interface: c0, gateway: 02:00:00:00:00:01}
pods: {driver: af_packet, interface: p0}
world:
  clients: 198.18.0.1
  services: {first: 10.96.0.10, count: 1, port: 80}
  endpoints: {first: 10.244.1.0, perService: 4, port: 80}
traffic: [{udp: 64}]
rate: 50%
";

/// The same of the other family.
fn v6() -> String {
    SMALL
        .replace("198.18.0.1", "2001:2::1")
        .replace("10.96.0.10", "'fd96::10'")
        .replace("10.244.1.0", "'fd44::1:0'")
        .replace("udp: 64", "udp: 84")
}

#[test]
fn every_example_is_read_and_can_be_sent() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/pktgen");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let plan = Plan::load(&path).unwrap_or_else(|error| panic!("{error}"));
        plan.traffic(Mac::default()).unwrap();
        read += 1;
    }
    assert!(read >= 4, "{read}");
}

#[test]
fn percentages_are_of_the_line_with_the_mean_frame() {
    let plan = Plan::parse(SMALL).unwrap();
    assert_eq!(plan.packets(Rate::Share(0.5)).unwrap() as u64, 7_440_476);
    let imix = Plan::parse(&SMALL.replace("udp: 64", "udp: imix")).unwrap();
    assert!((imix.mean_size() - 353.83).abs() < 0.01);
    let longer = Plan::parse(&v6().replace("udp: 84", "udp: imix")).unwrap();
    assert!((longer.mean_size() - imix.mean_size() - 20.0 * 7.0 / 12.0).abs() < 0.01);
    assert_eq!((imix.packets(Rate::Share(1.0)).unwrap() / 1e4) as u64, 334);
}

#[test]
fn what_cannot_be_is_refused_with_what_would_be_right() {
    for (from, to, says) in [
        ("udp: 64", "udp: 63", "64 to 1518"),
        ("udp: 64", "tcp: {requests: 15, size: 1518}", "2046 bytes"),
        ("udp: 64", "tcp: {requests: 1, size: 80}", "88 to 1518"),
        ("rate: 50%", "", "one of rate, phases and search"),
        ("rate: 50%", "phases: [{from: max, seconds: 1}]", "numbers"),
        ("rate: 50%", "rate: 1kpps\nflows: 0", "2097152"),
        ("02:00:00:00:00:01", "router", "MAC address"),
        ("driver: af_packet, interface: p0", "driver: memory", "both ports"),
    ] {
        let text = SMALL.replace(from, to);
        let error = Plan::parse(&text).and_then(|plan| plan.check()).unwrap_err();
        assert!(error.to_string().contains(says), "{to}: {error}");
    }
    assert!(Plan::parse(&v6()).unwrap().check().is_ok());
    for (from, to, says) in [
        ("udp: 84", "udp: 83", "84 to 1518"),
        ("udp: 84", "tcp: {requests: 1, size: 107}", "108 to 1518"),
        ("fd96::10", "10.96.0.10", "all IPv4 or all IPv6"),
    ] {
        let plan = Plan::parse(&v6().replace(from, to)).unwrap();
        let error = plan.check().unwrap_err();
        assert!(error.to_string().contains(says), "{to}: {error}");
    }
    let unknown = Plan::parse(&SMALL.replace("traffic", "trafic")).unwrap_err();
    assert!(unknown.to_string().contains("trafic"), "{unknown}");
}
