//! How far an SCTP association has come, by the first chunk of its packets (Linux' nf_conntrack_proto_sctp; what it does not
//! know leaves the state as it is). What only the client says does not establish one: it can be forged. An abort can be, too, so an
//! endpoint that goes on, or accepts another, has it established again.

/// CLOSED, COOKIE_WAIT, COOKIE_ECHOED, ESTABLISHED, SHUTDOWN_SENT, SHUTDOWN_RECD, SHUTDOWN_ACK_SENT, HEARTBEAT_SENT, and
/// aborted by the client once the endpoint knew it.
pub type State = usize;

pub const CLOSED: State = 0;

/// Seconds an association may be idle (semantics §4).
const TIMEOUTS: [u64; 9] = [10, 3, 3, 210, 3, 3, 3, 30, 10];

/// A new association (CT-16).
const NEW: State = 99;

/// By chunk type, from the client and from the endpoint.
const ROWS: [(u8, [State; 9], [State; 9]); 8] = [
    (1, [NEW, 1, 2, 3, 4, 5, 6, 1, NEW], [0, 1, 2, 3, 4, 5, 6, 7, 8]), // INIT
    (2, [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]),     // INIT ACK
    (6, [0, 0, 0, 8, 8, 8, 8, 0, 8], [0; 9]),                          // ABORT
    (7, [0, 1, 2, 4, 4, 5, 6, 7, 8], [0, 1, 2, 5, 4, 5, 6, 7, 8]),     // SHUTDOWN
    (8, [0, 1, 2, 6, 6, 6, 6, 7, 8], [0, 1, 2, 6, 6, 6, 6, 7, 8]),     // SHUTDOWN ACK
    (10, [0, 2, 2, 3, 4, 5, 6, 2, 8], [0, 2, 2, 3, 4, 5, 6, 2, 8]),    // COOKIE ECHO
    (11, [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 3, 3, 3, 3, 6, 7, 3]),    // COOKIE ACK
    (14, [0, 1, 2, 3, 0, 0, 0, 7, 8], [0, 1, 2, 3, 0, 0, 0, 7, 8]),    // SHUTDOWN COMPLETE
];
const OTHER: ([State; 9], [State; 9]) = ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 3, 3, 4, 5, 6, 3, 3]);

/// What the first packet of an association makes of it; none if it cannot be one. Midway: CT-15.
pub fn first(chunk: Option<u8>, midstream: bool) -> Option<State> {
    match chunk {
        Some(1) => Some(1),
        Some(10) => midstream.then_some(2),
        Some(2 | 6 | 7 | 8 | 11 | 14) => None,
        _ => midstream.then_some(7),
    }
}

/// The state after a packet; none if the packet is the first of another association.
pub fn next(state: State, reply: bool, chunk: Option<u8>) -> Option<State> {
    let row = ROWS
        .iter()
        .find(|(kind, ..)| Some(*kind) == chunk)
        .map_or(OTHER, |row| (row.1, row.2));
    let next = if reply { row.1[state] } else { row.0[state] };
    (next != NEW).then_some(next)
}

pub const fn timeout(state: State) -> u64 {
    TIMEOUTS[state]
}
