//! Lines to frames, with the lies a line asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, TcpHeader, UdpHeader,
};

use super::{
    ECHO, EXTENSIONS, ICMP, ICMPV6, Icmp, SEQ, Side, WINDOW, arp_stations, counting, icmp_field, ip_stations,
    nd, pseudo_header, sctp, usual_ttl,
};
use crate::support::line::Line;
use crate::support::station::{BROADCAST, Port, mac_named};

/// The frame that `line` says, on this side of this port. Errors say what is not understood.
pub fn build(line: &Line, port: Port, side: Side) -> Result<Vec<u8>, String> {
    let (ether_type, payload, stations) = match line.head[0].as_str() {
        "raw" => return cut(line, payload(line)?),
        "ether" => {
            let number = line
                .head
                .get(1)
                .and_then(|n| u16::from_str_radix(n.trim_start_matches("0x"), 16).ok());
            let number = number.ok_or("write the EtherType in hex: ether 0x88cc …")?;
            (EtherType(number), payload(line)?, (port.mac(), BROADCAST))
        }
        "arp" => {
            let arp = arp(line, port, side)?;
            let [sender, target] = [arp.sender_protocol_addr(), arp.target_protocol_addr()].map(ip_address);
            let request = arp.operation == ArpOperation::REQUEST;
            let stations = arp_stations(request, sender, target, port, side);
            (EtherType::ARP, arp.to_bytes().to_vec(), stations)
        }
        "nd" => {
            let nd = nd::build(line, port, side)?;
            let (from, to) = (nd.from.into(), nd.to.into());
            let body = [&[nd.kind, 0, 0, 0][..], &nd.body].concat();
            let body = icmp_sum(body, from, to, bad(line, "l4"));
            let packet = ipv6(line, 255, IpNumber::IPV6_ICMP, (nd.from, nd.to), body)?;
            let (_, destination) = ip_stations(from, to, port, side);
            (EtherType::IPV6, packet, (nd.station, destination))
        }
        _ => {
            let (from, to, packet) = ip(line, usual_ttl(side))?;
            let ether_type = if from.is_ipv4() {
                EtherType::IPV4
            } else {
                EtherType::IPV6
            };
            (ether_type, packet, ip_stations(from, to, port, side))
        }
    };
    let named = |modifier, usual| line.get(modifier).map_or(Ok(usual), mac_named);
    let (source, destination) = (named("from", stations.0)?, named("to", stations.1)?);
    let mut frame = Ethernet2Header {
        source,
        destination,
        ether_type,
    }
    .to_bytes()
    .to_vec();
    if let Some(tag) = number::<u16>(line, "vlan")? {
        let inner = frame.split_off(12);
        frame.extend(EtherType::VLAN_TAGGED_FRAME.0.to_be_bytes());
        frame.extend(tag.to_be_bytes());
        frame.extend(inner);
    }
    frame.extend(payload);
    if let Some(length) = number::<usize>(line, "frame")? {
        frame.resize(length.max(frame.len()), 0);
    }
    cut(line, frame)
}

fn cut(line: &Line, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    bytes.truncate(number(line, "cut")?.unwrap_or(bytes.len()));
    Ok(bytes)
}

fn bad(line: &Line, sum: &str) -> bool {
    line.get("badsum").is_some_and(|bad| bad.contains(sum))
}

