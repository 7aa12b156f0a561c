//! Takes a TCP flow's state, a packet's direction and flags; gives the next state. Pure.
//!
//! State follows the flags alone (CT-14): windows and sequence numbers are not tracked, so loss, reordering and paths
//! that pass us by cannot make a known flow's packet "invalid". Flags that mean nothing in a state leave it as it is.
//! The transitions are those of Linux (nf_conntrack_proto_tcp), where an ignored or invalid packet stays where it was.

use super::flow::{Direction, State};

/// No more data from the sender (RFC 9293 §3.1).
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// The acknowledgment number counts.
pub const ACK: u8 = 0x10;

/// What a packet does to its flow, or to none (`State::Free`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpVerdict {
    /// The flow's state after the packet. From `Free`: `SynSent` for a SYN, `Established` for a pure ACK, which the
    /// caller may refuse (CT-15).
    Next(State),
    /// A new SYN for a flow that has ended: replace it (CT-16).
    Reopen,
    /// There is no flow, and this packet cannot open one.
    Invalid,
}

/// Flags that a packet is classified by; PSH, URG, ECE and CWR go with any of them.
const CLASS: u8 = FIN | SYN | RST | ACK;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;
const RST_ACK: u8 = RST | ACK;

/// The state after a packet.
#[inline(always)]
pub const fn advance(state: State, direction: Direction, flags: u8) -> TcpVerdict {
    use Direction::{Original, Reply};
    use State::{
        Close, CloseWait, Established, FinWait, Free, LastAck, SynRecv, SynSent, SynSent2, TimeWait,
    };

    let next = match (flags & CLASS, state, direction) {
        // First, since nearly every packet is one: the bulk of a connection.
        (ACK, Established, _) => Established,

        (SYN, Free, Original) => SynSent,
        (ACK, Free, Original) => Established,
        (_, Free, _) => return TcpVerdict::Invalid,

        (SYN, TimeWait | Close, Original) => return TcpVerdict::Reopen,
        (SYN, SynSent, Reply) => SynSent2,

        (SYN_ACK, SynSent, Reply) => SynRecv,
        (SYN_ACK, SynSent2, _) => SynRecv,

        (ACK, SynRecv, Original) => Established,
        (ACK, FinWait, _) => CloseWait,
        (ACK, LastAck, _) => TimeWait,

        (FIN_ACK, SynRecv | Established, _) => FinWait,
        (FIN_ACK, FinWait | CloseWait, _) => LastAck,

        (RST | RST_ACK, _, _) => Close,

        (_, unchanged, _) => unchanged,
    };
    TcpVerdict::Next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of the table, in the order of the semantics.
    const STATES: [(&str, State); 9] = [
        ("SS", State::SynSent),
        ("S2", State::SynSent2),
        ("SR", State::SynRecv),
        ("ES", State::Established),
        ("FW", State::FinWait),
        ("CW", State::CloseWait),
        ("LA", State::LastAck),
        ("TW", State::TimeWait),
        ("CL", State::Close),
    ];

    /// One row per direction and kind of packet; `--` is "replace the flow".
    const TABLE: &str = "
        original syn    : SS S2 SR ES FW CW LA -- --
        original synack : SS SR SR ES FW CW LA TW CL
        original fin    : SS S2 FW FW LA LA LA TW CL
        original ack    : SS S2 ES ES CW CW TW TW CL
        original rst    : CL CL CL CL CL CL CL CL CL
        original none   : SS S2 SR ES FW CW LA TW CL
        reply    syn    : S2 S2 SR ES FW CW LA TW CL
        reply    synack : SR SR SR ES FW CW LA TW CL
        reply    fin    : SS S2 FW FW LA LA LA TW CL
        reply    ack    : SS S2 SR ES CW CW TW TW CL
        reply    rst    : CL CL CL CL CL CL CL CL CL
        reply    none   : SS S2 SR ES FW CW LA TW CL
    ";

    /// Kind of packet, from the flags byte's letters; everything not listed is nonsense: `none`.
    fn kind(flags: u8) -> &'static str {
        let letters: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (ACK, 'A')]
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, l)| l)
            .collect();
        match letters.as_str() {
            "S" => "syn",
            "SA" => "synack",
            "FA" => "fin",
            "A" => "ack",
            "R" | "RA" => "rst",
            _ => "none",
        }
    }

    fn expected(direction: Direction, flags: u8, column: usize) -> TcpVerdict {
        let name = if direction == Direction::Original {
            "original"
        } else {
            "reply"
        };
        let row = TABLE
            .lines()
            .find_map(|line| {
                let (head, cells) = line.split_once(':')?;
                (head.split_whitespace().collect::<Vec<_>>() == [name, kind(flags)]).then_some(cells)
            })
            .unwrap();
        match row.split_whitespace().nth(column).unwrap() {
            "--" => TcpVerdict::Reopen,
            cell => TcpVerdict::Next(STATES.iter().find(|(name, _)| *name == cell).unwrap().1),
        }
    }

    #[test]
    fn every_flags_byte_in_every_state_and_direction_does_what_the_table_says() {
        for direction in Direction::BOTH {
            for flags in 0..=u8::MAX {
                for (column, (name, state)) in STATES.into_iter().enumerate() {
                    let (got, want) = (
                        advance(state, direction, flags),
                        expected(direction, flags, column),
                    );
                    assert_eq!(got, want, "{direction:?} flags {flags:#04x} in {name}");
                }
            }
        }
    }

    #[test]
    fn only_a_syn_or_a_pure_ack_from_the_client_opens_a_flow() {
        for direction in Direction::BOTH {
            for flags in 0..=u8::MAX {
                let want = match (direction, kind(flags)) {
                    (Direction::Original, "syn") => TcpVerdict::Next(State::SynSent),
                    (Direction::Original, "ack") => TcpVerdict::Next(State::Established),
                    _ => TcpVerdict::Invalid,
                };
                assert_eq!(
                    advance(State::Free, direction, flags),
                    want,
                    "{direction:?} flags {flags:#04x}"
                );
            }
        }
    }

    #[test]
    fn no_packet_of_a_known_flow_is_ever_invalid() {
        for direction in Direction::BOTH {
            for flags in 0..=u8::MAX {
                assert!(
                    STATES
                        .iter()
                        .all(|(_, state)| advance(*state, direction, flags) != TcpVerdict::Invalid)
                );
            }
        }
    }

    #[test]
    fn an_orderly_connection_lives_from_syn_to_time_wait() {
        use Direction::{Original, Reply};
        let packets = [
            (Original, SYN),
            (Reply, SYN_ACK),
            (Original, ACK),
            (Reply, ACK),
            (Original, FIN_ACK),
            (Reply, ACK),
        ];
        let packets = packets.into_iter().chain([(Reply, FIN_ACK), (Original, ACK)]);
        let states: Vec<_> = packets
            .scan(State::Free, |state, (direction, flags)| {
                let TcpVerdict::Next(next) = advance(*state, direction, flags) else {
                    return None;
                };
                *state = next;
                Some(next)
            })
            .collect();
        use State::{CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};
        assert_eq!(
            states,
            [
                SynSent,
                SynRecv,
                Established,
                Established,
                FinWait,
                CloseWait,
                LastAck,
                TimeWait
            ]
        );
    }
}
