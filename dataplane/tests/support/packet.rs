//! Lines of the packet language to frames and back, by etherparse: an implementation that shares nothing with the one
//! under test. A packet's checksums are right unless its line says `badsum`; a frame comes from and goes to the stations
//! its addresses imply unless its line says `from` or `to`; time to live is 64 where a packet starts and 63 after us.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, ArpPacketSlice, EtherType, Ethernet2Header, Ethernet2Slice, Icmpv4Header,
    Icmpv4Slice, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Options, TcpHeader, TcpSlice,
    UdpHeader, UdpSlice,
};

use super::line::Line;
use super::station::{BROADCAST, Mac, Port, mac_name, mac_named, station};

/// Which side of the gateway's NIC port a frame is seen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Arriving at the gateway.
    In,
    /// Leaving it.
    Out,
}

/// What is usual where it is not written: TCP's sequence number and window, an echo's identifier and sequence number.
const SEQ: u32 = 1000;
const WINDOW: u16 = 8192;
const ECHO: &str = "1/1";

/// ICMP messages with names (RFC 792). Others are `type-T-CODE`.
const ICMP: &[(&str, u8, u8)] = &[
    ("echo-reply", 0, 0),
    ("net-unreachable", 3, 0),
    ("host-unreachable", 3, 1),
    ("port-unreachable", 3, 3),
    ("fragmentation-needed", 3, 4),
    ("echo-request", 8, 0),
    ("time-exceeded", 11, 0),
    ("parameter-problem", 12, 0),
];

const fn usual_ttl(way: Way) -> u8 {
    match way {
        Way::In => 64,
        Way::Out => 63,
    }
}

// Lines to frames.

/// The frame that `line` says, on this side of this port. Errors say what is not understood.
pub fn build(line: &Line, port: Port, way: Way) -> Result<Vec<u8>, String> {
    let (ether_type, payload, stations) = match line.head[0].as_str() {
        "raw" => return cut(line, payload(line)?),
        "ether" => {
            let number = line.head.get(1).and_then(|n| u16::from_str_radix(n.trim_start_matches("0x"), 16).ok());
            let number = number.ok_or("write the EtherType in hex: ether 0x86dd …")?;
            (EtherType(number), payload(line)?, (port.mac(), BROADCAST))
        }
        "arp" => {
            let arp = arp(line)?;
            let sender = Ipv4Addr::from(octets(arp.sender_protocol_addr()));
            let request = arp.operation == ArpOperation::REQUEST;
            let target = station(Ipv4Addr::from(octets(arp.target_protocol_addr())));
            let to = if request { BROADCAST } else if way == Way::In { port.mac() } else { target };
            let from = if way == Way::In { station(sender) } else { port.mac() };
            (EtherType::ARP, arp.to_bytes().to_vec(), (from, to))
        }
        _ => {
            let packet = ip(line, usual_ttl(way))?;
            let address = |at: usize| Ipv4Addr::from(octets(&packet[at..at + 4]));
            let stations = match way {
                Way::In => (port.next_station(address(12)), port.mac()),
                Way::Out => (port.mac(), port.next_station(address(16))),
            };
            (EtherType::IPV4, packet, stations)
        }
    };
    let named = |modifier, usual| line.get(modifier).map_or(Ok(usual), mac_named);
    let (source, destination) = (named("from", stations.0)?, named("to", stations.1)?);
    let mut frame = Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec();
    frame.extend(payload);
    if let Some(length) = number::<usize>(line, "frame")? {
        frame.resize(length.max(frame.len()), 0);
    }
    cut(line, frame)
}

fn cut(line: &Line, mut frame: Vec<u8>) -> Result<Vec<u8>, String> {
    frame.truncate(number(line, "cut")?.unwrap_or(frame.len()));
    Ok(frame)
}