/// `arp who-has TARGET tell SENDER` or `arp SENDER is-at MAC tell TARGET`.
fn arp(line: &Line, port: Port, side: Side) -> Result<ArpPacket, String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (operation, sender, target, is_at) = match words[..] {
        ["arp", "who-has", target, "tell", sender] => (ArpOperation::REQUEST, sender, target, None),
        ["arp", sender, "is-at", mac, "tell", target] => (ArpOperation::REPLY, sender, target, Some(mac)),
        _ => {
            return Err(
                "write: arp who-has TARGET tell SENDER, or: arp SENDER is-at MAC tell TARGET".to_owned(),
            );
        }
    };
    let address = |text: &str| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| format!("\"{text}\" is no IPv4 address"))
    };
    let (sender, target) = (address(sender)?, address(target)?);
    let usual = arp_stations(is_at.is_none(), sender.into(), target.into(), port, side);
    let named = |modifier, usual| line.get(modifier).map_or(Ok(usual), mac_named);
    let sender_mac = is_at.map_or_else(|| named("sha", named("from", usual.0)?), mac_named)?;
    let target_mac = named(
        "tha",
        if is_at.is_some() {
            named("to", usual.1)?
        } else {
            [0; 6]
        },
    )?;
    let (sender, target) = (sender.octets(), target.octets());
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    ArpPacket::new(
        hardware,
        protocol,
        operation,
        &sender_mac,
        &sender,
        &target_mac,
        &target,
    )
    .map_err(|e| e.to_string())
}

/// An address, and the port of a packet that has one.
type End = (IpAddr, Option<u16>);

/// The IP packet that `line` says, and between whom.
fn ip(line: &Line, usual_ttl: u8) -> Result<(IpAddr, IpAddr, Vec<u8>), String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (kind, detail, source, destination) = match words[..] {
        [kind @ ("tcp" | "sctp"), source, ">", destination, detail] => (kind, detail, source, destination),
        [kind @ ("tcp" | "udp" | "sctp"), source, ">", destination] => (kind, "", source, destination),
        [kind @ ("icmp" | "ip"), detail, source, ">", destination] => (kind, detail, source, destination),
        _ => {
            return Err(format!(
                "\"{}\" is no packet: tcp|udp|sctp A:P > B:Q, icmp|ip KIND A > B, arp …, nd …",
                words.join(" ")
            ));
        }
    };
    let ends = (end(source)?, end(destination)?);
    let (protocol, body) = transport(line, kind, detail, ends)?;
    let packet = match (ends.0.0, ends.1.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(line, usual_ttl, protocol, (from, to), body)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(line, usual_ttl, protocol, (from, to), body)?,
        _ => return Err("a packet's addresses are of one family".to_owned()),
    };
    Ok((ends.0.0, ends.1.0, packet))
}

