//! Takes a TCP flow's state, a packet's direction and flags; gives the next state. Pure.
//!
//! State follows the flags alone (CT-14): windows and sequence numbers are not tracked, so loss, reordering and paths
//! that pass us by cannot make a known flow's packet "invalid". Flags that mean nothing in a state leave it as it is.
//! The transitions are those of Linux (nf_conntrack_proto_tcp), where an ignored or invalid packet stays where it was. Linux
//! believes a reset of an established connection by its sequence number alone; here it is doubted until it proves right: the
//! connection is as good as closed (`Reset`), and established again with the next packet that is no reset. And an endpoint that
//! says SYN-ACK though its connection is over did not hear of a reset, or heard an old SYN again: it will go on saying so, up
//! to 16 s apart, so the flow is known for as long as `TimeWait`, whatever is answered; Linux forgets it in between.

use super::flow::Direction;
use super::state::{Advance, State};

/// No more data from the sender (RFC 9293 §3.1).
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// The acknowledgment number counts.
pub const ACK: u8 = 0x10;

/// Flags that a packet is classified by; PSH, URG, ECE and CWR go with any of them.
const CLASS: u8 = FIN | SYN | RST | ACK;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;
const RST_ACK: u8 = RST | ACK;

/// Which flags count, and what they are in the bulk of a connection: it acknowledges, and neither begins nor ends anything.
pub(super) const BULK: (u8, u8) = (CLASS, ACK);

