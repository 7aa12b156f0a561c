//! Messages: takes bytes from anybody, gives the bytes of the answer, or what has to be asked elsewhere first. Every
//! byte is hostile. Sends and receives nothing.

use std::iter;

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{DNSClass, Name};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder};

use super::answer::{self, Outcome, Pick, Reply};
use super::zone::Zone;

/// What a datagram may have of a client that does not say more (RFC 1035 §2.3.4), and that any client must take.
const LEAST: u16 = 512;
/// What this server takes in a datagram, as it says to clients: no fragment on any usual link.
pub(super) const OUR_SIZE: u16 = 1232;
/// The least of a record in an answer: a pointer to the name, type, class, TTL, length and an address.
const SMALLEST_RECORD: usize = 16;
/// The TC bit, in the third byte of a header (RFC 1035 §4.1.1).
const TRUNCATED: u8 = 2;
/// An OPT record without options (RFC 6891 §6.1.2).
const OPT: usize = 11;

/// How a message came, and so what may go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream, with the length before each message.
    Tcp,
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Verdict {
    /// The answer has been written.
    Answered,
    /// Somebody else has to be asked first.
    Ask(Box<Pending>),
    /// It gets no answer.
    Dropped(Drop),
}

/// Why a message gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Shorter than a header.
    Short,
    /// An answer itself: to answer it could go on for ever.
    Answer,
}

/// What is known of a question.
#[derive(Clone, Debug)]
struct Request {
    metadata: Metadata,
    query: Option<Query>,
    /// Whether it had an OPT record, and whether that wants signatures.
    edns: Option<bool>,
    /// The longest answer it takes.
    limit: u16,
}

/// A question whose answer is still to come.
#[derive(Debug)]
pub struct Pending {
    request: Request,
    transport: Transport,
    /// The answer so far and where it goes on; nothing if all of it is somebody else's.
    chase: Option<(Reply, Name)>,
}

/// Answers `packet` into `out`, as far as the zone knows.
pub fn handle(zone: &Zone, packet: &[u8], transport: Transport, out: &mut Vec<u8>) -> Verdict {
    let (request, query) = match read(packet, transport) {
        Ok(read) => read,
        Err(Refusal::Drop(reason)) => return Verdict::Dropped(reason),
        Err(Refusal::Error(request, code)) => {
            write(&request, &Reply::empty(code, false), out);
            return Verdict::Answered;
        }
    };
    let pick = Pick {
        // As good as chance: clients choose it at random (RFC 5452 §9.2).
        turn: request.metadata.id.into(),
        most: usize::from(request.limit) / SMALLEST_RECORD,
    };
    let chase = match answer::answer(zone, &query, pick) {
        Outcome::Reply(reply) => {
            write(&request, &reply, out);
            return Verdict::Answered;
        }
        Outcome::Forward => None,
        Outcome::Chase(reply, target) => Some((reply, target)),
    };
    Verdict::Ask(Box::new(Pending {
        request,
        transport,
        chase,
    }))
}

enum Refusal {
    Drop(Drop),
    Error(Request, ResponseCode),
}

fn read(packet: &[u8], transport: Transport) -> Result<(Request, Query), Refusal> {
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else {
        return Err(Refusal::Drop(Drop::Short));
    };
    if header.metadata.message_type == MessageType::Response {
        return Err(Refusal::Drop(Drop::Answer));
    }
    let limit = match transport {
        Transport::Udp => LEAST,
        Transport::Tcp => u16::MAX,
    };
    let mut request = Request {
        metadata: header.metadata,
        query: None,
        edns: None,
        limit,
    };
    let counts = header.counts;
    match header.metadata.op_code {
        OpCode::Query if counts.queries == 1 => {}
        OpCode::Query => return Err(Refusal::Error(request, ResponseCode::FormErr)),
        _ => return Err(Refusal::Error(request, ResponseCode::NotImp)),
    }
    let Ok(query) = Query::read(&mut decoder) else {
        return Err(Refusal::Error(request, ResponseCode::FormErr));
    };
    request.query = Some(query.clone());
    let mut section =
        |count: u16, last: bool| Message::read_records(&mut decoder, count.into(), last, OpCode::Query);
    let rest = section(counts.answers, false)
        .and_then(|_| section(counts.authorities, false))
        .and_then(|_| section(counts.additionals, true));
    let Ok((_, edns, _)) = rest else {
        return Err(Refusal::Error(request, ResponseCode::FormErr));
    };
    if let Some(edns) = edns {
        request.edns = Some(edns.flags().dnssec_ok);
        if transport == Transport::Udp {
            request.limit = edns.max_payload().max(LEAST);
        }
        if edns.version() > 0 {
            return Err(Refusal::Error(request, ResponseCode::BADVERS));
        }
    }
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Err(Refusal::Error(request, ResponseCode::Refused));
    }
    Ok((request, query))
}