fn transport(line: &Line, kind: &str, detail: &str, ends: (End, End)) -> Result<(IpNumber, Vec<u8>), String> {
    let ((from, source), (to, destination)) = ends;
    let data = payload(line)?;
    let spoilt = bad(line, "l4");
    let ports = source.zip(destination);
    Ok(match (kind, ports) {
        ("tcp", Some((source, destination))) => {
            let seq = number(line, "seq")?.unwrap_or(SEQ);
            let window = number(line, "window")?.unwrap_or(WINDOW);
            let mut header = TcpHeader::new(source, destination, seq, window);
            header.acknowledgment_number = number(line, "ack")?.unwrap_or(0);
            set_flags(&mut header, detail)?;
            if let Some(options) = line.get("tcpopts") {
                header
                    .set_options_raw(&hex(options)?)
                    .map_err(|e| format!("{e:?}"))?;
            }
            let mut body = [&header.to_bytes()[..], &data].concat();
            if let Some(offset) = number::<u8>(line, "offset")? {
                body[12] = offset << 4 | body[12] & 0x0f;
            }
            let sum = pseudo_header(from, to, IpNumber::TCP, body.len()).add_slice(&body);
            put_sum(&mut body, 16, sum, spoilt);
            (IpNumber::TCP, body)
        }
        ("udp", Some((source_port, destination_port))) => {
            let whole = 8 + data.len();
            let length = number(line, "udplen")?.unwrap_or(whole as u16);
            let header = UdpHeader {
                source_port,
                destination_port,
                length,
                checksum: 0,
            };
            let mut body = [&header.to_bytes()[..], &data].concat();
            if line.get("sum") != Some("0") {
                let covered = whole.min(usize::from(length));
                let sum = pseudo_header(from, to, IpNumber::UDP, length.into()).add_slice(&body[..covered]);
                put_sum(&mut body, 6, sum, false);
                if body[6..8] == [0, 0] {
                    body[6..8].fill(0xff); // RFC 768: 0 is "none"
                }
                body[6] ^= u8::from(spoilt) << 4;
            }
            (IpNumber::UDP, body)
        }
        ("sctp", Some((source, destination))) => {
            let tag = number(line, "vtag")?.unwrap_or_else(|| sctp::usual_tag(detail));
            let chunks = sctp::build_chunks(detail, &data)?;
            let mut body = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            body.extend(tag.to_be_bytes());
            body.extend([0; 4]);
            body.extend(chunks);
            let crc = sctp::crc32c(&body) ^ u32::from(spoilt) << 4;
            body[8..12].copy_from_slice(&crc.to_le_bytes());
            (IpNumber::SCTP, body)
        }
        // Without ports: a later fragment, whose payload is just bytes.
        ("tcp", None) => (IpNumber::TCP, data),
        ("udp", None) => (IpNumber::UDP, data),
        ("sctp", None) => (IpNumber::SCTP, data),
        ("icmp", _) if from.is_ipv4() => (
            IpNumber::ICMP,
            icmp_sum(icmp(line, detail, data, false)?, from, to, spoilt),
        ),
        ("icmp", _) => (
            IpNumber::IPV6_ICMP,
            icmp_sum(icmp(line, detail, data, true)?, from, to, spoilt),
        ),
        _ => {
            let protocol = detail
                .parse()
                .map_err(|_| format!("\"{detail}\" is no IP protocol number"))?;
            (IpNumber(protocol), data)
        }
    })
}

/// Which bytes of a packet's payload a fragment carries, and whether more follow.
struct Piece {
    at: u16,
    more: bool,
}

/// `fragment BYTE[+]`, or `piece FROM-TO`, which takes these bytes out of `body`.
fn piece(line: &Line, body: &mut Vec<u8>) -> Result<Option<Piece>, String> {
    if let Some(fragment) = line.get("fragment") {
        let at = fragment
            .trim_end_matches('+')
            .parse()
            .map_err(|_| "write fragment BYTE, with + if more follow")?;
        return Ok(Some(Piece {
            at,
            more: fragment.ends_with('+'),
        }));
    }
    let Some(range) = line.get("piece") else {
        return Ok(None);
    };
    let range = range
        .split_once('-')
        .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let (from, to): (usize, usize) = range.ok_or("write piece FROM-TO")?;
    let more = to < body.len();
    *body = body
        .get(from..to)
        .ok_or_else(|| format!("piece {from}-{to} of {} bytes", body.len()))?
        .to_vec();
    let at = u16::try_from(from).map_err(|e| e.to_string())?;
    Ok(Some(Piece { at, more }))
}