/// `arp who-has TARGET tell SENDER` or `arp SENDER is-at MAC tell TARGET`.
fn arp(line: &Line) -> Result<ArpPacket, String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (operation, sender, sender_mac, target, target_mac) = match words[..] {
        ["arp", "who-has", target, "tell", sender] => {
            (ArpOperation::REQUEST, address(sender)?, station(address(sender)?), address(target)?, [0; 6])
        }
        ["arp", sender, "is-at", mac, "tell", target] => {
            (ArpOperation::REPLY, address(sender)?, mac_named(mac)?, address(target)?, station(address(target)?))
        }
        _ => return Err("write: arp who-has TARGET tell SENDER, or: arp SENDER is-at MAC tell TARGET".to_owned()),
    };
    // A question leaves with our NIC port's address as its sender's.
    let sender_mac = line.get("from").map_or(Ok(sender_mac), mac_named)?;
    let (sender, target) = (sender.octets(), target.octets());
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    ArpPacket::new(hardware, protocol, operation, &sender_mac, &sender, &target_mac, &target).map_err(|e| e.to_string())
}

/// The IP packet that `line` says.
fn ip(line: &Line, usual_ttl: u8) -> Result<Vec<u8>, String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (kind, detail, source, destination) = match words[..] {
        ["tcp", source, ">", destination, flags] => ("tcp", flags, source, destination),
        ["tcp" | "udp", source, ">", destination] => (words[0], "", source, destination),
        ["icmp" | "ip", detail, source, ">", destination] => (words[0], detail, source, destination),
        _ => return Err(format!("\"{}\" is no packet: tcp|udp A:P > B:Q, icmp|ip KIND A > B, arp …", words.join(" "))),
    };
    // Without ports: a later fragment, whose payload is just bytes.
    let ports = source.contains(':');
    let (source, destination) = (socket(source)?, socket(destination)?);
    let (from, to) = (source.ip().octets(), destination.ip().octets());
    let data = payload(line)?;
    let bad = line.get("badsum").unwrap_or_default();
    let (protocol, body) = match kind {
        "tcp" if ports => {
            let seq = number(line, "seq")?.unwrap_or(SEQ);
            let mut header = TcpHeader::new(source.port(), destination.port(), seq, number(line, "window")?.unwrap_or(WINDOW));
            header.acknowledgment_number = number(line, "ack")?.unwrap_or(0);
            set_flags(&mut header, detail)?;
            if let Some(options) = line.get("tcpopts") {
                header.set_options_raw(&hex(options)?).map_err(|e| format!("{e:?}"))?;
            }
            header.checksum = header.calc_checksum_ipv4_raw(from, to, &data).map_err(|e| e.to_string())?;
            let mut body = header.to_bytes().to_vec();
            if let Some(offset) = number::<u8>(line, "offset")? {
                let old = [body[12], body[13]];
                body[12] = offset << 4 | body[12] & 0x0f;
                let new = [body[12], body[13]];
                adjust(&mut body, 16, old, new);
            }
            spoil(&mut body, 16, bad.contains("l4"));
            (IpNumber::TCP, [body, data].concat())
        }
        "udp" if ports => {
            let mut header = UdpHeader::with_ipv4_checksum(
                source.port(),
                destination.port(),
                &Ipv4Header::new(0, 64, IpNumber::UDP, from, to).map_err(|e| e.to_string())?,
                &data,
            )
            .map_err(|e| e.to_string())?;
            if let Some(lie) = number(line, "udplen")? {
                header.length = lie;
                header.checksum = header.calc_checksum_ipv4_raw(from, to, &data).map_err(|e| e.to_string())?;
            }
            if line.get("sum") == Some("0") {
                header.checksum = 0;
            }
            let mut body = header.to_bytes().to_vec();
            spoil(&mut body, 6, bad.contains("l4"));
            (IpNumber::UDP, [body, data].concat())
        }
        "tcp" => (IpNumber::TCP, data),
        "udp" => (IpNumber::UDP, data),
        "icmp" => (IpNumber::ICMP, icmp(line, detail, data, bad.contains("l4"))?),
        _ => (IpNumber(detail.parse().map_err(|_| format!("\"{detail}\" is no IP protocol number"))?), data),
    };
    let mut header = Ipv4Header::new(0, number(line, "ttl")?.unwrap_or(usual_ttl), protocol, from, to)
        .map_err(|e| e.to_string())?;
    if let Some(options) = number::<usize>(line, "options")? {
        // No-operations (RFC 791 §3.1), which any router passes on.
        header.options = Ipv4Options::try_from(&vec![1; options][..]).map_err(|e| format!("options {options}: {e:?}"))?;
    }
    if let Some(fragment) = line.get("fragment") {
        header.more_fragments = fragment.ends_with('+');
        let at: u16 = fragment.trim_end_matches('+').parse().map_err(|_| "write fragment BYTE, with + if more follow")?;
        header.fragment_offset = IpFragOffset::try_new(at / 8).map_err(|e| e.to_string())?;
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
    let sum = Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be().to_be_bytes();
    bytes[10..12].copy_from_slice(&sum);
    spoil(&mut bytes, 10, bad.contains("l3"));
    bytes.extend(body);
    Ok(bytes)
}

