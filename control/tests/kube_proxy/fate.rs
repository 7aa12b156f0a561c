//! What became of a packet, in the words of the records, and of many packets of one row together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::bed::{Bed, Seen};
use crate::packet::Packet;
use crate::topology::{self, KERNEL, Nic, Station, having, named};

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// It reached an endpoint, and the endpoint's answer came back to the client from where the client had sent to.
    Endpoint {
        name: String,
        source: String,
        kept: bool,
        port: u16,
        hops: u8,
    },
    /// An ICMP error came back.
    Icmp(IcmpError),
    /// It left untranslated, to this station.
    PassedOn(String),
    /// It went to the node's own stack as it was.
    Host,
    /// It went to an endpoint, and its checksum was as wrong there as it had been here.
    StillWrong,
    /// Nothing left, and one drop was counted.
    Silence,
    /// None of these, which nobody wants.
    Odd(String),
}

/// An ICMP error, as the records describe it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IcmpError {
    pub(crate) kind: (u8, u8),
    pub(crate) from: IpAddr,
    /// Its length from the IP header on.
    pub(crate) len: usize,
    /// How much of the original it quotes.
    pub(crate) quoted: usize,
}

impl std::fmt::Display for IcmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((kind, code), from) = (self.kind, self.from);
        write!(
            f,
            "ICMP {kind}/{code} from {from}, {} bytes, {} quoted",
            self.len, self.quoted
        )
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endpoint {
                name, source, port, ..
            } => write!(f, "{name}:{port} as {source}"),
            Self::Icmp(error) => error.fmt(f),
            Self::PassedOn(station) => write!(f, "passed on to {station}"),
            Self::Host => f.write_str("the node's own"),
            Self::StillWrong => f.write_str("translated, its checksum as wrong as before"),
            Self::Silence => f.write_str("silence"),
            Self::Odd(what) => write!(f, "ODD: {what}"),
        }
    }
}

/// Sends a packet and, if it reaches an endpoint, the endpoint's answer.
pub(crate) fn fate(bed: &mut Bed, from: &Station, sent: &Packet) -> Fate {
    let before = bed.dropped();
    let seen = bed.send(from, sent);
    match &seen[..] {
        [] if bed.dropped() == before + 1 => Fate::Silence,
        [] => Fate::Odd(format!(
            "lost without a word, {} drops counted",
            bed.dropped() - before
        )),
        [one] if quotes(&one.packet, sent) => error(from, one, sent),
        [one] => forwarded(bed, from, one, sent),
        more => Fate::Odd(format!("{} packets: {more:?}", more.len())),
    }
}

/// Where a packet that reached an endpoint of this name must have gone: NIC port and next station.
pub(crate) fn place(station: &Station) -> (Nic, sluice_dataplane::addr::Mac) {
    (station.nic, station.mac())
}

fn forwarded(bed: &mut Bed, from: &Station, seen: &Seen, sent: &Packet) -> Fate {
    let packet = &seen.packet;
    let untouched = Packet {
        hops: sent.hops,
        ..packet.clone()
    } == *sent;
    if untouched && seen.nic == Nic::Host && seen.to == KERNEL && packet.hops == sent.hops {
        return Fate::Host;
    }
    if packet.hops + 1 != sent.hops {
        return Fate::Odd(format!(
            "hop limit {} became {}: {packet:?}",
            sent.hops, packet.hops
        ));
    }
    if untouched {
        let next = ["client", "rtr"]
            .into_iter()
            .find(|name| place(named(name)) == (seen.nic, seen.to));
        return next.map_or_else(
            || Fate::Odd(format!("{seen:?}")),
            |name| Fate::PassedOn(name.into()),
        );
    }
    let Some(endpoint) = having(packet.dst).filter(|station| place(station) == (seen.nic, seen.to)) else {
        return Fate::Odd(format!("{seen:?}"));
    };
    if !sent.is_sound() && !packet.is_sound() {
        return Fate::StillWrong;
    }
    // A datagram without a checksum has none afterwards (CSM-1).
    let without = |p: &Packet| p.protocol == crate::packet::UDP && p.number(6) == 0;
    if packet.is_sound() != sent.is_sound() || without(packet) != without(sent) {
        return Fate::Odd(format!("wrong checksum: {packet:?}"));
    }
    // SCTP and the others: ports (4 bytes), and a checksum somewhere; all else is the sender's.
    if same_payload(packet, sent).is_none() {
        return Fate::Odd(format!("payload changed: {packet:?}"));
    }
    let kept = packet.sport() == sent.sport();
    let source = match topology::kind(packet.src) {
        _ if packet.src == sent.src && packet.src == packet.dst => "client-kept-no-reply-possible",
        _ if packet.src == sent.src && kept => "client-kept",
        _ if packet.src == sent.src && topology::kind(sent.src).is_none() => "client-kept, another port",
        Some(kind) => kind,
        None => return Fate::Odd(format!("from a stranger: {packet:?}")),
    };
    let fate = Fate::Endpoint {
        name: endpoint.name.into(),
        source: source.into(),
        kept,
        port: packet.dport(),
        hops: packet.hops,
    };
    if packet.src == packet.dst {
        return fate; // the endpoint's kernel discards it
    }
    answered(bed, from, endpoint, packet, sent).map_or(fate, Fate::Odd)
}

