//! Lines to frames, with the lies a line asks for.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type,
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, TcpHeader, UdpHeader,
};

use super::{ECHO, ICMP, SEQ, Side, WINDOW, arp_stations, counting, ip_stations, usual_ttl};
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
            let number = number.ok_or("write the EtherType in hex: ether 0x86dd …")?;
            (EtherType(number), payload(line)?, (port.mac(), BROADCAST))
        }
        "arp" => {
            let arp = arp(line, port, side)?;
            let [sender, target] = [arp.sender_protocol_addr(), arp.target_protocol_addr()].map(ip_address);
            let stations = arp_stations(arp.operation, sender, target, port, side);
            (EtherType::ARP, arp.to_bytes().to_vec(), stations)
        }
        _ => {
            let packet = ip(line, usual_ttl(side))?;
            let stations = ip_stations(
                ip_address(&packet[12..16]),
                ip_address(&packet[16..20]),
                port,
                side,
            );
            (EtherType::IPV4, packet, stations)
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
    let (sender, target) = (address(sender)?, address(target)?);
    let usual = arp_stations(operation, sender, target, port, side);
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

/// The IP packet that `line` says.
fn ip(line: &Line, usual_ttl: u8) -> Result<Vec<u8>, String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (kind, detail, source, destination) = match words[..] {
        ["tcp", source, ">", destination, flags] => ("tcp", flags, source, destination),
        ["tcp" | "udp", source, ">", destination] => (words[0], "", source, destination),
        ["icmp" | "ip", detail, source, ">", destination] => (words[0], detail, source, destination),
        _ => {
            return Err(format!(
                "\"{}\" is no packet: tcp|udp A:P > B:Q, icmp|ip KIND A > B, arp …",
                words.join(" ")
            ));
        }
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
            let mut header = TcpHeader::new(
                source.port(),
                destination.port(),
                seq,
                number(line, "window")?.unwrap_or(WINDOW),
            );
            header.acknowledgment_number = number(line, "ack")?.unwrap_or(0);
            set_flags(&mut header, detail)?;
            if let Some(options) = line.get("tcpopts") {
                header
                    .set_options_raw(&hex(options)?)
                    .map_err(|e| format!("{e:?}"))?;
            }
            header.checksum = header
                .calc_checksum_ipv4_raw(from, to, &data)
                .map_err(|e| e.to_string())?;
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
                header.checksum = header
                    .calc_checksum_ipv4_raw(from, to, &data)
                    .map_err(|e| e.to_string())?;
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
        _ => (
            IpNumber(
                detail
                    .parse()
                    .map_err(|_| format!("\"{detail}\" is no IP protocol number"))?,
            ),
            data,
        ),
    };
    let mut header = Ipv4Header::new(0, number(line, "ttl")?.unwrap_or(usual_ttl), protocol, from, to)
        .map_err(|e| e.to_string())?;
    if let Some(options) = number::<usize>(line, "options")? {
        // No-operations (RFC 791 §3.1), which any router passes on.
        header.options =
            Ipv4Options::try_from(&vec![1; options][..]).map_err(|e| format!("options {options}: {e:?}"))?;
    }
    if let Some(fragment) = line.get("fragment") {
        header.more_fragments = fragment.ends_with('+');
        let at: u16 = fragment
            .trim_end_matches('+')
            .parse()
            .map_err(|_| "write fragment BYTE, with + if more follow")?;
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
    let sum = Sum16BitWords::new()
        .add_slice(&bytes)
        .ones_complement()
        .to_be()
        .to_be_bytes();
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
            let ([a, b], [c, d]) = (half(id)?, half(seq)?);
            [a, b, c, d]
        }
        _ => {
            let [a, b] = number::<u16>(line, "mtu")?.unwrap_or(0).to_be_bytes();
            [0, 0, a, b]
        }
    };
    let data = line
        .quoted
        .as_ref()
        .map_or(Ok(data), |quoted| ip(quoted, usual_ttl(Side::In)))?;
    let header = Icmpv4Header::with_checksum(
        Icmpv4Type::Unknown {
            type_u8,
            code_u8,
            bytes5to8,
        },
        &data,
    );
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
    let sum = Sum16BitWords::new()
        .add_2bytes(sum)
        .add_2bytes(old)
        .add_2bytes(new);
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

fn hex(digits: &str) -> Result<Vec<u8>, String> {
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

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no IPv4 address"))
}

fn socket(text: &str) -> Result<SocketAddrV4, String> {
    match text.split_once(':') {
        None => Ok(SocketAddrV4::new(address(text)?, 0)),
        Some(_) => text
            .parse()
            .map_err(|_| format!("\"{text}\" is no IPv4 address and port")),
    }
}

fn ip_address(bytes: &[u8]) -> Ipv4Addr {
    <[u8; 4]>::try_from(bytes).unwrap().into()
}
