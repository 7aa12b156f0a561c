//! Is a translated packet right? Reads headers with etherparse's slices and sums with the generator's own arithmetic, so
//! that no code is on both sides of the question.

use std::fmt;
use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};

use super::layout::{Family, IP, l4};
use super::stamp::{self, Stamp};
use super::template::{Segment, fold, pseudo, words};
use super::world::{Socket, World};

/// Units of TCP's time stamps: 64 ns, so that 32 bits last 4 minutes.
pub const TIME_UNIT: u64 = 64;
/// Bits of a TCP sequence number below the flow's.
pub const FLOW_SHIFT: u32 = 11;

/// What can be wrong with a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wrong {
    /// A header that contradicts itself, or a length that is not the frame's.
    Header,
    /// The IPv4 header's checksum.
    IpChecksum,
    /// UDP's or TCP's checksum.
    Checksum,
    /// Bytes of the payload.
    Payload,
    /// Not exactly one hop was counted.
    Ttl,
    /// Toward pods: not an endpoint of the Service that the client asked. Toward clients: not the client that asked.
    Destination,
    /// Toward pods: a source that is neither as it was nor ours, whichever it should be. Toward clients: not the
    /// frontend that was asked.
    Source,
    /// Toward clients: an endpoint's own address.
    Leak,
    /// Another endpoint than the flow's packets before.
    Moved,
}

impl Wrong {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Header,
        Self::IpChecksum,
        Self::Checksum,
        Self::Payload,
        Self::Ttl,
        Self::Destination,
        Self::Source,
        Self::Leak,
        Self::Moved,
    ];
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::IpChecksum => "ip_checksum",
            Self::Checksum => "checksum",
            Self::Payload => "payload",
            Self::Ttl => "ttl",
            Self::Destination => "destination",
            Self::Source => "source",
            Self::Leak => "leak",
            Self::Moved => "moved",
        })
    }
}

/// What a right packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its flow.
    pub flow: u32,
    /// When it was due; nanoseconds.
    pub due: u64,
    /// What it is.
    pub what: What,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A datagram, and its place in the flow.
    Udp(u32),
    /// A segment, and the bytes of its data.
    Tcp(Segment, u32),
}

/// The outcome for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// As it should be.
    Right(Arrived),
    /// Ours, but not as it should be.
    Wrong(Wrong),
    /// Not of this trial: neighbour discovery, what is late from the one before.
    Foreign,
}

/// A frame's parts, before anything is said about who they are of.
struct Parts<'a> {
    source: Socket,
    destination: Socket,
    ttl: u8,
    payload: &'a [u8],
    segment: Option<Segment>,
    sums: Result<(), Wrong>,
}

/// What an IP header says.
struct Header {
    addresses: (IpAddr, IpAddr),
    protocol: IpNumber,
    ttl: u8,
    sum: Result<(), Wrong>,
}

/// Reads one of either family, without options or fragments, of a packet that is all there.
#[inline]
fn header(family: Family, packet: &[u8]) -> Option<Header> {
    match family {
        Family::V4 => {
            let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
            let plain = ip.slice().len() == 20 && !ip.is_fragmenting_payload();
            let sum = if fold(words(ip.slice())) == 0xffff {
                Ok(())
            } else {
                Err(Wrong::IpChecksum)
            };
            plain.then(|| Header {
                addresses: (ip.source_addr().into(), ip.destination_addr().into()),
                protocol: ip.protocol(),
                ttl: ip.ttl(),
                sum,
            })
        }
        Family::V6 => {
            let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
            Some(Header {
                addresses: (ip.source_addr().into(), ip.destination_addr().into()),
                protocol: ip.next_header(),
                ttl: ip.hop_limit(),
                sum: Ok(()),
            })
        }
    }
}

#[inline]
fn parts(frame: &[u8]) -> Result<Parts<'_>, Judgement> {
    const FOREIGN: Judgement = Judgement::Foreign;
    const BROKEN: Judgement = Judgement::Wrong(Wrong::Header);
    let family = Family::of_frame(frame).ok_or(FOREIGN)?;
    let header = header(family, &frame[IP..]).ok_or(BROKEN)?;
    let tcp = header.protocol == IpNumber::TCP;
    if !tcp && header.protocol != IpNumber::UDP {
        return Err(FOREIGN);
    }
    let l4 = frame.get(family.l4()..family.end(frame)).ok_or(BROKEN)?;
    let (ports, payload, segment) = if tcp {
        let header = TcpHeaderSlice::from_slice(l4).map_err(|_| BROKEN)?;
        let segment = Segment::get(l4).ok_or(FOREIGN)?;
        let ports = (header.source_port(), header.destination_port());
        (ports, &l4[l4::TCP_PAYLOAD..], Some(segment))
    } else {
        let header = UdpHeaderSlice::from_slice(l4).map_err(|_| BROKEN)?;
        if usize::from(header.length()) != l4.len() {
            return Err(BROKEN);
        }
        let ports = (header.source_port(), header.destination_port());
        (ports, &l4[l4::UDP_PAYLOAD..], None)
    };
    // Our datagrams always have a checksum: one that has none any more was not translated but erased.
    let covered = tcp || l4[l4::UDP_CHECKSUM..l4::UDP_PAYLOAD] != [0, 0];
    let sums = header.sum.and_then(|()| {
        if covered && fold(pseudo(family, frame, l4.len()) + words(l4)) == 0xffff {
            Ok(())
        } else {
            Err(Wrong::Checksum)
        }
    });
    Ok(Parts {
        source: (header.addresses.0, ports.0),
        destination: (header.addresses.1, ports.1),
        ttl: header.ttl,
        payload,
        segment,
        sums,
    })
}

