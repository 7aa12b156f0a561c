use super::*;

const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const BYTES: [u8; 44] = [
    0x6b, 0x80, 0x00, 0x00, 0x00, 0x04, 0x11, 0x40, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xde, 0xad, 0xbe, 0xef,
];

/// A packet with these extension headers: its next header, and the bytes of the rest.
fn with(next: u8, payload: &[u8]) -> Result<Upper, DropReason> {
    let mut bytes = BYTES[..40].to_vec();
    bytes.extend(payload);
    bytes[5] = payload.len() as u8;
    bytes[4] = (payload.len() >> 8) as u8;
    bytes[6] = next;
    Ipv6::new(bytes).unwrap().upper()
}

#[test]
fn the_bytes_of_a_packet_read_as_its_fields() {
    let mut padded = BYTES.to_vec();
    padded.extend([0; 9]);
    let ip = Ipv6::new(&padded).unwrap();
    assert_eq!((ip.src(), ip.dst()), (A, B));
    assert_eq!((ip.traffic_class(), ip.flow_label()), (0xb8, 0));
    assert_eq!((ip.next_header(), ip.hop_limit()), (Protocol::UDP, 64));
    assert_eq!((ip.payload_len(), ip.total_len()), (4, 44));
    assert_eq!(ip.payload(), [0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(ip.to_string(), "fd00::1 > fd00::2 UDP hop limit 64 len 44");
}

#[test]
fn the_fields_of_a_packet_write_as_its_bytes() {
    let mut bytes = [0x55; 44];
    let mut ip = Ipv6::blank(&mut bytes, Protocol::UDP).unwrap();
    ip.set_traffic_class(0xb8);
    ip.set_hop_limit(64);
    ip.set_src(A);
    ip.set_dst(B);
    ip.payload_mut().copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(bytes, BYTES);
}

#[test]
fn lengths_that_contradict_the_bytes_and_other_versions_are_refused() {
    let with = |at: usize, value: u8| {
        let mut bytes = BYTES;
        bytes[at] = value;
        Ipv6::new(bytes).map(|_| ())
    };
    assert_eq!(with(0, 0x45), Err(DropReason::BadIpHeader), "version 4");
    assert_eq!(with(5, 5), Err(DropReason::BadIpHeader), "longer than the bytes");
    assert_eq!(with(5, 0), Ok(()));
    assert_eq!(Ipv6::new(&BYTES[..39]).unwrap_err(), DropReason::Truncated);
    assert_eq!(Ipv6::partial(&BYTES[..41]).unwrap().payload(), [0xde]);
    assert_eq!(
        Ipv6::blank([0; 39], Protocol::UDP).unwrap_err(),
        DropReason::NoFrame
    );
    assert_eq!(
        Ipv6::blank(vec![0; 40 + 65_536], Protocol::UDP).unwrap_err(),
        DropReason::TooBig
    );
}

#[test]
fn the_walk_passes_options_and_finished_routing_headers_to_the_transport() {
    let mut chain = vec![43, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop
    chain.extend([60, 2, 0, 0, 0, 0, 0, 0]); // routing, 24 bytes, no segments left
    chain.extend([0; 16]);
    chain.extend([6, 0, 0, 0, 0, 0, 0, 0]); // destination options
    chain.extend([0; 20]);
    let upper = with(0, &chain).unwrap();
    assert_eq!(
        (upper.protocol, upper.at, upper.fragment),
        (Protocol::TCP, 80, None)
    );
}

#[test]
fn the_walk_ends_before_what_it_does_not_look_into() {
    // AH, ESP, no next header, and a routing header with a segment left.
    for (next, payload) in [
        (51, [0; 8]),
        (50, [0; 8]),
        (59, [0; 8]),
        (43, [6, 0, 0, 1, 0, 0, 0, 0]),
    ] {
        let upper = with(next, &payload).unwrap();
        assert_eq!((upper.protocol, upper.at), (Protocol(next), 40));
    }
}

#[test]
fn fragment_headers_say_where_and_of_what() {
    let first = with(44, &[17, 0, 0, 1, 1, 2, 3, 4]).unwrap();
    let fragment = FragmentHeader {
        offset: 0,
        more: true,
        ident: 0x0102_0304,
        payload: 48,
    };
    assert_eq!(
        (first.protocol, first.at, first.fragment),
        (Protocol::UDP, 48, Some(fragment))
    );
    // What looks like an extension header in a later fragment is the payload's.
    let later = with(44, &[60, 0, 5, 0xa8, 1, 2, 3, 4, 6, 0]).unwrap();
    assert_eq!((later.protocol, later.at), (Protocol(60), 48));
    assert_eq!(later.fragment.map(|f| (f.offset, f.more)), Some((0x5a8, false)));
    let nested = [44, 0, 0, 1, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(with(44, &nested), Err(DropReason::BadIpHeader));
}

#[test]
fn the_walk_is_bounded_and_believes_no_length() {
    let options = |count: usize| {
        let mut chain = [60, 0, 0, 0, 0, 0, 0, 0].repeat(count);
        chain[8 * (count - 1)] = 17;
        with(60, &chain).map(|upper| upper.at)
    };
    assert_eq!(options(MAX_EXTENSIONS), Ok(40 + 8 * MAX_EXTENSIONS));
    assert_eq!(options(MAX_EXTENSIONS + 1), Err(DropReason::ExtensionHeaders));
    let mut long = vec![60, 35, 0, 0, 0, 0, 0, 0];
    long.extend([0; 280]);
    long.extend([17, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        with(60, &long),
        Err(DropReason::ExtensionHeaders),
        "288 bytes, then another"
    );
    assert_eq!(with(60, &[17, 1, 0, 0, 0, 0, 0, 0]), Err(DropReason::Truncated));
    assert_eq!(with(60, &[17, 0, 0]), Err(DropReason::Truncated));
    assert_eq!(
        with(60, &[0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]),
        Err(DropReason::BadIpHeader),
        "hop-by-hop options come first or not at all"
    );
}

#[test]
fn addresses_that_cannot_send_are_told_apart() {
    for address in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
        assert!(!can_send(address.parse().unwrap()), "{address}");
    }
    for address in ["fe80::1", "fd00::1", "2001:db8::1", "64:ff9b::a00:1"] {
        assert!(can_send(address.parse().unwrap()), "{address}");
    }
    let group: Ipv6Addr = "ff02::1:ff28:9c5a".parse().unwrap();
    assert_eq!(solicited_node("fe80::2aa:ff:fe28:9c5a".parse().unwrap()), group);
}