/// The endpoint answers; what is wrong with what comes of it.
fn answered(
    bed: &mut Bed,
    from: &Station,
    endpoint: &Station,
    got: &Packet,
    sent: &Packet,
) -> Option<String> {
    let answer = got.answer();
    let seen = bed.send(endpoint, &answer);
    let [back] = &seen[..] else {
        return Some(format!("{} packets for the answer {answer:?}", seen.len()));
    };
    let packet = &back.packet;
    let ends = |p: &Packet| ((p.src, p.sport()), (p.dst, p.dport()));
    let right = (back.nic, back.to) == place(from)
        && ends(packet) == ((sent.dst, sent.dport()), (sent.src, sent.sport()))
        && packet.hops + 1 == answer.hops
        && packet.is_sound()
        && same_payload(packet, &answer).is_some();
    (!right).then(|| format!("the answer came back as {back:?}"))
}

/// Whether both are alike but for addresses, hop limit, ports and checksums.
pub(crate) fn same_payload(a: &Packet, b: &Packet) -> Option<()> {
    let neutral = |p: &Packet| {
        let mut bytes = p.transport.clone();
        bytes.iter_mut().take(4).for_each(|byte| *byte = 0);
        let checksum = p.checksum_at().map_or(8..12, |at| at..at + 2);
        bytes.get_mut(checksum)?.fill(0);
        Some((p.protocol, bytes))
    };
    (neutral(a)? == neutral(b)?).then_some(())
}

/// Whether this is an ICMP error to the sender of `sent`.
fn quotes(packet: &Packet, sent: &Packet) -> bool {
    let kind = packet.transport.first();
    let error = match packet.src {
        IpAddr::V4(_) => matches!(kind, Some(3 | 11 | 12)),
        IpAddr::V6(_) => matches!(kind, Some(1..=4)),
    };
    packet.is_icmp() && error && packet.dst == sent.src
}

fn error(from: &Station, seen: &Seen, sent: &Packet) -> Fate {
    let packet = &seen.packet;
    let quote = packet.transport.get(8..).unwrap_or_default();
    // Addresses and everything after the IP header as sent; hop limit and IPv4's checksum may be older or newer.
    let same = |quote: &[u8]| {
        let whole = sent.bytes();
        let differ = |i: &usize| match sent.src {
            IpAddr::V4(_) => !matches!(i, 8 | 10 | 11),
            IpAddr::V6(_) => *i != 7,
        };
        quote.len() <= whole.len() && (0..quote.len()).filter(differ).all(|i| quote[i] == whole[i])
    };
    if place(from) != (seen.nic, seen.to) || !packet.is_sound() || !same(quote) {
        return Fate::Odd(format!("an ICMP error that is wrong: {seen:?}"));
    }
    Fate::Icmp(IcmpError {
        kind: (packet.transport[0], packet.transport[1]),
        from: packet.src,
        len: packet.len(),
        quoted: quote.len(),
    })
}

/// Fates of several packets as one line: each kind once, in order.
pub(crate) fn summary(fates: &[Fate]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for fate in fates {
        *counts.entry(fate.to_string()).or_default() += 1;
    }
    counts.into_keys().collect::<Vec<_>>().join("; ")
}