fn icmp(line: &Line, kind: &str, data: Vec<u8>, bad: bool) -> Result<Vec<u8>, String> {
    let (type_u8, code_u8) = match ICMP.iter().find(|(name, ..)| *name == kind) {
        Some((_, type_u8, code_u8)) => (*type_u8, *code_u8),
        None => kind
            .strip_prefix("type-")
            .and_then(|numbers| numbers.split_once('-'))
            .and_then(|(kind, code)| Some((kind.parse().ok()?, code.parse().ok()?)))
            .ok_or_else(|| format!("\"{kind}\" is no ICMP message"))?,
    };
    let bytes5to8 = match type_u8 {
        0 | 8 => {
            let (id, seq) = line.get("echo").unwrap_or(ECHO).split_once('/').ok_or("write echo ID/SEQ")?;
            let half = |text: &str| text.parse::<u16>().map(u16::to_be_bytes).map_err(|_| "write echo ID/SEQ");
            let ([a, b], [c, d]) = (half(id)?, half(seq)?);
            [a, b, c, d]
        }
        _ => {
            let [a, b] = number::<u16>(line, "mtu")?.unwrap_or(0).to_be_bytes();
            [0, 0, a, b]
        }
    };
    let data = line.quoted.as_ref().map_or(Ok(data), |quoted| ip(quoted, usual_ttl(Way::In)))?;
    let header = Icmpv4Header::with_checksum(Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 }, &data);
    let mut body = header.to_bytes().to_vec();
    spoil(&mut body, 2, bad);
    body.extend(data);
    Ok(body)
}

/// Makes the checksum at `at` wrong by one bit.
fn spoil(bytes: &mut [u8], at: usize, bad: bool) {
    bytes[at] ^= u8::from(bad) << 4;
}

/// Keeps the checksum at `at` right while a word changes.
fn adjust(bytes: &mut [u8], at: usize, old: [u8; 2], new: [u8; 2]) {
    let sum = [!bytes[at], !bytes[at + 1]];
    let old = [!old[0], !old[1]];
    let sum = Sum16BitWords::new().add_2bytes(sum).add_2bytes(old).add_2bytes(new);
    bytes[at..at + 2].copy_from_slice(&sum.ones_complement().to_be().to_be_bytes());
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

fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|i| i as u8).collect()
}

fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let bytes = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<_>>().ok_or_else(|| format!("\"{digits}\" is not hex"))
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

fn flags(tcp: &TcpSlice<'_>) -> String {
    let set = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), 'A'),
        (tcp.urg(), 'U'),
        (tcp.ece(), 'E'),
        (tcp.cwr(), 'W'),
    ];
    let letters: String = set.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
    if letters.is_empty() { "-".to_owned() } else { letters }
}

fn number<N: std::str::FromStr>(line: &Line, modifier: &str) -> Result<Option<N>, String> {
    let value = line.get(modifier).map(|text| text.parse().map_err(|_| format!("{modifier} {text}: not in range")));
    value.transpose()
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no IPv4 address"))
}

