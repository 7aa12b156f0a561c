//! What a generated packet says of itself at the start of its payload: 18 bytes, so that the shortest UDP frame has room.
//!
//! ```text
//! 0 trial (2)  2 flow (4)  6 sequence number in the flow (4)  10 time it was to be sent, ns (8)
//! ```
//! The time is when the packet was *due*, not when it left: a sender that was held up is charged for it, as its users
//! would be (Tene, "How NOT to Measure Latency": coordinated omission).

/// Bytes of a stamp.
pub const LEN: usize = 18;

/// A stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which trial: what is late from the one before is not counted in this.
    pub trial: u16,
    /// The flow.
    pub flow: u32,
    /// Its place in the flow, from 0.
    pub sequence: u32,
    /// When it was due, in nanoseconds of the generator's clock.
    pub due: u64,
}

impl Stamp {
    /// As bytes.
    #[inline]
    pub fn write(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&self.trial.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.flow.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[10..].copy_from_slice(&self.due.to_be_bytes());
        bytes
    }

    /// From the first bytes of a payload; `None` if it is too short to be one of ours.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = payload.first_chunk()?;
        let [t0, t1, f0, f1, f2, f3, s0, s1, s2, s3, due @ ..] = *bytes;
        Some(Self {
            trial: u16::from_be_bytes([t0, t1]),
            flow: u32::from_be_bytes([f0, f1, f2, f3]),
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            due: u64::from_be_bytes(due),
        })
    }
}

/// The payload behind a stamp: every byte says its place, so that bytes that were moved or swapped are seen.
#[inline]
pub fn filler(place: usize) -> u8 {
    (place as u8).wrapping_mul(31) ^ 0x5a
}

/// Whether everything behind the stamp is as it was sent.
#[inline]
pub fn filled(payload: &[u8]) -> bool {
    payload
        .iter()
        .enumerate()
        .skip(LEN)
        .all(|(place, byte)| *byte == filler(place))
}

/// Which sequence numbers of a flow have come: the last 64 exactly (RFC 4303 §3.4.3 does the same against replays).
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// One above the highest.
    next: u32,
    window: u64,
}

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// After all that were sent before it.
    InOrder,
    /// After one that was sent later.
    Overtaken,
    /// A second time; or more than 64 places late, when that cannot be told.
    Again,
}

impl Seen {
    /// Takes note of a sequence number.
    #[inline]
    pub fn note(&mut self, sequence: u32) -> Arrival {
        if sequence >= self.next {
            let ahead = sequence - self.next + 1;
            self.window = if ahead >= 64 { 0 } else { self.window << ahead };
            self.window |= 1;
            self.next = sequence.saturating_add(1);
            return Arrival::InOrder;
        }
        let behind = self.next - 1 - sequence;
        let bit = 1u64.checked_shl(behind).unwrap_or(0);
        if bit == 0 || self.window & bit != 0 {
            return Arrival::Again;
        }
        self.window |= bit;
        Arrival::Overtaken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_it_was_written() {
        let stamp = Stamp {
            trial: 0xabcd,
            flow: 7_000_000,
            sequence: u32::MAX,
            due: u64::MAX - 3,
        };
        assert_eq!(Stamp::read(&stamp.write()), Some(stamp));
        assert_eq!(Stamp::read(&stamp.write()[1..]), None);
    }

    #[test]
    fn a_moved_byte_of_the_filling_is_seen() {
        let mut payload: Vec<u8> = (0..600).map(filler).collect();
        assert!(filled(&payload));
        payload.swap(400, 401);
        assert!(!filled(&payload));
    }

    #[test]
    fn duplicates_and_overtaken_packets_are_told_apart() {
        let mut seen = Seen::default();
        let arrivals: Vec<_> = [0, 1, 3, 2, 3, 2, 100, 40, 30, 40].map(|n| seen.note(n)).into();
        use Arrival::{Again, InOrder, Overtaken};
        let expected = [
            InOrder, InOrder, InOrder, Overtaken, Again, Again, InOrder, Overtaken, Again, Again,
        ];
        assert_eq!(arrivals, expected);
    }
}