/// Writes the answer; what does not fit is left out and said to be (DNS-21).
fn write(request: &Request, reply: &Reply, out: &mut Vec<u8>) {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.authoritative = reply.authoritative;
    metadata.truncation = reply.truncated;
    metadata.response_code = reply.code;
    if emit(request, &metadata, reply, out).is_err() {
        // No record that is ours is wrong; one of an upstream server may not be what it says.
        metadata.authoritative = false;
        metadata.response_code = ResponseCode::ServFail;
        let nothing = Reply::empty(ResponseCode::ServFail, false);
        if emit(request, &metadata, &nothing, out).is_err() {
            out.clear();
        }
    }
}

fn emit(request: &Request, metadata: &Metadata, reply: &Reply, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    out.clear();
    let reserved = if request.edns.is_some() { OPT } else { 0 };
    let mut encoder = BinEncoder::new(out);
    encoder.set_max_size(request.limit - reserved as u16);
    let header = emit_message_parts(
        metadata,
        &mut request.query.iter(),
        &mut reply.answers.iter(),
        &mut reply.authorities.iter(),
        &mut reply.additionals.iter(),
        None,
        None,
        &mut encoder,
    )?;
    // The record that did not fit is there in part.
    encoder.trim();
    let all = (reply.answers.len() + reply.authorities.len())
        == usize::from(header.counts.answers) + usize::from(header.counts.authorities);
    if all && !metadata.truncation {
        // Whoever needs what was left out of the additional section can ask for it (RFC 2181 §9).
        out[2] &= !TRUNCATED;
    }
    if let Some(dnssec_ok) = request.edns {
        // Last and always there, however much had to be left out: room was kept for it (RFC 6891 §7).
        let size = OUR_SIZE.to_be_bytes();
        let (high, flags) = (metadata.response_code.high(), if dnssec_ok { 0x80 } else { 0 });
        out.extend_from_slice(&[0, 0, 41, size[0], size[1], high, 0, flags, 0, 0, 0]);
        let count = u16::from_be_bytes([out[10], out[11]]) + 1;
        out[10..12].copy_from_slice(&count.to_be_bytes());
    }
    Ok(())
}

impl Pending {
    /// How the question came; that is how it goes on, so that what a datagram cannot hold is asked for by a stream.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// What an upstream server is asked, under this id.
    pub fn question(&self, id: u16) -> Result<Vec<u8>, ProtoError> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        if let Some(query) = &self.request.query {
            let mut query = query.clone();
            if let Some((_, target)) = &self.chase {
                query.set_name(target.clone());
            } else {
                message.metadata.recursion_desired = self.request.metadata.recursion_desired;
                message.metadata.checking_disabled = self.request.metadata.checking_disabled;
            }
            message.add_query(query);
        }
        if let Some(dnssec_ok) = self.request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(self.request.limit.max(LEAST));
            edns.set_dnssec_ok(dnssec_ok && self.chase.is_none());
            message.set_edns(edns);
        }
        message.to_vec()
    }

    /// Writes the answer, with that of an upstream server to [`Self::question`]; `None` if there was none.
    pub fn finish(self, upstream: Option<&[u8]>, out: &mut Vec<u8>) {
        match self.chase {
            Some((mut reply, _)) => {
                // Without an answer the alias alone is one.
                if let Some(message) = upstream.and_then(of_a_query) {
                    reply.truncated |= message.metadata.truncation;
                    reply.answers.extend(message.answers);
                }
                write(&self.request, &reply, out);
            }
            None => match upstream {
                Some(bytes) if bytes.len() <= self.request.limit.into() && bytes.len() >= 12 => {
                    out.clear();
                    out.extend_from_slice(&self.request.metadata.id.to_be_bytes());
                    out.extend_from_slice(&bytes[2..]);
                }
                Some(_) => {
                    let mut reply = Reply::empty(ResponseCode::NoError, false);
                    reply.truncated = true;
                    write(&self.request, &reply, out);
                }
                None => write(&self.request, &Reply::empty(ResponseCode::ServFail, false), out),
            },
        }
    }

    /// Writes the answer where nobody may be asked.
    pub fn refuse(self, out: &mut Vec<u8>) {
        match self.chase {
            Some(_) => self.finish(None, out),
            None => write(&self.request, &Reply::empty(ResponseCode::Refused, false), out),
        }
    }
}

/// A question, or an answer to one. Messages about updates (RFC 2136 §2.4) may have records without data, which answers have not.
fn of_a_query(bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok();
    message.filter(|message| message.metadata.op_code == OpCode::Query)
}

/// Whether `answer` is one to `question`: its id, and what it says it was asked (RFC 5452 §9.1).
pub(super) fn answers(question: &[u8], answer: &[u8]) -> bool {
    let (Some(question), Some(answer)) = (of_a_query(question), of_a_query(answer)) else {
        return false;
    };
    let same = |(asked, said): (&Query, &Query)| {
        asked.name().eq_ignore_root(said.name())
            && asked.query_type() == said.query_type()
            && asked.query_class() == said.query_class()
    };
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && iter::zip(&question.queries, &answer.queries).all(same)
        && question.queries.len() == answer.queries.len()
}