fn ipv4(
    line: &Line,
    usual_ttl: u8,
    protocol: IpNumber,
    (from, to): (Ipv4Addr, Ipv4Addr),
    mut body: Vec<u8>,
) -> Result<Vec<u8>, String> {
    let ttl = number(line, "ttl")?.unwrap_or(usual_ttl);
    let mut header =
        Ipv4Header::new(0, ttl, protocol, from.octets(), to.octets()).map_err(|e| e.to_string())?;
    if let Some(options) = number::<usize>(line, "options")? {
        // No-operations (RFC 791 §3.1), which any router passes on.
        header.options =
            Ipv4Options::try_from(&vec![1; options][..]).map_err(|e| format!("options {options}: {e:?}"))?;
    }
    if let Some(piece) = piece(line, &mut body)? {
        header.more_fragments = piece.more;
        header.fragment_offset = IpFragOffset::try_new(piece.at / 8).map_err(|e| e.to_string())?;
    }
    header.dont_fragment = line.get("df").is_some();
    header.identification = number(line, "id")?.unwrap_or(0);
    header.set_payload_len(body.len()).map_err(|e| e.to_string())?;
    let mut bytes = header.to_bytes().to_vec();
    bytes[1] = number(line, "tos")?.unwrap_or(0);
    if let Some(version) = number::<u8>(line, "version")? {
        bytes[0] = version << 4 | bytes[0] & 0x0f;
    }
    if let Some(ihl) = number::<u8>(line, "ihl")? {
        bytes[0] = bytes[0] & 0xf0 | ihl;
    }
    if let Some(length) = number::<u16>(line, "length")? {
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
    // Lies do not show in the checksum.
    bytes[10..12].fill(0);
    let sum = Sum16BitWords::new().add_slice(&bytes);
    put_sum(&mut bytes, 10, sum, bad(line, "l3"));
    bytes.extend(body);
    Ok(bytes)
}

fn ipv6(
    line: &Line,
    usual_ttl: u8,
    protocol: IpNumber,
    (from, to): (Ipv6Addr, Ipv6Addr),
    mut body: Vec<u8>,
) -> Result<Vec<u8>, String> {
    let mut next = protocol;
    if let Some(piece) = piece(line, &mut body)? {
        let offset = IpFragOffset::try_new(piece.at / 8).map_err(|e| e.to_string())?;
        let id = number(line, "id")?.unwrap_or(0);
        let header = Ipv6FragmentHeader::new(next, offset, piece.more, id);
        body = [&header.to_bytes()[..], &body].concat();
        next = IpNumber::IPV6_FRAGMENTATION_HEADER;
    }
    let extensions = line.get("ext").map(|text| text.split(',')).into_iter().flatten();
    for extension in extensions.rev() {
        let (name, digits) = extension
            .split_once('=')
            .map_or((extension, None), |(name, digits)| (name, Some(digits)));
        let (_, number, usual) = EXTENSIONS
            .iter()
            .find(|(known, ..)| *known == name)
            .ok_or_else(|| format!("\"{name}\" is no extension header: hop, routing, dest"))?;
        let content = digits.map_or_else(|| Ok(usual.to_vec()), hex)?;
        let header =
            Ipv6RawExtHeader::new_raw(next, &content).map_err(|e| format!("ext {extension}: {e:?}"))?;
        body = [&header.to_bytes()[..], &body].concat();
        next = *number;
    }
    let header = Ipv6Header {
        traffic_class: number(line, "tos")?.unwrap_or(0),
        flow_label: Ipv6FlowLabel::try_new(number(line, "label")?.unwrap_or(0)).map_err(|e| e.to_string())?,
        payload_length: number(line, "length")?.unwrap_or(body.len() as u16),
        next_header: next,
        hop_limit: number(line, "ttl")?.unwrap_or(usual_ttl),
        source: from.octets(),
        destination: to.octets(),
    };
    let mut bytes = header.to_bytes().to_vec();
    if let Some(version) = number::<u8>(line, "version")? {
        bytes[0] = version << 4 | bytes[0] & 0x0f;
    }
    bytes.extend(body);
    Ok(bytes)
}

/// An ICMP message of either family without its checksum.
fn icmp(line: &Line, kind: &str, data: Vec<u8>, v6: bool) -> Result<Vec<u8>, String> {
    let names = if v6 { ICMPV6 } else { ICMP };
    let (kind, code) = match names.iter().find(|(name, ..)| *name == kind) {
        Some((_, kind, code)) => (*kind, *code),
        None => kind
            .strip_prefix("type-")
            .and_then(|numbers| numbers.split_once('-'))
            .and_then(|(kind, code)| Some((kind.parse().ok()?, code.parse().ok()?)))
            .ok_or_else(|| format!("\"{kind}\" is no ICMP message"))?,
    };
    let field = match (Icmp::of(v6, kind), line.get("rest")) {
        (_, Some(digits)) => hex(digits)?,
        (Icmp::Echo, None) => {
            let (id, seq) = line
                .get("echo")
                .unwrap_or(ECHO)
                .split_once('/')
                .ok_or("write echo ID/SEQ")?;
            let half = |text: &str| {
                text.parse::<u16>()
                    .map(u16::to_be_bytes)
                    .map_err(|_| "write echo ID/SEQ")
            };
            [half(id)?, half(seq)?].concat()
        }
        _ => match number(line, "pointer")? {
            Some(pointer) => icmp_field(v6, true, pointer).to_vec(),
            None => icmp_field(v6, false, number(line, "mtu")?.unwrap_or(0)).to_vec(),
        },
    };
    let data = match &line.quoted {
        Some(quoted) => cut(quoted, ip(quoted, usual_ttl(Side::In))?.2)?,
        None => data,
    };
    Ok([&[kind, code, 0, 0][..], &field, &data].concat())
}

/// The message with its checksum: ICMPv6's covers the addresses, too (RFC 4443 §2.3).
fn icmp_sum(mut body: Vec<u8>, from: IpAddr, to: IpAddr, bad: bool) -> Vec<u8> {
    let start = if from.is_ipv4() {
        Sum16BitWords::new()
    } else {
        pseudo_header(from, to, IpNumber::IPV6_ICMP, body.len())
    };
    let sum = start.add_slice(&body);
    put_sum(&mut body, 2, sum, bad);
    body
}

/// Puts a checksum at `at`, wrong by one bit if `bad`.
fn put_sum(bytes: &mut [u8], at: usize, sum: Sum16BitWords, bad: bool) {
    // etherparse sums words as they lie in memory.
    bytes[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    bytes[at] ^= u8::from(bad) << 4;
}

/// The payload: text, hex, or so many bytes that count up.
fn payload(line: &Line) -> Result<Vec<u8>, String> {
    match (&line.text, line.get("hex"), number::<usize>(line, "bytes")?) {
        (Some(text), None, None) => Ok(text.clone().into_bytes()),
        (None, Some(digits), None) => hex(digits),
        (None, None, count) => Ok(counting(count.unwrap_or(0))),
        _ => Err("a packet has one payload".to_owned()),
    }
}

pub(super) fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let bytes = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes
        .collect::<Option<_>>()
        .ok_or_else(|| format!("\"{digits}\" is not hex"))
}

fn set_flags(header: &mut TcpHeader, letters: &str) -> Result<(), String> {
    for letter in letters.chars() {
        match letter {
            'F' => header.fin = true,
            'S' => header.syn = true,
            'R' => header.rst = true,
            'P' => header.psh = true,
            'A' => header.ack = true,
            'U' => header.urg = true,
            'E' => header.ece = true,
            'W' => header.cwr = true,
            '-' => {}
            _ => return Err(format!("\"{letter}\" is no TCP flag: FSRPAUEW, or - for none")),
        }
    }
    Ok(())
}

fn number<N: std::str::FromStr>(line: &Line, modifier: &str) -> Result<Option<N>, String> {
    let value = line.get(modifier).map(|text| {
        text.parse()
            .map_err(|_| format!("{modifier} {text}: not in range"))
    });
    value.transpose()
}

/// `10.96.0.10:80`, `[fd00:96::10]:80`, or an address alone.
fn end(text: &str) -> Result<End, String> {
    let with_port = text
        .parse::<SocketAddr>()
        .map(|socket| (socket.ip(), Some(socket.port())));
    let alone = || text.parse::<IpAddr>().map(|address| (address, None));
    with_port
        .or_else(|_| alone())
        .map_err(|_| format!("\"{text}\" is no IP address, nor one with a port"))
}

fn ip_address(bytes: &[u8]) -> IpAddr {
    <[u8; 4]>::try_from(bytes).unwrap().into()
}
