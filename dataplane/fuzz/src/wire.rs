//! Every view over any bytes: what its constructor lets pass answers every question and takes every setter.

use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_dataplane::addr::{Mac, Port};
use sluice_dataplane::wire::nd::Neighbour;
use sluice_dataplane::wire::{Arp, Ethernet, Fragments, Icmp, Icmpv6, Ipv4, Ipv6, Sctp, Tcp, Udp};

const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

pub(crate) fn run(data: &[u8]) {
    ethernet(&mut data.to_vec());
    fragments(data);
    neighbour(data);
    arp(&mut data.to_vec());
    for check in [Ipv4::new, Ipv4::partial] {
        check(data.to_vec()).into_iter().for_each(ipv4);
    }
    for check in [Ipv6::new, Ipv6::partial] {
        check(data.to_vec()).into_iter().for_each(ipv6);
    }
    for check in [Icmpv6::new, Icmpv6::partial] {
        check(data.to_vec()).into_iter().for_each(icmpv6);
    }
    for check in [Sctp::new, Sctp::partial] {
        check(data.to_vec()).into_iter().for_each(sctp);
    }
    for check in [Tcp::new, Tcp::partial] {
        check(data.to_vec()).into_iter().for_each(tcp);
    }
    for check in [Udp::new, Udp::partial] {
        check(data.to_vec()).into_iter().for_each(udp);
    }
    for check in [Icmp::new, Icmp::partial] {
        check(data.to_vec()).into_iter().for_each(icmp);
    }
}

fn ethernet(bytes: &mut [u8]) {
    if let Ok(mut view) = Ethernet::new(bytes) {
        let payload = view.payload().to_vec();
        view.set_dst(Mac::BROADCAST);
        view.set_src(Mac::BROADCAST);
        assert_eq!(view.payload_mut(), payload);
        assert!(!view.to_string().is_empty());
    }
}

fn arp(bytes: &mut [u8]) {
    if let Ok(mut view) = Arp::new(bytes) {
        view.set_sender(Mac::BROADCAST, IP);
        view.set_target(Mac::BROADCAST, IP);
        assert_eq!((view.sender_ip(), view.target_ip()), (IP, IP));
        assert!(!view.to_string().is_empty());
    }
}

fn ipv4(mut view: Ipv4<Vec<u8>>) {
    let payload = view.payload().to_vec();
    view.set_ttl(255);
    view.set_traffic_class(255);
    view.set_src(IP);
    view.set_dst(IP);
    view.fill_checksum();
    assert!(view.checksum_ok() && view.options().len() <= 40 && !view.to_string().is_empty());
    assert_eq!(view.payload_mut(), payload);
}

fn tcp(mut view: Tcp<Vec<u8>>) {
    let payload = view.payload().to_vec();
    view.set_src_port(Port::new(1));
    view.set_dst_port(Port::new(2));
    view.set_sequence(3);
    view.set_acknowledgement(4);
    view.set_flags(0xff);
    view.set_window(5);
    view.fill_checksum(IP.octets(), IP.octets());
    assert!(
        view.checksum_ok(IP.octets(), IP.octets())
            && view.options().len() <= 40
            && !view.to_string().is_empty()
    );
    assert_eq!(view.payload_mut(), payload);
}

fn udp(mut view: Udp<Vec<u8>>) {
    let payload = view.payload().to_vec();
    view.set_src_port(Port::new(1));
    view.set_dst_port(Port::new(2));
    view.fill_checksum(IP.octets(), IP.octets());
    assert!(view.checksum_ok(IP.octets(), IP.octets()) && !view.to_string().is_empty());
    assert_eq!(view.payload_mut(), payload);
}

fn icmp(mut view: Icmp<Vec<u8>>) {
    assert!(view.quoted().is_none() || view.echo().is_none());
    view.set_echo(1, 2);
    view.set_next_hop_mtu(3);
    view.fill_checksum();
    assert!(view.checksum_ok() && !view.to_string().is_empty());
    assert_eq!(view.payload_mut().len(), view.payload().len());
}

const IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn ipv6(mut view: Ipv6<Vec<u8>>) {
    let payload = view.payload().to_vec();
    if let Ok(upper) = view.upper() {
        assert!(
            (40..=40 + payload.len()).contains(&upper.at),
            "a header ends in the packet"
        );
    }
    let class = view.flow_label();
    view.set_hop_limit(255);
    view.set_traffic_class(255);
    view.set_src(IP6);
    view.set_dst(IP6);
    assert!((view.src(), view.dst(), view.flow_label()) == (IP6, IP6, class) && !view.to_string().is_empty());
    assert_eq!(view.payload_mut(), payload);
}

fn icmpv6(mut view: Icmpv6<Vec<u8>>) {
    assert!(view.quoted().is_none() || view.echo().is_none());
    view.set_echo(1, 2);
    view.set_mtu(1280);
    view.fill_checksum(IP6.octets(), IP6.octets());
    assert!(view.checksum_ok(IP6.octets(), IP6.octets()) && !view.to_string().is_empty());
    assert_eq!(view.payload_mut().len(), view.payload().len());
}

fn sctp(mut view: Sctp<Vec<u8>>) {
    let chunks = view.chunks();
    view.set_src_port(Port::new(1));
    view.set_dst_port(Port::new(2));
    view.set_tag(3);
    view.fill_checksum();
    assert!(view.checksum_ok() && view.chunks() == chunks && !view.to_string().is_empty());
    assert_eq!(
        (view.src_port(), view.dst_port(), view.tag()),
        (Port::new(1), Port::new(2), 3)
    );
}

fn neighbour(data: &[u8]) {
    if let Ok(view) = Neighbour::new(data) {
        let _ = (view.is_solicitation(), view.flags(), view.link_address());
        assert!(!view.target().is_multicast());
    }
    if let Ok(ip) = Ipv6::new(data) {
        let _ = Neighbour::received(&ip).map(|view| view.target());
    }
}

/// The pieces of a packet are packets that the next link takes, and have all of it.
fn fragments(data: &[u8]) {
    let Some((&[a, b], packet)) = data.split_first_chunk::<2>() else {
        return;
    };
    let mtu = usize::from(u16::from_be_bytes([a, b]) % 2048);
    let Ok(mut pieces) = Fragments::of(packet, mtu) else {
        return;
    };
    let whole = Ipv4::new(packet).unwrap();
    let (mut rest, mut out, mut more) = (whole.payload(), [0; 2048], true);
    while let Some(piece) = pieces.next(&mut out) {
        let piece = Ipv4::new(&out[..piece.unwrap()]).unwrap();
        assert_eq!(
            piece.checksum_ok(),
            whole.checksum_ok(),
            "right or wrong as it was"
        );
        assert!(usize::from(piece.total_len()) <= mtu && piece.ident() == whole.ident());
        rest = rest
            .strip_prefix(piece.payload())
            .expect("the pieces are in order");
        more = piece.more_fragments();
    }
    assert!(rest.is_empty() && more == whole.more_fragments());
}
