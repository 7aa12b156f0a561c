//! Frames to lines. Every bit of a frame shows: in the line, or as a `badsum`.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeader,
    Ipv6HeaderSlice, Ipv6RawExtHeader, SingleVlanSlice, TcpSlice, UdpSlice,
};

use super::{
    ECHO, EXTENSIONS, ICMP, ICMPV6, Icmp, SEQ, Side, WINDOW, arp_stations, counting, end_text, icmp_field,
    ip_stations, nd, pseudo_header, sctp, usual_ttl,
};
use crate::support::line::Line;
use crate::support::station::{BROADCAST, Mac, Port, mac_name};

/// What `frame` is, seen on this side of this port. What cannot be dissected is `raw`.
pub fn dissect(frame: &[u8], port: Port, side: Side) -> Line {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else {
        return raw("raw", frame);
    };
    let (mut ether_type, mut packet) = (ethernet.ether_type(), ethernet.payload_slice());
    let mut tag = None;
    if ether_type == EtherType::VLAN_TAGGED_FRAME
        && let Ok(vlan) = SingleVlanSlice::from_slice(packet)
    {
        tag = Some(u16::from_be_bytes([packet[0], packet[1]]));
        (ether_type, packet) = (vlan.ether_type(), vlan.payload_slice());
    }
    let (mut line, usual) = match ether_type {
        EtherType::IPV4 | EtherType::IPV6 => match Ip::of(packet, ether_type) {
            Some(ip) => {
                let solicited = match (ip.from, ip.to) {
                    _ if ip.protocol != IpNumber::IPV6_ICMP || !ip.is_simple(packet) => None,
                    (IpAddr::V6(from), IpAddr::V6(to)) => ip.neighbour_discovery(from, to, ethernet.source()),
                    _ => None,
                };
                let stations = ip_stations(ip.from, ip.to, port, side);
                let (mut line, stations) = match (solicited, ip.from) {
                    (Some(line), IpAddr::V6(from)) => {
                        (line, (nd::usual_station(from, port, side), stations.1))
                    }
                    _ => (ip.line(usual_ttl(side)), stations),
                };
                if packet.len() > ip.total {
                    line.set("frame", frame.len());
                }
                (line, stations)
            }
            None => (
                raw(&format!("ether {:#06x}", ether_type.0), packet),
                (port.mac(), BROADCAST),
            ),
        },
        EtherType::ARP => arp_line(&ethernet, packet, port, side),
        EtherType(other) => (
            raw(&format!("ether {other:#06x}"), packet),
            (port.mac(), BROADCAST),
        ),
    };
    let unusual = |mac: Mac, usual: Mac| (mac != usual).then(|| mac_name(mac));
    if let Some(from) = unusual(ethernet.source(), usual.0) {
        line.set("from", from);
    }
    if let Some(to) = unusual(ethernet.destination(), usual.1) {
        line.set("to", to);
    }
    if let Some(tag) = tag {
        line.set("vlan", tag);
    }
    line
}

fn raw(head: &str, bytes: &[u8]) -> Line {
    let mut line = Line::default();
    say(&mut line, head);
    line.set("hex", digits(bytes));
    line
}

fn say(line: &mut Line, head: &str) {
    line.head = head.split(' ').map(str::to_owned).collect();
}

fn arp_line(ethernet: &Ethernet2Slice<'_>, packet: &[u8], port: Port, side: Side) -> (Line, (Mac, Mac)) {
    let Some(arp) = ArpPacketSlice::from_slice(packet)
        .ok()
        .and_then(|a| a.to_packet().try_eth_ipv4().ok())
    else {
        return (raw("ether 0x0806", packet), (port.mac(), BROADCAST));
    };
    let (sender, target) = (Ipv4Addr::from(arp.sender_ipv4), Ipv4Addr::from(arp.target_ipv4));
    let request = arp.operation == ArpOperation::REQUEST;
    let head = if request {
        format!("arp who-has {target} tell {sender}")
    } else {
        format!("arp {sender} is-at {} tell {target}", mac_name(arp.sender_mac))
    };
    let mut line = Line::default();
    say(&mut line, &head);
    // A question is from its frame's sender; an answer says so in its head, and is to its frame's addressee.
    if request && arp.sender_mac != ethernet.source() {
        line.set("sha", mac_name(arp.sender_mac));
    }
    if arp.target_mac != if request { [0; 6] } else { ethernet.destination() } {
        line.set("tha", mac_name(arp.target_mac));
    }
    if packet.len() > ARP_LEN {
        line.set("frame", ethernet.slice().len());
    }
    (
        line,
        arp_stations(request, sender.into(), target.into(), port, side),
    )
}

