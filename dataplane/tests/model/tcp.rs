//! How far a TCP connection has come, by flags alone: Linux' table (nf_conntrack_proto_tcp), where what is ignored or
//! invalid leaves the state as it is (CT-14); but for an endpoint that opens what is over, to be known for as long as it may go on.

use super::bytes::{ACK, FIN, RST, SYN};

/// Columns: SYN_SENT, SYN_SENT2, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE,
/// found midway and not answered yet (CT-15), which only the endpoint ends: clients can be forged; and reset when it was
/// established, which it is again if anybody goes on.
pub type State = usize;

pub const SYN_SENT: State = 0;
pub const TIME_WAIT: State = 7;
pub const MIDWAY: State = 9;

/// Seconds a connection may be idle (semantics §4).
const TIMEOUTS: [u64; 11] = [120, 120, 60, 86_400, 120, 3600, 30, 120, 10, 300, 10];

/// `99`: a new connection (CT-16).
const NEW: State = 99;
const ORIGINAL: [(u8, [State; 11]); 6] = [
    (SYN, [0, 1, 2, 3, 4, 5, 6, NEW, NEW, 9, NEW]),
    (SYN | ACK, [0, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (FIN | ACK, [0, 1, 4, 4, 6, 6, 6, 7, 8, 9, 4]),
    (ACK, [0, 1, 3, 3, 5, 5, 7, 7, 8, 9, 3]),
    (RST, [8, 8, 8, 10, 8, 8, 8, 7, 8, 8, 10]),
    (RST | ACK, [8, 8, 8, 10, 8, 8, 8, 7, 8, 8, 10]),
];
const REPLY: [(u8, [State; 11]); 6] = [
    (SYN, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    (SYN | ACK, [2, 2, 2, 3, 4, 5, 6, 7, 7, 3, 7]),
    (FIN | ACK, [0, 1, 4, 4, 6, 6, 6, 7, 8, 4, 4]),
    (ACK, [0, 1, 2, 3, 5, 5, 7, 7, 8, 3, 3]),
    (RST, [8, 8, 8, 10, 8, 8, 8, 7, 8, 8, 10]),
    (RST | ACK, [8, 8, 8, 10, 8, 8, 8, 7, 8, 8, 10]),
];

/// What the first packet of a connection makes of it (CT-15); none if it cannot be one.
pub fn first(flags: u8, midstream: bool) -> Option<State> {
    match flags & (SYN | FIN | RST | ACK) {
        SYN => Some(SYN_SENT),
        ACK if midstream => Some(MIDWAY),
        _ => None,
    }
}

/// The state after a packet; none if the packet is the first of another connection.
pub fn next(state: State, reply: bool, flags: u8) -> Option<State> {
    let kind = flags & (SYN | FIN | RST | ACK);
    let rows = if reply { REPLY } else { ORIGINAL };
    let next = rows
        .iter()
        .find(|(flags, _)| *flags == kind)
        .map_or(state, |(_, row)| row[state]);
    (next != NEW).then_some(next)
}

pub const fn timeout(state: State) -> u64 {
    TIMEOUTS[state]
}