/// The state after a packet. From `Free`: `SynSent` for a SYN, `Midstream` for a pure ACK, which the caller may refuse
/// (CT-15).
#[inline(always)]
pub const fn advance(state: State, direction: Direction, flags: u8) -> Advance {
    use Direction::{Original, Reply};
    use State::{
        Close, CloseWait, Established, FinWait, Free, LastAck, Midstream, Reset, SynRecv, SynSent, SynSent2,
        TimeWait,
    };

    let next = match (flags & CLASS, state, direction) {
        // First, since nearly every packet is one: the bulk of a connection.
        (ACK, Established, _) => Established,

        (SYN, Free, Original) => SynSent,
        (ACK, Free, Original) => Midstream,
        (_, Free, _) => return Advance::Invalid,

        (SYN, TimeWait | Close | Reset, Original) => return Advance::Reopen,
        (SYN, SynSent, Reply) => SynSent2,

        (SYN_ACK, SynSent, Reply) => SynRecv,
        (SYN_ACK, SynSent2, _) => SynRecv,

        (ACK, SynRecv, Original) => Established,
        // Only the endpoint knows whether there is a connection: what the client says alone, anybody can forge.
        (ACK | SYN_ACK, Midstream, Reply) => Established,
        (FIN_ACK, Midstream, Reply) => FinWait,
        (ACK, FinWait, _) => CloseWait,
        (ACK, LastAck, _) => TimeWait,

        // Whoever goes on has not believed the reset: it was forged, since a socket that was reset answers with resets alone.
        (ACK, Reset, _) => Established,
        (FIN_ACK, SynRecv | Established | Reset, _) => FinWait,
        (FIN_ACK, FinWait | CloseWait, _) => LastAck,

        (SYN_ACK, Close | Reset, Reply) => TimeWait,
        (RST | RST_ACK, TimeWait, _) => TimeWait,
        (RST | RST_ACK, Established | Reset, _) => Reset,
        (RST | RST_ACK, _, _) => Close,

        (_, unchanged, _) => unchanged,
    };
    Advance::Next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of the table, in the order of the semantics.
    const STATES: [(&str, State); 11] = [
        ("SS", State::SynSent),
        ("S2", State::SynSent2),
        ("SR", State::SynRecv),
        ("ES", State::Established),
        ("FW", State::FinWait),
        ("CW", State::CloseWait),
        ("LA", State::LastAck),
        ("TW", State::TimeWait),
        ("CL", State::Close),
        ("MS", State::Midstream),
        ("RS", State::Reset),
    ];

    /// One row per direction and kind of packet; `--` is "replace the flow".
    const TABLE: &str = "
        original syn    : SS S2 SR ES FW CW LA -- -- MS --
        original synack : SS SR SR ES FW CW LA TW CL MS RS
        original fin    : SS S2 FW FW LA LA LA TW CL MS FW
        original ack    : SS S2 ES ES CW CW TW TW CL MS ES
        original rst    : CL CL CL RS CL CL CL TW CL CL RS
        original none   : SS S2 SR ES FW CW LA TW CL MS RS
        reply    syn    : S2 S2 SR ES FW CW LA TW CL MS RS
        reply    synack : SR SR SR ES FW CW LA TW TW ES TW
        reply    fin    : SS S2 FW FW LA LA LA TW CL FW FW
        reply    ack    : SS S2 SR ES CW CW TW TW CL ES ES
        reply    rst    : CL CL CL RS CL CL CL TW CL CL RS
        reply    none   : SS S2 SR ES FW CW LA TW CL MS RS
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

    fn expected(direction: Direction, flags: u8, column: usize) -> Advance {
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
            "--" => Advance::Reopen,
            cell => Advance::Next(STATES.iter().find(|(name, _)| *name == cell).unwrap().1),
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
                    (Direction::Original, "syn") => Advance::Next(State::SynSent),
                    (Direction::Original, "ack") => Advance::Next(State::Midstream),
                    _ => Advance::Invalid,
                };
                assert_eq!(
                    advance(State::Free, direction, flags),
                    want,
                    "{direction:?} flags {flags:#04x}"
                );
            }
        }
    }

    /// What a walk has seen, whatever the machine thinks of it.
    #[derive(Clone, Copy, Default)]
    struct Seen {
        replied: bool,
        fins: u32,
        reset: bool,
    }

    #[test]
    fn every_walk_of_six_packets_keeps_what_its_states_promise() {
        fn walk(state: State, left: u32, seen: Seen) {
            if left == 0 {
                return;
            }
            for direction in Direction::BOTH {
                for flags in [SYN, SYN_ACK, FIN_ACK, ACK, RST, 0] {
                    let seen = Seen {
                        replied: seen.replied || direction == Direction::Reply,
                        fins: seen.fins + u32::from(flags == FIN_ACK),
                        reset: seen.reset || flags == RST,
                    };
                    match advance(state, direction, flags) {
                        Advance::Next(next) => {
                            assert_ne!(next, State::Free);
                            let promised = match next {
                                State::Established => seen.replied,
                                State::FinWait | State::CloseWait => seen.replied && seen.fins > 0,
                                State::LastAck => seen.replied && seen.fins > 1,
                                State::TimeWait => seen.replied && (seen.fins > 1 || seen.reset),
                                State::Close => seen.reset,
                                State::Reset => seen.reset && seen.replied,
                                _ => true,
                            };
                            assert!(promised, "{next:?} by {direction:?} {flags:#04x} in {state:?}");
                            walk(next, left - 1, seen);
                        }
                        Advance::Reopen => {
                            // CT-16: only a SYN from the client, only once the connection has ended.
                            assert_eq!((direction, flags), (Direction::Original, SYN));
                            assert!(matches!(state, State::TimeWait | State::Close | State::Reset));
                        }
                        Advance::Invalid => assert_eq!(state, State::Free),
                    }
                }
            }
        }
        walk(State::Free, 6, Seen::default());
    }

    fn walked(packets: &[(Direction, u8)]) -> Vec<State> {
        let states = packets.iter().scan(State::Free, |state, &(direction, flags)| {
            let Advance::Next(next) = advance(*state, direction, flags) else {
                return None;
            };
            *state = next;
            Some(next)
        });
        states.collect()
    }

    #[test]
    fn a_simultaneous_open_is_established_by_both_sides_syns() {
        use Direction::{Original, Reply};
        use State::{Established, SynRecv, SynSent, SynSent2};
        let packets = [
            (Original, SYN),
            (Reply, SYN),
            (Original, SYN_ACK),
            (Reply, SYN_ACK),
            (Original, ACK),
        ];
        assert_eq!(
            walked(&packets),
            [SynSent, SynSent2, SynRecv, SynRecv, Established]
        );
    }

    #[test]
    fn a_half_closed_connection_stays_so_while_the_other_side_sends() {
        use Direction::{Original, Reply};
        let packets = [
            (Original, SYN),
            (Reply, SYN_ACK),
            (Original, ACK),
            (Original, FIN_ACK),
            (Reply, ACK),
            (Reply, ACK),
            (Original, ACK),
        ];
        assert_eq!(
            walked(&packets)[3..],
            [
                State::FinWait,
                State::CloseWait,
                State::CloseWait,
                State::CloseWait
            ]
        );
    }

    #[test]
    fn a_late_fin_never_opens_or_revives_a_connection() {
        // FDio/vpp#3693: it made a session in the wrong direction, which blocked the next one.
        for direction in Direction::BOTH {
            for flags in [FIN_ACK, FIN, RST, RST_ACK, SYN_ACK] {
                assert_eq!(advance(State::Free, direction, flags), Advance::Invalid);
            }
            for state in [State::TimeWait, State::Close] {
                assert_eq!(advance(state, direction, FIN_ACK), Advance::Next(state));
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
        let packets: Vec<_> = packets
            .into_iter()
            .chain([(Reply, FIN_ACK), (Original, ACK)])
            .collect();
        use State::{CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};
        assert_eq!(
            walked(&packets),
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