/// An ARP packet about IPv4 on Ethernet (RFC 826).
const ARP_LEN: usize = 28;

/// An IP packet of either family, perhaps cut short as in an ICMP error's quotation.
struct Ip<'a> {
    from: IpAddr,
    to: IpAddr,
    /// Of the body; of a fragmented one, what the first fragment begins with.
    protocol: IpNumber,
    ttl: u8,
    /// Fields that are 0 where they are not written.
    fields: Vec<(&'static str, u32)>,
    df: bool,
    ext: Vec<String>,
    /// The offset, and whether more follow.
    fragment: Option<(u16, bool)>,
    /// Whether the header's own checksum is right.
    sum_ok: bool,
    /// What its header says is its length, and what that field holds.
    total: usize,
    length: u16,
    /// Whether all of it is there.
    whole: bool,
    body: &'a [u8],
}

impl<'a> Ip<'a> {
    fn of(packet: &'a [u8], family: EtherType) -> Option<Self> {
        if family == EtherType::IPV4 {
            Self::v4(packet)
        } else {
            Self::v6(packet)
        }
    }

    fn v4(packet: &'a [u8]) -> Option<Self> {
        let slice = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let header = slice.to_header();
        let (start, total) = (slice.slice().len(), usize::from(header.total_len));
        (total >= start).then(|| Self {
            from: header.source.into(),
            to: header.destination.into(),
            protocol: header.protocol,
            ttl: header.time_to_live,
            fields: vec![
                ("options", header.options.len() as u32),
                ("id", header.identification.into()),
                ("tos", packet[1].into()),
            ],
            df: header.dont_fragment,
            ext: Vec::new(),
            fragment: header
                .is_fragmenting_payload()
                .then(|| (header.fragment_offset.value() * 8, header.more_fragments)),
            sum_ok: sums_up(Sum16BitWords::new().add_slice(slice.slice())),
            total,
            length: header.total_len,
            whole: packet.len() >= total,
            body: &packet[start..total.min(packet.len())],
        })
    }

    fn v6(packet: &'a [u8]) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(packet).ok()?.to_header();
        let total = 40 + usize::from(header.payload_length);
        let mut body = &packet[40..total.min(packet.len())];
        let mut fields = vec![
            ("tos", header.traffic_class.into()),
            ("label", header.flow_label.value()),
        ];
        let (mut protocol, mut ext, mut fragment) = (header.next_header, Vec::new(), None);
        loop {
            if protocol == IpNumber::IPV6_FRAGMENTATION_HEADER {
                let Ok((header, rest)) = Ipv6FragmentHeader::from_slice(body) else {
                    break;
                };
                // Reserved bits would not show.
                if header.to_bytes()[..] != body[..8] {
                    break;
                }
                fields.push(("id", header.identification));
                fragment = Some((header.fragment_offset.value() * 8, header.more_fragments));
                (protocol, body) = (header.next_header, rest);
                break;
            }
            let Some((name, _, usual)) = EXTENSIONS.iter().find(|(_, number, _)| *number == protocol) else {
                break;
            };
            let Ok((header, rest)) = Ipv6RawExtHeader::from_slice(body) else {
                break;
            };
            ext.push(if header.payload() == usual {
                (*name).to_owned()
            } else {
                format!("{name}={}", digits(header.payload()))
            });
            (protocol, body) = (header.next_header, rest);
        }
        Some(Self {
            from: header.source.into(),
            to: header.destination.into(),
            protocol,
            ttl: header.hop_limit,
            fields,
            df: false,
            ext,
            fragment,
            sum_ok: true,
            total,
            length: header.payload_length,
            whole: packet.len() >= total,
            body,
        })
    }

    /// Nothing that a neighbour discovery line could not say.
    fn is_simple(&self, packet: &[u8]) -> bool {
        self.fragment.is_none() && self.ext.is_empty() && packet.len() >= self.total && self.body.len() >= 8
    }