fn socket(text: &str) -> Result<SocketAddrV4, String> {
    match text.split_once(':') {
        None => Ok(SocketAddrV4::new(address(text)?, 0)),
        Some(_) => text.parse().map_err(|_| format!("\"{text}\" is no IPv4 address and port")),
    }
}

fn octets(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().unwrap()
}

// Frames to lines.

/// What `frame` is, seen on this side of this port. What cannot be dissected is `raw`.
pub fn dissect(frame: &[u8], port: Port, way: Way) -> Line {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else { return raw("raw", frame) };
    let packet = ethernet.payload_slice();
    let (mut line, usual) = match ethernet.ether_type() {
        EtherType::IPV4 => match Ipv4HeaderSlice::from_slice(packet) {
            Ok(header) => {
                let mut line = ip_line(packet, usual_ttl(way));
                let length = usize::from(header.total_len());
                if packet.len() > length {
                    line.set("frame", frame.len());
                }
                let usual = match way {
                    Way::In => (port.next_station(header.source_addr()), port.mac()),
                    Way::Out => (port.mac(), port.next_station(header.destination_addr())),
                };
                (line, usual)
            }
            Err(_) => (raw("ether 0x0800", packet), (port.mac(), BROADCAST)),
        },
        EtherType::ARP => arp_line(packet, port, way),
        EtherType(other) => (raw(&format!("ether {other:#06x}"), packet), (port.mac(), BROADCAST)),
    };
    let unusual = |mac: Mac, usual: Mac| (mac != usual).then(|| mac_name(mac));
    if let Some(from) = unusual(ethernet.source(), usual.0) {
        line.set("from", from);
    }
    if let Some(to) = unusual(ethernet.destination(), usual.1) {
        line.set("to", to);
    }
    line
}

fn raw(head: &str, bytes: &[u8]) -> Line {
    let mut line = Line { head: head.split(' ').map(str::to_owned).collect(), ..Line::default() };
    line.set("hex", digits(bytes));
    line
}

fn arp_line(packet: &[u8], port: Port, way: Way) -> (Line, (Mac, Mac)) {
    let Some(arp) = ArpPacketSlice::from_slice(packet).ok().and_then(|a| a.to_packet().try_eth_ipv4().ok()) else {
        return (raw("ether 0x0806", packet), (port.mac(), BROADCAST));
    };
    let (sender, target) = (Ipv4Addr::from(arp.sender_ipv4), Ipv4Addr::from(arp.target_ipv4));
    let request = arp.operation == ArpOperation::REQUEST;
    let head = if request {
        format!("arp who-has {target} tell {sender}")
    } else {
        format!("arp {sender} is-at {} tell {target}", mac_name(arp.sender_mac))
    };
    let line = Line { head: head.split(' ').map(str::to_owned).collect(), ..Line::default() };
    let to = if request { BROADCAST } else if way == Way::In { port.mac() } else { station(target) };
    let from = if way == Way::In { station(sender) } else { port.mac() };
    (line, (from, to))
}

