//! Takes an SCTP flow's state, a packet's direction and chunks; gives the next state. Pure.
//!
//! The states are those of Linux (nf_conntrack_proto_sctp); what moves them are the chunks that `parse` found, as a set.
//! Tags and sequence numbers are not tracked: chunks that mean nothing in a state leave it as it is (CT-14).

use super::flow::Direction;
use super::state::{Advance, State};
use crate::wire::sctp::chunks::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};

/// The state after a packet. From `Free`: `CookieWait` for an INIT, and `CookieEchoed` or `HeartbeatSent` for what is under
/// way, which the caller may refuse (CT-15).
#[inline]
pub const fn advance(state: State, direction: Direction, chunks: u8) -> Advance {
    use Direction::{Original, Reply};
    use State::{
        CookieEchoed, CookieWait, Free, HeartbeatSent, SctpAborted, SctpClosed, SctpEstablished,
        ShutdownAckSent, ShutdownRecd, ShutdownSent,
    };

    let next = match (state, direction) {
        // Nearly every packet carries data or acknowledges it.
        (SctpEstablished, _) if chunks == 0 => SctpEstablished,
        (Free, Reply) => return Advance::Invalid,
        (Free, Original) => match chunks {
            INIT => CookieWait,
            0 => HeartbeatSent,
            _ if chunks & !COOKIE_ECHO == 0 => CookieEchoed,
            _ => return Advance::Invalid,
        },
        // The client's word alone ends nothing that the endpoint goes on with.
        (SctpEstablished | ShutdownSent | ShutdownRecd | ShutdownAckSent | SctpAborted, Original)
            if chunks & ABORT != 0 =>
        {
            SctpAborted
        }
        _ if chunks & ABORT != 0 => SctpClosed,
        (SctpClosed | SctpAborted, Original) if chunks & INIT != 0 => return Advance::Reopen,
        (SctpAborted, Reply) if chunks == 0 => SctpEstablished,
        // It accepts the client's next association on the tuple, as it may while it waits for the end of the last (RFC 9260 §5.2.2).
        (SctpAborted | ShutdownSent | ShutdownRecd, Reply) if chunks & COOKIE_ACK != 0 => SctpEstablished,
        (SctpAborted, _) => SctpAborted,
        (SctpClosed, _) => SctpClosed,
        (HeartbeatSent, Original) if chunks & INIT != 0 => CookieWait,
        // INIT and INIT ACK of an association under way restart it with the same tuple (RFC 9260 §5.2.2), or are late.
        _ if chunks & (INIT | INIT_ACK) != 0 => state,
        // An endpoint that speaks without a cookie of ours to acknowledge knows the association.
        (HeartbeatSent | CookieEchoed, Reply) if chunks == 0 => SctpEstablished,
        _ => {
            // The others may be bundled; in this order they come about in the life of an association.
            let mut next = state;
            if chunks & COOKIE_ECHO != 0 && matches!(next, CookieWait | HeartbeatSent) {
                next = CookieEchoed;
            }
            // From the endpoint: what only the client says, anybody can forge.
            if chunks & COOKIE_ACK != 0 && matches!((next, direction), (CookieEchoed, Reply)) {
                next = SctpEstablished;
            }
            if chunks & SHUTDOWN != 0 && matches!(next, SctpEstablished) {
                next = match direction {
                    Original => ShutdownSent,
                    Reply => ShutdownRecd,
                };
            }
            if chunks & SHUTDOWN_ACK != 0 && matches!(next, SctpEstablished | ShutdownSent | ShutdownRecd) {
                next = ShutdownAckSent;
            }
            if chunks & SHUTDOWN_COMPLETE != 0
                && matches!(next, ShutdownSent | ShutdownRecd | ShutdownAckSent)
            {
                next = SctpClosed;
            }
            next
        }
    };
    Advance::Next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of the table.
    const STATES: [(&str, State); 9] = [
        ("CL", State::SctpClosed),
        ("CW", State::CookieWait),
        ("CE", State::CookieEchoed),
        ("ES", State::SctpEstablished),
        ("SS", State::ShutdownSent),
        ("SR", State::ShutdownRecd),
        ("SA", State::ShutdownAckSent),
        ("HS", State::HeartbeatSent),
        ("AB", State::SctpAborted),
    ];

    /// One row per direction and chunk; `--` is "replace the flow".
    const TABLE: &str = "
        original init         : -- CW CE ES SS SR SA CW --
        original init-ack     : CL CW CE ES SS SR SA HS AB
        original abort        : CL CL CL AB AB AB AB CL AB
        original shutdown     : CL CW CE SS SS SR SA HS AB
        original shutdown-ack : CL CW CE SA SA SA SA HS AB
        original complete     : CL CW CE ES CL CL CL HS AB
        original cookie-echo  : CL CE CE ES SS SR SA CE AB
        original cookie-ack   : CL CW CE ES SS SR SA HS AB
        original other        : CL CW CE ES SS SR SA HS AB
        reply    init         : CL CW CE ES SS SR SA HS AB
        reply    init-ack     : CL CW CE ES SS SR SA HS AB
        reply    abort        : CL CL CL CL CL CL CL CL CL
        reply    shutdown     : CL CW CE SR SS SR SA HS AB
        reply    shutdown-ack : CL CW CE SA SA SA SA HS AB
        reply    complete     : CL CW CE ES CL CL CL HS AB
        reply    cookie-echo  : CL CE CE ES SS SR SA CE AB
        reply    cookie-ack   : CL CW ES ES ES ES SA HS ES
        reply    other        : CL CW ES ES SS SR SA ES ES
    ";

    fn chunk(name: &str) -> u8 {
        match name {
            "init" => INIT,
            "init-ack" => INIT_ACK,
            "abort" => ABORT,
            "shutdown" => SHUTDOWN,
            "shutdown-ack" => SHUTDOWN_ACK,
            "complete" => SHUTDOWN_COMPLETE,
            "cookie-echo" => COOKIE_ECHO,
            "cookie-ack" => COOKIE_ACK,
            "other" => 0,
            _ => panic!("{name}"),
        }
    }

    #[test]
    fn every_chunk_in_every_state_and_direction_does_what_the_table_says() {
        let mut rows = 0;
        for (head, cells) in TABLE.lines().filter_map(|line| line.split_once(':')) {
            let (direction, name) = head.trim().split_once(' ').unwrap();
            let direction = if direction == "original" {
                Direction::Original
            } else {
                Direction::Reply
            };
            for ((column, state), cell) in STATES.into_iter().zip(cells.split_whitespace()) {
                let want = match cell {
                    "--" => Advance::Reopen,
                    cell => Advance::Next(STATES.iter().find(|(name, _)| *name == cell).unwrap().1),
                };
                let got = advance(state, direction, chunk(name.trim()));
                assert_eq!(got, want, "{direction:?} {name} in {column}");
            }
            rows += 1;
        }
        assert_eq!(rows, 18);
    }

    #[test]
    fn only_an_init_or_what_is_under_way_opens_a_flow() {
        for chunks in 0..=u8::MAX {
            let want = match chunks {
                INIT => Advance::Next(State::CookieWait),
                COOKIE_ECHO => Advance::Next(State::CookieEchoed),
                0 => Advance::Next(State::HeartbeatSent),
                _ => Advance::Invalid,
            };
            assert_eq!(
                advance(State::Free, Direction::Original, chunks),
                want,
                "{chunks:#04x}"
            );
            assert_eq!(advance(State::Free, Direction::Reply, chunks), Advance::Invalid);
        }
    }

    #[test]
    fn every_walk_of_six_packets_is_established_only_by_both_sides_and_closed_only_by_an_end() {
        fn walk(state: State, left: u32, replied: bool, ended: bool) {
            if left == 0 {
                return;
            }
            for direction in Direction::BOTH {
                for chunks in std::iter::once(0).chain((0..8).map(|bit| 1 << bit)) {
                    let end = chunks & (ABORT | SHUTDOWN_COMPLETE) != 0;
                    let replied = replied || direction == Direction::Reply;
                    match advance(state, direction, chunks) {
                        Advance::Next(next) => {
                            assert!(next != State::Free);
                            assert!(next != State::SctpEstablished || replied);
                            let over = matches!(next, State::SctpClosed | State::SctpAborted);
                            assert!(!over || ended || end);
                            walk(next, left - 1, replied, ended || end);
                        }
                        Advance::Reopen => {
                            assert_eq!((direction, chunks), (Direction::Original, INIT));
                            assert!(matches!(state, State::SctpClosed | State::SctpAborted));
                        }
                        Advance::Invalid => assert_eq!(state, State::Free),
                    }
                }
            }
        }
        walk(State::Free, 6, false, false);
    }

    #[test]
    fn an_orderly_association_lives_from_init_to_closed_with_its_cookie_and_shutdown_bundled() {
        use Direction::{Original, Reply};
        let packets = [
            (Original, INIT),
            (Reply, INIT_ACK),
            (Original, COOKIE_ECHO),
            (Reply, COOKIE_ACK),
            (Original, 0),
            (Reply, SHUTDOWN),
            (Original, SHUTDOWN_ACK),
            (Reply, SHUTDOWN_COMPLETE),
        ];
        let mut state = State::Free;
        let states = packets.map(|(direction, chunks)| {
            let Advance::Next(next) = advance(state, direction, chunks) else {
                panic!("{state:?} {chunks}")
            };
            state = next;
            next
        });
        use State::*;
        assert_eq!(
            states,
            [
                CookieWait,
                CookieWait,
                CookieEchoed,
                SctpEstablished,
                SctpEstablished,
                ShutdownRecd,
                ShutdownAckSent,
                SctpClosed
            ]
        );
        let both = advance(CookieEchoed, Reply, COOKIE_ACK | SHUTDOWN);
        assert_eq!(both, Advance::Next(ShutdownRecd));
    }
}