    fn neighbour_discovery(
        &self,
        from: std::net::Ipv6Addr,
        to: std::net::Ipv6Addr,
        sender: Mac,
    ) -> Option<Line> {
        if self.body[1] != 0 {
            return None;
        }
        let mut line = nd::dissect(self.body[0], &self.body[4..], from, to, sender)?;
        if !self.verifies(IpNumber::IPV6_ICMP) {
            line.set("badsum", "l4");
        }
        if self.ttl != 255 {
            line.set("ttl", self.ttl);
        }
        self.print_fields(&mut line);
        Some(line)
    }

    fn verifies(&self, protocol: IpNumber) -> bool {
        sums_up(pseudo_header(self.from, self.to, protocol, self.body.len()).add_slice(self.body))
    }

    fn print_fields(&self, line: &mut Line) {
        self.fields
            .iter()
            .filter(|(_, value)| *value != 0)
            .for_each(|(name, value)| line.set(name, value));
    }

    fn line(&self, usual_ttl: u8) -> Line {
        let mut line = Line::default();
        let mut bad = Vec::new();
        if !self.sum_ok {
            bad.push("l3");
        }
        let part = self.fragment.is_some_and(|(at, more)| at > 0 || more);
        let verifiable = self.whole && !part;
        let later = self.fragment.is_some_and(|(at, _)| at > 0);
        let right = if later {
            None
        } else {
            transport(&mut line, self, verifiable)
        };
        match right {
            None => {
                line = Line::default();
                let kind = match self.protocol {
                    IpNumber::TCP => "tcp".to_owned(),
                    IpNumber::UDP => "udp".to_owned(),
                    IpNumber::SCTP => "sctp".to_owned(),
                    IpNumber(number) => format!("ip {number}"),
                };
                say(&mut line, &format!("{kind} {} > {}", self.from, self.to));
                print_payload(&mut line, self.body);
            }
            Some(false) if verifiable => bad.push("l4"),
            Some(_) => {}
        }
        if !bad.is_empty() {
            line.set("badsum", bad.join("+"));
        }
        if !self.whole {
            line.set("length", self.length);
        }
        if self.ttl != usual_ttl {
            line.set("ttl", self.ttl);
        }
        if !self.ext.is_empty() {
            line.set("ext", self.ext.join(","));
        }
        if let Some((at, more)) = self.fragment {
            line.set("fragment", format!("{at}{}", if more { "+" } else { "" }));
        }
        // What an ICMP error's own header carries here is its sender's free choice (RFC 1812 §4.3.2).
        if line.quoted.is_none() {
            self.print_fields(&mut line);
            if self.df {
                line.set("df", "");
            }
        }
        line
    }
}

/// Head and modifiers of the transport; whether its checksum verifies. `None` if it cannot be read.
fn transport(line: &mut Line, ip: &Ip<'_>, verifiable: bool) -> Option<bool> {
    let body = ip.body;
    let ends = |from: u16, to: u16| {
        format!(
            "{} > {}",
            end_text(ip.from, Some(from)),
            end_text(ip.to, Some(to))
        )
    };
    match ip.protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(body).ok()?;
            let ends = ends(tcp.source_port(), tcp.destination_port());
            say(line, &format!("tcp {ends} {}", flags(&tcp)));
            let fields = [
                ("seq", tcp.sequence_number(), SEQ),
                ("ack", tcp.acknowledgment_number(), 0),
                ("window", tcp.window_size().into(), WINDOW.into()),
            ];
            fields
                .iter()
                .filter(|(_, value, usual)| value != usual)
                .for_each(|(name, value, _)| line.set(name, value));
            if !tcp.options().is_empty() {
                line.set("tcpopts", digits(tcp.options()));
            }
            print_payload(line, tcp.payload());
            Some(ip.verifies(IpNumber::TCP))
        }
        IpNumber::UDP => {
            let udp = if verifiable {
                UdpSlice::from_slice(body)
            } else {
                UdpSlice::from_slice_lax(body)
            }
            .ok()?;
            let ends = ends(udp.source_port(), udp.destination_port());
            say(line, &format!("udp {ends}"));
            print_payload(line, udp.payload());
            if verifiable && usize::from(udp.length()) != body.len() {
                line.set("udplen", udp.length());
            }
            if udp.checksum() == 0 {
                line.set("sum", 0);
                return Some(true);
            }
            // A sum of 0 is sent as 0xffff (RFC 768), so there is one way to write each.
            let pseudo = pseudo_header(ip.from, ip.to, IpNumber::UDP, udp.length().into());
            Some(sums_up(pseudo.add_slice(udp.slice())))
        }
        IpNumber::SCTP => {
            let (&[a, b, c, d, e, f, g, h], rest) = body.split_first_chunk::<8>()?;
            let (crc, chunks) = rest.split_first_chunk::<4>()?;
            let ends = ends(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let chunks = if verifiable {
                sctp::dissect_chunks(chunks, line)?
            } else {
                print_payload(line, chunks);
                "-".to_owned()
            };
            say(line, &format!("sctp {ends} {chunks}"));
            let tag = u32::from_be_bytes([e, f, g, h]);
            if tag != sctp::usual_tag(&chunks) {
                line.set("vtag", tag);
            }
            let mut zeroed = body.to_vec();
            zeroed[8..12].fill(0);
            Some(sctp::crc32c(&zeroed).to_le_bytes() == *crc)
        }
        IpNumber::ICMP if ip.from.is_ipv4() => {
            icmp(line, ip, false)?;
            Some(sums_up(Sum16BitWords::new().add_slice(body)))
        }
        IpNumber::IPV6_ICMP if ip.from.is_ipv6() => {
            icmp(line, ip, true)?;
            Some(ip.verifies(IpNumber::IPV6_ICMP))
        }
        _ => None,
    }
}