/// The trial that is judged.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// Who is who.
    pub world: &'a World,
    /// Flows 0 to this.
    pub flows: u32,
    /// Its number.
    pub trial: u16,
    /// When it began, ns.
    pub began: u64,
    /// Now, ns.
    pub now: u64,
}

impl Judge<'_> {
    /// A frame that came out toward the pods; and which of its service's endpoints it goes to.
    #[inline]
    pub fn at_pods(&self, frame: &[u8]) -> (Judgement, u32) {
        let parts = match parts(frame) {
            Ok(parts) => parts,
            Err(judgement) => return (judgement, 0),
        };
        let Some(arrived) = self.arrived(&parts, |segment| (segment.sequence, segment.times[0])) else {
            return (Judgement::Foreign, 0);
        };
        if let Err(wrong) = self.sound(&parts) {
            return (Judgement::Wrong(wrong), 0);
        }
        let endpoint = match self.world.endpoint_at(parts.destination) {
            Some((service, endpoint)) if service == self.world.service(arrived.flow) => endpoint,
            _ => return (Judgement::Wrong(Wrong::Destination), 0),
        };
        let kept = parts.source == self.world.client(arrived.flow);
        let right = if self.world.snat.is_empty() {
            kept
        } else {
            !kept && self.world.snat.contains(&parts.source.0)
        };
        if !right {
            return (Judgement::Wrong(Wrong::Source), 0);
        }
        (Judgement::Right(arrived), endpoint)
    }

    /// A frame that came back to the clients.
    #[inline]
    pub fn at_clients(&self, frame: &[u8]) -> Judgement {
        let parts = match parts(frame) {
            Ok(parts) => parts,
            Err(judgement) => return judgement,
        };
        // First, whatever else it is: nobody outside may see where a Service's endpoints are.
        if !self.world.direct && self.world.endpoint_at(parts.source).is_some() {
            return Judgement::Wrong(Wrong::Leak);
        }
        let Some(arrived) = self.arrived(&parts, |segment| (segment.acknowledges, segment.times[1])) else {
            return Judgement::Foreign;
        };
        if let Err(wrong) = self.sound(&parts) {
            return Judgement::Wrong(wrong);
        }
        if parts.destination != self.world.client(arrived.flow) {
            return Judgement::Wrong(Wrong::Destination);
        }
        if parts.source != self.world.frontend(arrived.flow) {
            return Judgement::Wrong(Wrong::Source);
        }
        Judgement::Right(arrived)
    }

    fn sound(&self, parts: &Parts<'_>) -> Result<(), Wrong> {
        parts.sums?;
        if !stamp::filled(parts.payload) {
            return Err(Wrong::Payload);
        }
        if parts.ttl == 63 { Ok(()) } else { Err(Wrong::Ttl) }
    }

    /// What it says of itself; `None` if it is not of this trial. `client`: the number and the time that the client
    /// gave.
    #[inline]
    fn arrived(&self, parts: &Parts<'_>, client: impl Fn(Segment) -> (u32, u32)) -> Option<Arrived> {
        let arrived = match parts.segment {
            Some(segment) => {
                let (number, time) = client(segment);
                let age = ((self.now / TIME_UNIT) as u32).wrapping_sub(time);
                Arrived {
                    flow: number >> FLOW_SHIFT,
                    due: self.now.saturating_sub(u64::from(age) * TIME_UNIT),
                    what: What::Tcp(segment, parts.payload.len() as u32),
                }
            }
            None => {
                let stamp = Stamp::read(parts.payload).filter(|stamp| stamp.trial == self.trial)?;
                Arrived {
                    flow: stamp.flow,
                    due: stamp.due,
                    what: What::Udp(stamp.sequence),
                }
            }
        };
        (arrived.flow < self.flows && arrived.due.saturating_add(TIME_UNIT) >= self.began).then_some(arrived)
    }
}

#[cfg(test)]
mod tests;