/// An IP packet, perhaps cut short as in an ICMP error's quotation.
fn ip_line(packet: &[u8], usual_ttl: u8) -> Line {
    let Ok(slice) = Ipv4HeaderSlice::from_slice(packet) else { return raw("raw", packet) };
    let header = slice.to_header();
    let (start, end) = (slice.slice().len(), usize::from(header.total_len));
    if end < start {
        return raw("raw", packet);
    }
    let whole = packet.len() >= end;
    let body = &packet[start..end.min(packet.len())];
    let mut line = Line::default();
    let mut bad = Vec::new();
    if !sums_up(Sum16BitWords::new().add_slice(slice.slice())) {
        bad.push("l3");
    }
    let fragment = header.is_fragmenting_payload();
    let later = header.fragment_offset.value() > 0;
    let verifiable = whole && !fragment;
    let right = if later { None } else { transport(&mut line, &header, body, verifiable) };
    match right {
        None => {
            line = Line::default();
            let kind = match header.protocol {
                IpNumber::TCP => "tcp".to_owned(),
                IpNumber::UDP => "udp".to_owned(),
                IpNumber(number) => format!("ip {number}"),
            };
            let [from, to] = [header.source, header.destination].map(Ipv4Addr::from);
            line.head = format!("{kind} {from} > {to}").split(' ').map(str::to_owned).collect();
            print_payload(&mut line, body);
        }
        Some(false) if verifiable => bad.push("l4"),
        Some(_) => {}
    }
    if !bad.is_empty() {
        line.set("badsum", bad.join("+"));
    }
    if !whole {
        line.set("length", end);
    }
    if header.time_to_live != usual_ttl {
        line.set("ttl", header.time_to_live);
    }
    if !header.options.is_empty() {
        line.set("options", header.options.len());
    }
    if fragment {
        let more = if header.more_fragments { "+" } else { "" };
        line.set("fragment", format!("{}{more}", header.fragment_offset.value() * 8));
    }
    // What an ICMP error's own header carries here is its sender's free choice (RFC 1812 §4.3.2).
    if line.quoted.is_none() {
        let fields = [("id", header.identification), ("tos", packet[1].into())];
        fields.iter().filter(|(_, value)| *value != 0).for_each(|(name, value)| line.set(name, value));
        if header.dont_fragment {
            line.set("df", "");
        }
    }
    line
}

/// Head and modifiers of the transport; whether its checksum verifies. `None` if it cannot be read.
fn transport(line: &mut Line, ip: &Ipv4Header, body: &[u8], verifiable: bool) -> Option<bool> {
    let [from, to] = [ip.source, ip.destination].map(Ipv4Addr::from);
    let mut say = |head: String| line.head = head.split(' ').map(str::to_owned).collect();
    match ip.protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(body).ok()?;
            say(format!("tcp {from}:{} > {to}:{} {}", tcp.source_port(), tcp.destination_port(), flags(&tcp)));
            let fields = [
                ("seq", tcp.sequence_number(), SEQ),
                ("ack", tcp.acknowledgment_number(), 0),
                ("window", tcp.window_size().into(), WINDOW.into()),
            ];
            fields.iter().filter(|(_, value, usual)| value != usual).for_each(|(name, value, _)| line.set(name, value));
            if !tcp.options().is_empty() {
                line.set("tcpopts", digits(tcp.options()));
            }
            print_payload(line, tcp.payload());
            let pseudo = Sum16BitWords::new().add_4bytes(ip.source).add_4bytes(ip.destination);
            let pseudo = pseudo.add_2bytes([0, 6]).add_2bytes((body.len() as u16).to_be_bytes());
            Some(sums_up(pseudo.add_slice(body)))
        }
        IpNumber::UDP => {
            let udp = if verifiable { UdpSlice::from_slice(body) } else { UdpSlice::from_slice_lax(body) }.ok()?;
            say(format!("udp {from}:{} > {to}:{}", udp.source_port(), udp.destination_port()));
            print_payload(line, udp.payload());
            if udp.checksum() == 0 {
                line.set("sum", 0);
                return Some(true);
            }
            // Never 0 (RFC 768): no second way to write it.
            Some(udp.checksum() == udp.to_header().calc_checksum_ipv4(ip, udp.payload()).ok()?)
        }
        IpNumber::ICMP => {
            let icmp = Icmpv4Slice::from_slice(body).ok()?;
            let (type_u8, code_u8, bytes5to8) = (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8());
            let name = ICMP.iter().find(|(_, kind, code)| (*kind, *code) == (type_u8, code_u8));
            let name = name.map_or_else(|| format!("type-{type_u8}-{code_u8}"), |(name, ..)| (*name).to_owned());
            say(format!("icmp {name} {from} > {to}"));
            let [a, b, c, d] = bytes5to8;
            match type_u8 {
                0 | 8 => {
                    let echo = format!("{}/{}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    if echo != ECHO {
                        line.set("echo", echo);
                    }
                    print_payload(line, icmp.payload());
                }
                3 | 5 | 11 | 12 => {
                    let mtu = u16::from_be_bytes([c, d]);
                    if mtu != 0 {
                        line.set("mtu", mtu);
                    }
                    line.quoted = Some(Box::new(ip_line(icmp.payload(), usual_ttl(Way::In))));
                }
                _ => print_payload(line, icmp.payload()),
            }
            Some(sums_up(Sum16BitWords::new().add_slice(body)))
        }
        _ => None,
    }
}

