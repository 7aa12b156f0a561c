//! SYNs that are followed: each has a sequence number of its own, which nothing on the way changes, and everybody who
//! sees it, an answer to it or an error about it tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::cluster::Station;

/// What a station saw of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The probe itself; how many hops it may still go.
    Syn(u8),
    /// An answer that accepts.
    Accepted,
    /// An answer that resets.
    Reset,
    /// An error that quotes it: port unreachable, or likewise.
    Unreachable,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: &'static str,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) what: What,
}

/// One SYN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) number: u32,
    pub(crate) station: Station,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// Stations that watch all their interfaces.
pub(crate) struct Watch {
    seen: Receiver<(u32, Seen)>,
}

/// Nothing more is expected after so much silence: every way here takes less than a millisecond, and who resolves a
/// neighbour first takes a few.
const SILENCE: Duration = Duration::from_millis(150);
/// Probes sent at once: less than any ring or queue on the way holds.
const BATCH: usize = 32;
/// linux/if_ether.h ETH_P_ALL, in network order.
const EVERYTHING: u32 = 3_u16.to_be() as u32;

impl Watch {
    pub(crate) fn start(stations: impl IntoIterator<Item = Station>) -> Self {
        let (tell, seen) = channel();
        for station in stations {
            let tell = tell.clone();
            let socket = station.host.enter(|| {
                let everything = NonZeroU32::new(EVERYTHING).map(Protocol::from_raw);
                rustix::net::socket_with(
                    AddressFamily::PACKET,
                    SocketType::RAW,
                    SocketFlags::CLOEXEC,
                    everything,
                )
                .unwrap()
            });
            thread::spawn(move || watch(station.host.0, &socket, &tell));
        }
        Self { seen }
    }

    /// Sends the probes, those whose sender hears nothing again, as TCP would, so many times at most; gives what was seen
    /// of each.
    pub(crate) fn send(&self, probes: &[Probe], times: usize) -> BTreeMap<u32, Vec<Seen>> {
        while self.seen.try_recv().is_ok() {}
        let mut found: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
        for _ in 0..times {
            let open: Vec<Probe> = probes
                .iter()
                .filter(|probe| !is_answered(probe, found.get(&probe.number)))
                .copied()
                .collect();
            if open.is_empty() {
                break;
            }
            for batch in open.chunks(BATCH) {
                batch.iter().for_each(send);
                while let Ok((number, seen)) = self.seen.recv_timeout(Duration::from_millis(2)) {
                    found.entry(number).or_default().push(seen);
                }
            }
            while let Ok((number, seen)) = self.seen.recv_timeout(SILENCE) {
                found.entry(number).or_default().push(seen);
            }
        }
        found
    }
}

/// Whether its sender heard anything, or will not: who gets a packet from itself throws it away.
fn is_answered(probe: &Probe, seen: Option<&Vec<Seen>>) -> bool {
    let heard = |seen: &Seen| match seen.what {
        What::Syn(_) => seen.from.ip() == seen.to.ip(),
        _ => seen.at == probe.station.host.0,
    };
    seen.is_some_and(|seen| seen.iter().any(heard))
}

fn watch(at: &'static str, socket: &impl std::os::fd::AsFd, tell: &Sender<(u32, Seen)>) {
    let mut frame = [0; 2048];
    loop {
        let Ok((len, _)) = rustix::net::recv(socket, &mut frame[..], RecvFlags::empty()) else {
            return;
        };
        let packet = match frame[..len] {
            [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, ..]
            | [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] => &frame[14..len],
            _ => continue,
        };
        let Some((number, from, to, what)) = read(packet) else {
            continue;
        };
        if tell.send((number, Seen { at, from, to, what })).is_err() {
            return;
        }
    }
}

/// A packet's probe, its addresses, and what it is to the probe.
fn read(packet: &[u8]) -> Option<(u32, SocketAddr, SocketAddr, What)> {
    let (from, to, protocol, hops, payload) = ip(packet)?;
    let word = |at: usize| Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?));
    match (protocol, payload.first()?) {
        (6, _) => {
            let ports = word(0)?;
            let (from, to) = (
                SocketAddr::new(from, (ports >> 16) as u16),
                SocketAddr::new(to, ports as u16),
            );
            let (sequence, acknowledged) = (word(4)?, word(8)?.wrapping_sub(1));
            Some(match payload.get(13)? & 0x17 {
                0x02 => (sequence, from, to, What::Syn(hops)),
                0x12 => (acknowledged, from, to, What::Accepted),
                0x14 => (acknowledged, from, to, What::Reset),
                _ => return None,
            })
        }
        // Destination unreachable, quoting.
        (1, 3) | (58, 1) => {
            let (number, _, _, what) = read(payload.get(8..)?)?;
            let about = (SocketAddr::new(from, 0), SocketAddr::new(to, 0));
            matches!(what, What::Syn(_)).then_some((number, about.0, about.1, What::Unreachable))
        }
        _ => None,
    }
}

/// Source, destination, protocol, hops left, payload.
fn ip(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, u8, &[u8])> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            Some((
                v4(12)?,
                v4(16)?,
                *packet.get(9)?,
                *packet.get(8)?,
                packet.get(header..)?,
            ))
        }
        _ => Some((
            v6(8)?,
            v6(24)?,
            *packet.get(6)?,
            *packet.get(7)?,
            packet.get(40..)?,
        )),
    }
}

/// Sends a SYN as the station's own stack would route it.
fn send(probe: &Probe) {
    let Probe {
        number,
        station,
        from,
        to,
    } = *probe;
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{probe:?} is of two families"),
    };
    let mut packet = Vec::new();
    builder
        .tcp(from.port(), to.port(), number, 65_535)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    station.host.enter(move || {
        let family = if to.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        // With this protocol the IP header is the sender's own (raw(7)).
        let protocol = NonZeroU32::new(255).map(Protocol::from_raw);
        let socket =
            rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
        // On the node itself a rule that drops or rejects is an error of the sender: what is seen tells.
        let _ = rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0));
    });
}
