//! Takes  a packet to be answered.          Gives  the ICMP message that answers it, in a buffer of its own.
//! Drops  RejectForbidden (RJ-4), RejectRateLimited (RJ-3, `limit`), Truncated, NoFrame.
//! Never  reads a clock, a table or a counter; never opens a flow (RJ-5); never changes the packet it quotes.
//! Next   `tx`.

use crate::addr::{Mac, Protocol};
use crate::parse::{Fragment, Packet};
use crate::verdict::{DropReason, Rejection};
use crate::wire::{Ethernet, Icmp, Sctp, Tcp, Udp, icmp};

mod answer;
mod limit;

pub use answer::Answer;
pub use limit::RateLimiter;

/// Longest IP packet that answers: every host must be able to take it (RFC 8200 §5; IPv4's are shorter).
const ANSWER_MAX: usize = 1280;

/// Longest frame that `icmp_error` builds, with room for a VLAN tag.
pub const ANSWER_FRAME_MAX: usize = 18 + ANSWER_MAX;

/// Builds in `out` the frame that answers the rejected packet (RJ-1, TTL-1), to go back to the station it came from, and
/// gives its length. `original_frame` is as received: not yet rewritten (RJ-2). `from`: an address of ours. `out` may
/// hold anything; `ANSWER_FRAME_MAX` bytes always suffice.
///
/// Errors: `RejectForbidden` where RJ-4 allows no answer, or where a port would be refused in a packet whose transport
/// checksum is wrong (its port cannot be believed); `NoFrame` if `out` is too short; `Truncated` if `packet` is not of
/// `original_frame`.
pub fn icmp_error<A: Answer>(
    original_frame: &[u8],
    packet: &Packet<A>,
    rejection: Rejection,
    from: A,
    out: &mut [u8],
) -> Result<usize, DropReason> {
    may_answer(original_frame, packet, rejection)?;
    let original = Original::of(original_frame, packet)?;
    let quote = &original.ip[..original.ip.len().min(A::QUOTE_MAX)];
    let head = A::error(rejection);
    original.answer(packet, head, quote, from, A::ERROR_CLASS, out)
}

/// Whether the rejected packet may be answered at all: to be asked before a token of the rate limit is spent on it.
/// Errors: as `icmp_error`.
pub fn may_answer<A: Answer>(
    original_frame: &[u8],
    packet: &Packet<A>,
    rejection: Rejection,
) -> Result<(), DropReason> {
    let original = Original::of(original_frame, packet)?;
    // A host would have found the port closed only after the checksum (RFC 1122 §4.1.3.4); a router whose time to live
    // ran out never looked at it.
    let believed = rejection != Rejection::PortUnreachable || original.transport_checksum_ok(packet);
    if !original.may_be_answered(packet, rejection) || !believed {
        return Err(DropReason::RejectForbidden);
    }
    Ok(())
}

/// Builds in `out` the echo reply to the request (PING-1), from the address that it asked, and gives its length. `out`
/// must have room for the request.
///
/// Errors: `RejectForbidden` if it is no whole echo request with a right checksum or comes from where nothing may be
/// answered; `NoFrame` if `out` is too short; `Truncated` if `packet` is not of `original_frame`.
pub fn echo_reply<A: Answer>(
    original_frame: &[u8],
    packet: &Packet<A>,
    out: &mut [u8],
) -> Result<usize, DropReason> {
    let original = Original::of(original_frame, packet)?;
    let request = original.transport.split_first_chunk::<{ icmp::HEADER_LEN }>();
    let allowed = packet.is_echo_request()
        && packet.fragment == Fragment::Whole
        && original.between_stations(packet)
        && !packet.key.dst.is_group()
        && original.transport_checksum_ok(packet);
    match request {
        Some((&[_, code, _, _, a, b, c, d], data)) if allowed => {
            let head = [A::ECHO_REPLY, code, 0, 0, a, b, c, d];
            let class = A::traffic_class(original.ip);
            original.answer(packet, head, data, packet.key.dst, class, out)
        }
        _ => Err(DropReason::RejectForbidden),
    }
}

