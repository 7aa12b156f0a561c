//! How far a flow has come: the states of all protocols, and which of them may be given up when the table is full.

use super::flow::Direction;
use super::{sctp, tcp};
use crate::addr::Protocol;

/// How far a flow has come (section 4 of the semantics; Linux' names). It decides the idle timeout and what is evicted: a
/// known flow's packets are translated in every state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// No flow.
    #[default]
    Free,
    /// TCP: SYN seen.
    SynSent,
    /// TCP: SYN seen from both sides (simultaneous open).
    SynSent2,
    /// TCP: SYN and its SYN+ACK seen.
    SynRecv,
    /// TCP: handshake complete.
    Established,
    /// TCP: one FIN seen.
    FinWait,
    /// TCP: that FIN acknowledged.
    CloseWait,
    /// TCP: second FIN seen.
    LastAck,
    /// TCP: that one acknowledged, too.
    TimeWait,
    /// TCP: RST seen.
    Close,
    /// Any protocol without a state machine: packets from the client only.
    Unreplied,
    /// Any protocol without a state machine: packets from both sides.
    Replied,
    /// TCP: found midway (CT-15), and the endpoint has not answered yet. Linux has no name for it; without one, a flood of
    /// ACKs would be a flood of established connections.
    Midstream,
    /// SCTP: ended.
    SctpClosed,
    /// SCTP: INIT seen.
    CookieWait,
    /// SCTP: COOKIE ECHO seen.
    CookieEchoed,
    /// SCTP: COOKIE ACK seen, or an answer to what was found midway.
    SctpEstablished,
    /// SCTP: SHUTDOWN seen from the client.
    ShutdownSent,
    /// SCTP: SHUTDOWN seen from the endpoint.
    ShutdownRecd,
    /// SCTP: SHUTDOWN ACK seen.
    ShutdownAckSent,
    /// SCTP: found midway (CT-15), usually by a HEARTBEAT.
    HeartbeatSent,
    /// TCP: RST seen in an established connection, and nothing but RST since. Linux has no name for it.
    Reset,
    /// SCTP: ABORT seen from the client of an association that the endpoint knows.
    SctpAborted,
}

/// What a packet does to its flow, or to none (`State::Free`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// The flow's state after the packet.
    Next(State),
    /// A new connection on the tuple of one that has ended: replace the flow (CT-16).
    Reopen,
    /// There is no flow, and this packet cannot open one.
    Invalid,
}

/// Why a flow may be given up for a new one (CT-18). What is none of these is never evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispensable {
    /// Its connection has ended.
    Finished,
    /// Its connection never came about, so far: a SYN, INIT or lone ACK that anybody can forge.
    Embryonic,
    /// No answer has come, so far.
    Unreplied,
}

/// By state and direction: which signals count, and what they must be for the state to stay.
const STAYS: [(u8, u8); 2 * State::ALL.len()] = {
    let mut stays = [(0, 1); 2 * State::ALL.len()]; // never
    let mut direction = 0;
    while direction < 2 {
        stays[State::Established as usize * 2 + direction] = tcp::BULK;
        stays[State::Replied as usize * 2 + direction] = (0, 0);
        direction += 1;
    }
    stays[State::Unreplied as usize * 2 + Direction::Original as usize] = (0, 0);
    stays
};

impl State {
    /// Every state, in storage order.
    pub const ALL: [Self; 23] = [
        Self::Free,
        Self::SynSent,
        Self::SynSent2,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Unreplied,
        Self::Replied,
        Self::Midstream,
        Self::SctpClosed,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::SctpEstablished,
        Self::ShutdownSent,
        Self::ShutdownRecd,
        Self::ShutdownAckSent,
        Self::HeartbeatSent,
        Self::Reset,
        Self::SctpAborted,
    ];

    /// State of a flow that a packet of `protocol` opens; `None` for a packet that cannot. `signals` is what `parse` found:
    /// TCP's flags, or the set of SCTP's chunks.
    pub fn opening(protocol: Protocol, signals: u8) -> Option<Self> {
        match Self::Free.advance(protocol, Direction::Original, signals) {
            Advance::Next(state) => Some(state),
            Advance::Reopen | Advance::Invalid => None,
        }
    }

    /// As a flow's first state: it was under way before we saw it (CT-15).
    pub const fn is_midstream(self) -> bool {
        matches!(self, Self::Midstream | Self::CookieEchoed | Self::HeartbeatSent)
    }

    /// Whether a packet surely leaves a flow in the state that is stored as `state`, as nearly every one does: one look
    /// instead of `advance`. Never of SCTP.
    #[inline(always)]
    pub(super) fn stays(state: u8, direction: Direction, signals: u8) -> bool {
        let at = usize::from(state) * 2 + direction as usize;
        STAYS.get(at).is_some_and(|(mask, only)| signals & mask == *only)
    }