/// What includes its own checksum sums up to 0 (RFC 1071). Over the bytes as they are: etherparse's headers forget
/// reserved bits.
fn sums_up(sum: Sum16BitWords) -> bool {
    sum.ones_complement() == 0
}

fn print_payload(line: &mut Line, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if bytes.iter().all(|b| (b' '..=b'~').contains(b) && *b != b'"') {
        line.text = Some(String::from_utf8_lossy(bytes).into_owned());
    } else if *bytes == counting(bytes.len())[..] {
        line.set("bytes", bytes.len());
    } else {
        line.set("hex", digits(bytes));
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_packet_dissects_to_the_line_it_was_built_of() {
    for text in [
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 S",
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 PA df tos 16 id 7 ttl 3 options 4 seq 9 ack 8 window 7 tcpopts 01010101 \"x\"",
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 -",
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 A badsum l3+l4 bytes 1400",
        "udp 10.244.0.11:53 > 10.96.0.10:53 sum 0 hex ff00",
        "udp 10.244.0.11:53 > 10.96.0.10:53 badsum l4 frame 60",
        "udp 10.244.0.11:53 > 10.96.0.10:53 id 9 fragment 0+ bytes 16",
        "udp 10.244.0.11 > 10.96.0.10 id 9 fragment 24 bytes 16",
        "icmp echo-request 10.244.0.11 > 10.96.0.10 echo 3/4 \"ping\"",
        "icmp fragmentation-needed 10.244.0.1 > 10.244.0.11 quoting [udp 1.2.3.4:5 > 6.7.8.9:10 ttl 1 \"q\"] mtu 1400",
        "icmp type-15-0 10.244.0.1 > 10.244.0.11",
        "ip 47 10.244.0.11 > 10.96.0.10 hex 00ff",
        "udp 10.244.0.11:53 > 10.96.0.10:53 from @10.244.0.12 to broadcast",
        "arp who-has 10.244.0.1 tell 10.244.0.11",
        "arp 10.244.0.11 is-at @10.244.0.11 tell 10.244.0.1",
        "ether 0x86dd hex 6000",
    ] {
        let line = Line::parse(text).unwrap();
        for way in [Way::In, Way::Out] {
            let frame = build(&line, Port::Pods, way).unwrap();
            let again = dissect(&frame, Port::Pods, way);
            // A question of a pod's does not come from us.
            let ours = way == Way::Out && line.head[0] == "arp";
            assert!(ours || again.to_string() == text, "{way:?}: {text}: {again}");
        }
    }
}

#[test]
fn every_single_bit_error_in_a_packet_shows_in_its_line() {
    for text in [
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 SA options 4 \"text\"",
        "udp 198.51.100.10:40000 > 10.96.0.10:53 \"text\"",
        "icmp echo-request 198.51.100.10 > 10.96.0.10 \"text\"",
    ] {
        let frame = build(&Line::parse(text).unwrap(), Port::Client, Way::In).unwrap();
        for bit in 0..frame.len() * 8 {
            let mut broken = frame.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(dissect(&broken, Port::Client, Way::In).to_string(), text, "bit {bit} of {text}");
        }
    }
}

#[test]
fn a_quotation_that_was_cut_short_says_how_long_the_packet_was() {
    let inner = ip(&Line::parse("udp 1.2.3.4:5 > 6.7.8.9:10 bytes 100").unwrap(), 64).unwrap();
    let line = ip_line(&inner[..60], 64);
    assert_eq!(line.to_string(), "udp 1.2.3.4:5 > 6.7.8.9:10 length 128 bytes 32");
}