/// The parts of a packet to be answered.
struct Original<'a> {
    link: &'a [u8],
    ethernet: Ethernet<&'a [u8]>,
    ip: &'a [u8],
    transport: &'a [u8],
}

impl<'a> Original<'a> {
    fn of<A: Answer>(frame: &'a [u8], packet: &Packet<A>) -> Result<Self, DropReason> {
        let part = |from: u16, to: u16| {
            frame
                .get(usize::from(from)..usize::from(to))
                .ok_or(DropReason::Truncated)
        };
        let link = part(0, packet.l3)?;
        let ip = part(packet.l3, packet.end)?;
        if ip.len() < A::HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        Ok(Self {
            link,
            ethernet: Ethernet::new(link)?,
            ip,
            transport: part(packet.l4, packet.end)?,
        })
    }

    /// Writes the answer: back to the station that sent the original, from `from`, an ICMP message of `head` and `body`.
    fn answer<A: Answer>(
        &self,
        packet: &Packet<A>,
        head: [u8; icmp::HEADER_LEN],
        body: &[u8],
        from: A,
        class: u8,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        let (l3, message) = (self.link.len(), A::HEADER_LEN + icmp::HEADER_LEN);
        let len = l3 + message + body.len();
        let out = out.get_mut(..len).ok_or(DropReason::NoFrame)?;
        let (out_link, out_ip) = out.split_at_mut(l3);
        out_link.copy_from_slice(self.link);
        let mut answer_link = Ethernet::new(out_link)?;
        answer_link.set_dst(self.ethernet.src());
        answer_link.set_src(self.ethernet.dst());
        out_ip[A::HEADER_LEN..message].copy_from_slice(&head);
        out_ip[message..].copy_from_slice(body);
        A::seal(out_ip, from, packet.key.src, class)?;
        Ok(len)
    }

    /// RJ-4, RFC 1122 §3.2.2, RFC 4443 §2.4 (e): an error may answer neither an error nor what names many stations or
    /// none; but IPv6 tells a sender to a group what is too big for a link, or its path would never be found.
    fn may_be_answered<A: Answer>(&self, packet: &Packet<A>, rejection: Rejection) -> bool {
        // The type as the packet has it: 0 in `Packet` is also a header that a first fragment lacks.
        let about_an_error = packet.key.protocol == A::ICMP
            && !Icmp::partial(self.transport).is_ok_and(|message| A::may_be_answered(message.icmp_type()));
        let to_group = packet.key.dst.is_group() || self.ethernet.dst().is_group();
        let group_allowed = A::CHECKSUM.is_none() && matches!(rejection, Rejection::TooBig { .. });
        packet.fragment != Fragment::Later
            && !about_an_error
            && packet.key.src.can_send()
            && is_station(self.ethernet.src())
            && (!to_group || group_allowed)
    }

    fn between_stations<A: Answer>(&self, packet: &Packet<A>) -> bool {
        packet.key.src.can_send() && is_station(self.ethernet.src()) && is_station(self.ethernet.dst())
    }

    /// False if the transport checksum is certainly wrong. A first fragment's cannot be known, and other protocols have
    /// none that is checked here: they are answered.
    fn transport_checksum_ok<A: Answer>(&self, packet: &Packet<A>) -> bool {
        if packet.fragment != Fragment::Whole {
            return true;
        }
        let (src, dst, bytes) = (packet.key.src, packet.key.dst, self.transport);
        match packet.key.protocol {
            Protocol::TCP => Tcp::new(bytes).is_ok_and(|tcp| tcp.checksum_ok(src, dst)),
            Protocol::UDP => Udp::new(bytes).is_ok_and(|udp| udp.checksum_ok(src, dst)),
            Protocol::SCTP => Sctp::new(bytes).is_ok_and(|sctp| sctp.checksum_ok()),
            protocol if protocol == A::ICMP => A::icmp_checksum_ok(bytes, src, dst),
            _ => true,
        }
    }
}

/// The address names one station. A tap's frames may come from none at all.
fn is_station(mac: Mac) -> bool {
    !mac.is_group()
}

#[cfg(test)]
mod tests;