fn icmp(line: &mut Line, ip: &Ip<'_>, v6: bool) -> Option<()> {
    let (&[kind, code, _, _], rest) = ip.body.split_first_chunk::<4>()?;
    let (&field, payload) = rest.split_first_chunk::<4>()?;
    let names = if v6 { ICMPV6 } else { ICMP };
    let name = names
        .iter()
        .find(|(_, known, known_code)| (*known, *known_code) == (kind, code))
        .map_or_else(|| format!("type-{kind}-{code}"), |(name, ..)| (*name).to_owned());
    say(line, &format!("icmp {name} {} > {}", ip.from, ip.to));
    let is = Icmp::of(v6, kind);
    if is == Icmp::Echo {
        let [id, seq] = [[field[0], field[1]], [field[2], field[3]]].map(u16::from_be_bytes);
        let echo = format!("{id}/{seq}");
        if echo != ECHO {
            line.set("echo", echo);
        }
    } else if field != [0; 4] {
        let pointer = matches!((v6, kind), (false, 12) | (true, 4));
        let value = match (v6, pointer) {
            (false, true) => field[0].into(),
            (false, false) => u16::from_be_bytes([field[2], field[3]]).into(),
            (true, _) => u32::from_be_bytes(field),
        };
        let named = matches!((v6, kind), (false, 3 | 12) | (true, 2 | 4));
        if named && icmp_field(v6, pointer, value) == field {
            line.set(if pointer { "pointer" } else { "mtu" }, value);
        } else {
            line.set("rest", digits(&field));
        }
    }
    let family = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    match Ip::of(payload, family) {
        Some(quoted) if is == Icmp::Error && payload.len() <= quoted.total => {
            line.quoted = Some(Box::new(quoted.line(usual_ttl(Side::In))));
        }
        _ => print_payload(line, payload),
    }
    Some(())
}

/// What includes its own checksum sums up to 0 (RFC 1071). Over the bytes as they are: etherparse's headers forget
/// reserved bits.
fn sums_up(sum: Sum16BitWords) -> bool {
    sum.ones_complement() == 0
}

pub(super) fn print_payload(line: &mut Line, bytes: &[u8]) {
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

pub(super) fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
    let letters: String = set
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, letter)| letter)
        .collect();
    if letters.is_empty() {
        "-".to_owned()
    } else {
        letters
    }
}

#[test]
fn a_quotation_that_was_cut_short_says_how_long_the_packet_was() {
    for (text, told) in [
        (
            "udp 1.2.3.4:5 > 6.7.8.9:10 bytes 100",
            "udp 1.2.3.4:5 > 6.7.8.9:10 length 128 bytes 32",
        ),
        (
            "udp [fd00::1]:5 > [fd00::2]:10 bytes 100",
            "udp [fd00::1]:5 > [fd00::2]:10 length 108 bytes 12",
        ),
    ] {
        let frame = super::build(&Line::parse(text).unwrap(), Port::Client, Side::In).unwrap();
        let family = if text.contains('[') {
            EtherType::IPV6
        } else {
            EtherType::IPV4
        };
        let line = Ip::of(&frame[14..74], family).unwrap().line(64);
        assert_eq!(line.to_string(), told);
    }
}