    /// What a packet of `protocol` does in this state.
    #[inline(always)]
    pub(super) const fn advance(self, protocol: Protocol, direction: Direction, signals: u8) -> Advance {
        match (protocol, direction) {
            (Protocol::TCP, _) => tcp::advance(self, direction, signals),
            (Protocol::SCTP, _) => sctp::advance(self, direction, signals),
            (_, Direction::Reply) => Advance::Next(Self::Replied),
            (_, Direction::Original) => Advance::Next(match self {
                Self::Free => Self::Unreplied,
                state => state,
            }),
        }
    }

    /// Whether a flow of `protocol` can be in this state.
    pub(super) const fn is_of(self, protocol: Protocol) -> bool {
        match self {
            Self::Free => false,
            Self::SynSent
            | Self::SynSent2
            | Self::SynRecv
            | Self::Established
            | Self::FinWait
            | Self::CloseWait
            | Self::LastAck
            | Self::TimeWait
            | Self::Close
            | Self::Reset
            | Self::Midstream => matches!(protocol, Protocol::TCP),
            Self::SctpClosed
            | Self::SctpAborted
            | Self::CookieWait
            | Self::CookieEchoed
            | Self::SctpEstablished
            | Self::ShutdownSent
            | Self::ShutdownRecd
            | Self::ShutdownAckSent
            | Self::HeartbeatSent => matches!(protocol, Protocol::SCTP),
            Self::Unreplied | Self::Replied => !matches!(protocol, Protocol::TCP | Protocol::SCTP),
        }
    }

    /// Why a flow in this state may be evicted, if it may.
    pub const fn dispensable(self) -> Option<Dispensable> {
        match self {
            Self::TimeWait | Self::Close | Self::Reset | Self::SctpClosed | Self::SctpAborted => {
                Some(Dispensable::Finished)
            }
            Self::SynSent
            | Self::SynSent2
            | Self::SynRecv
            | Self::Midstream
            | Self::CookieWait
            | Self::CookieEchoed
            | Self::HeartbeatSent => Some(Dispensable::Embryonic),
            Self::Unreplied => Some(Dispensable::Unreplied),
            _ => None,
        }
    }

    /// Half open: counted against the embryonic cap.
    #[inline]
    pub const fn is_embryonic(self) -> bool {
        matches!(self.dispensable(), Some(Dispensable::Embryonic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_cannot_open_a_tcp_flow_open_any_without_a_machine() {
        assert_eq!(State::opening(Protocol::TCP, tcp::SYN), Some(State::SynSent));
        assert_eq!(State::opening(Protocol::TCP, tcp::RST), None);
        assert_eq!(State::opening(Protocol::UDP, tcp::RST), Some(State::Unreplied));
    }

    #[test]
    fn every_state_that_packets_lead_to_is_one_of_its_protocol() {
        for protocol in [Protocol::TCP, Protocol::SCTP, Protocol::UDP] {
            for state in State::ALL
                .into_iter()
                .filter(|s| *s == State::Free || s.is_of(protocol))
            {
                for (direction, signals) in Direction::BOTH
                    .into_iter()
                    .flat_map(|d| (0..=u8::MAX).map(move |s| (d, s)))
                {
                    if let Advance::Next(next) = state.advance(protocol, direction, signals) {
                        assert!(next.is_of(protocol), "{state:?} to {next:?} by {signals:#04x}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_packet_of_a_known_flow_is_ever_invalid() {
        // CT-14: it is translated, whatever it says.
        for protocol in [Protocol::TCP, Protocol::SCTP] {
            for state in State::ALL.into_iter().filter(|s| s.is_of(protocol)) {
                for (direction, signals) in Direction::BOTH
                    .into_iter()
                    .flat_map(|d| (0..=u8::MAX).map(move |s| (d, s)))
                {
                    assert_ne!(state.advance(protocol, direction, signals), Advance::Invalid);
                }
            }
        }
    }

    #[test]
    fn a_packet_that_surely_changes_nothing_changes_nothing() {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP] {
            for state in State::ALL.into_iter().filter(|s| s.is_of(protocol)) {
                for (direction, signals) in Direction::BOTH
                    .into_iter()
                    .flat_map(|d| (0..=u8::MAX).map(move |s| (d, s)))
                {
                    if State::stays(state as u8, direction, signals) {
                        assert_eq!(state.advance(protocol, direction, signals), Advance::Next(state));
                    }
                }
            }
        }
    }
}
