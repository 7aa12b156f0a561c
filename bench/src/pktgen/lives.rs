//! TCP connections of the clients: SYN, answer, requests and answers one after the other, FIN. Every number is the real
//! one, so that a gateway that checks windows is content. Nothing is sent twice: what is lost is seen.
//!
//! A connection is a flow, its first number is the flow's number times 2,048, and so every segment says whose it is.

use super::judge::FLOW_SHIFT;
use super::template::{Segment, flag};

/// Where a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// SYN sent.
    Opening,
    /// Request sent; so many are answered.
    Asking(u8),
    /// FIN sent.
    Closing,
}

/// One connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    stage: Stage,
    /// Our next number, and the one we expect.
    next: u32,
    expected: u32,
    /// When it was due, ns.
    began: u64,
}

/// How connections go.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Requests, at most 15, so that a connection's numbers stay its flow's.
    pub requests: u8,
    /// Bytes of a request.
    pub bytes: u32,
}

/// What the client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sends a segment without data.
    Send(Segment),
    /// Sends a request.
    Ask(Segment),
    /// Sends the last segment: it is done, after so long.
    Finish(Segment, u64),
    /// Nothing: this is not what it waits for.
    Ignore,
}

impl Script {
    /// Whether a connection's numbers stay in its flow's range: SYN, requests, FIN.
    pub const fn fits(self) -> bool {
        (self.requests as u32) * self.bytes + 2 < 1 << FLOW_SHIFT
    }
}

impl Life {
    /// Whether it can begin anew.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Whether it has waited for longer than `patience` ns: then it is given up.
    pub fn give_up(&mut self, now: u64, patience: u64) -> bool {
        let over = self.stage != Stage::Idle && now.saturating_sub(self.began) > patience;
        if over {
            self.stage = Stage::Idle;
        }
        over
    }

    /// Begins: the SYN.
    pub fn begin(&mut self, flow: u32, due: u64, time: u32) -> Segment {
        let first = flow << FLOW_SHIFT;
        *self = Self {
            stage: Stage::Opening,
            next: first.wrapping_add(1),
            expected: 0,
            began: due,
        };
        Segment {
            sequence: first,
            acknowledges: 0,
            flags: flag::SYN,
            times: [time, 0],
        }
    }

    /// What comes of a right segment from the server with so many bytes of data.
    pub fn hear(&mut self, script: Script, segment: Segment, bytes: u32, now: u64, time: u32) -> Act {
        let answers = |flags| segment.flags & flags == flags && segment.acknowledges == self.next;
        let stage = match self.stage {
            Stage::Opening if answers(flag::SYN | flag::ACK) => {
                self.expected = segment.sequence.wrapping_add(1);
                Stage::Asking(0)
            }
            Stage::Asking(answered)
                if answers(flag::ACK) && segment.sequence == self.expected && bytes == script.bytes =>
            {
                self.expected = self.expected.wrapping_add(bytes);
                Stage::Asking(answered + 1)
            }
            Stage::Closing if answers(flag::FIN | flag::ACK) && segment.sequence == self.expected => {
                self.expected = self.expected.wrapping_add(1);
                self.stage = Stage::Idle;
                let last = self.segment(flag::ACK, segment, time);
                return Act::Finish(last, now.saturating_sub(self.began));
            }
            _ => return Act::Ignore,
        };
        let Stage::Asking(answered) = stage else {
            return Act::Ignore;
        };
        if answered < script.requests {
            self.stage = Stage::Asking(answered);
            let request = self.segment(flag::ACK | flag::PSH, segment, time);
            self.next = self.next.wrapping_add(script.bytes);
            Act::Ask(request)
        } else {
            self.stage = Stage::Closing;
            let fin = self.segment(flag::ACK | flag::FIN, segment, time);
            self.next = self.next.wrapping_add(1);
            Act::Send(fin)
        }
    }

    const fn segment(&self, flags: u8, answered: Segment, time: u32) -> Segment {
        Segment {
            sequence: self.next,
            acknowledges: self.expected,
            flags,
            times: [time, answered.times[0]],
        }
    }
}

/// What a server answers, knowing nothing but the segment, with so many bytes of data; `None`: nothing.
pub fn answer(segment: Segment, bytes: u32, time: u32) -> Option<Segment> {
    let (sequence, length, flags) = match segment.flags & (flag::SYN | flag::FIN | flag::RST) {
        // Its first number is the client's, turned.
        flag::SYN => (!segment.sequence, 1, flag::SYN | flag::ACK),
        flag::FIN => (segment.acknowledges, bytes + 1, flag::FIN | flag::ACK),
        0 if bytes > 0 => (segment.acknowledges, bytes, flag::PSH | flag::ACK),
        _ => return None,
    };
    Some(Segment {
        sequence,
        acknowledges: segment.sequence.wrapping_add(length),
        flags,
        times: [time, segment.times[0]],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: Script = Script {
        requests: 2,
        bytes: 100,
    };

    #[test]
    fn a_life_goes_from_syn_to_the_last_ack_and_takes_nothing_for_its_answer_that_is_not() {
        let mut life = Life::default();
        let mut segment = life.begin(7, 1_000, 15);
        let mut bytes = 0;
        let mut acts = 0;
        loop {
            let reply = answer(segment, bytes, 16).unwrap();
            assert_eq!(reply.times[1], 15, "the client's time is echoed");
            let mut elsewhere = reply;
            elsewhere.acknowledges += 1;
            assert_eq!(life.hear(SCRIPT, elsewhere, bytes, 0, 0), Act::Ignore);
            let act = life.hear(SCRIPT, reply, bytes, 9_000, 15);
            assert_eq!(life.hear(SCRIPT, reply, bytes, 0, 0), Act::Ignore, "a repetition");
            acts += 1;
            (segment, bytes) = match act {
                Act::Ask(segment) => (segment, SCRIPT.bytes),
                Act::Send(segment) => (segment, 0),
                Act::Finish(last, after) => {
                    assert_eq!((after, answer(last, 0, 0)), (8_000, None));
                    break;
                }
                Act::Ignore => panic!("{segment:?}"),
            };
            assert_eq!(segment.sequence >> FLOW_SHIFT, 7);
        }
        assert_eq!(acts, 4, "two requests, FIN, the last ACK");
        assert!(life.is_idle());
    }

    #[test]
    fn a_life_that_hears_nothing_is_given_up_once() {
        let mut life = Life::default();
        life.begin(1, 0, 0);
        assert!(!life.give_up(100, 100) && life.give_up(101, 100) && !life.give_up(102, 100));
    }
}
