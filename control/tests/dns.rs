//! The same objects and questions give the answers that a real CoreDNS gave (DNS-1 to DNS-25): rcode, flags, sections, TTLs.

use std::collections::BTreeMap;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde_json::Value;
use sluice_control::dns::kube_dns;
use sluice_control::dns::wire::{self, Transport, Verdict};
use sluice_control::dns::zone::{Options, PodNames, Zone};
use sluice_control::endpoints;

use crate::support::{Tally, folder, model, records, text};

/// Where we differ on purpose.
mod differences;
/// What needs no record.
mod rules;

/// Any labels, even those that no host may have.
pub(crate) fn name(text: &str) -> Name {
    let labels = text.split('.').filter(|label| !label.is_empty());
    Name::from_labels(labels.map(str::as_bytes)).unwrap()
}

pub(crate) fn options() -> Options {
    Options {
        domain: name("cluster.local."),
        ttl: 30,
        pods: PodNames::Insecure,
        endpoint_pod_names: false,
        namespaces: None,
        ignore_empty_services: false,
        service: kube_dns::name(),
        addresses: Vec::new(),
    }
}

pub(crate) fn zone(text: &str, options: &Options) -> Zone {
    let model = model(text);
    assert!(model.problems().is_empty(), "{:?}", model.problems());
    Zone::new(options, &model, &endpoints::slices(&model), 1)
}

/// The recorded upstream server: a few names, nothing else, and no datagram longer than the asker takes.
struct Upstream(BTreeMap<String, Value>);

impl Upstream {
    fn answer(&self, question: &[u8], transport: Transport) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries[0].clone();
        let mut message = Message::response(question.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = question.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        let kind = query.query_type();
        let (mut at, mut exists) = (query.name().clone(), true);
        loop {
            let key = at.to_string().trim_end_matches('.').to_ascii_lowercase();
            let known = self.0.get(&key);
            exists = exists && known.is_some();
            let Some(known) = known else { break };
            if known == "SERVFAIL" {
                message.metadata.response_code = ResponseCode::ServFail;
                break;
            }
            let data = |kind: RecordType| known[kind.to_string()].as_array().cloned().unwrap_or_default();
            let mut next = None;
            for text in data(RecordType::CNAME).iter().filter_map(Value::as_str) {
                let target = name(text);
                let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(target.clone()));
                message.add_answer(Record::from_rdata(at.clone(), 300, alias));
                next = Some(target);
            }
            for text in data(kind).iter().filter_map(Value::as_str) {
                let text = text.trim_matches('"');
                let data = match kind {
                    RecordType::A => RData::A(text.parse().unwrap()),
                    RecordType::AAAA => RData::AAAA(text.parse().unwrap()),
                    RecordType::PTR => RData::PTR(hickory_proto::rr::rdata::PTR(name(text))),
                    RecordType::TXT => RData::TXT(hickory_proto::rr::rdata::TXT::new(vec![text.into()])),
                    RecordType::MX => {
                        let (preference, exchange) = text.split_once(' ').unwrap();
                        let preference = preference.parse().unwrap();
                        RData::MX(hickory_proto::rr::rdata::MX::new(preference, name(exchange)))
                    }
                    _ => continue,
                };
                message.add_answer(Record::from_rdata(at.clone(), 300, data));
            }
            match next {
                Some(target) => at = target,
                None => break,
            }
        }
        if !exists {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        let ends = message.answers.last().map(|record| record.data.record_type());
        if ends.is_none() || ends == Some(RecordType::CNAME) {
            let (server, mailbox) = (name("ns.upstream.test."), name("h.upstream.test."));
            let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, 30);
            message.add_authority(Record::from_rdata(name("upstream.test."), 300, RData::SOA(soa)));
        }
        message.add_query(query);
        message.edns.clone_from(&question.edns);
        let bytes = message.to_vec().unwrap();
        if transport == Transport::Udp && bytes.len() > question.max_payload().into() {
            return message.truncate().to_vec().unwrap();
        }
        bytes
    }
}

/// What a client gets, whoever is asked for it.
fn ask(
    zone: &Zone,
    upstream: Option<&Upstream>,
    question: &Message,
    transport: Transport,
) -> Option<Message> {
    let mut out = Vec::new();
    match wire::handle(zone, &question.to_vec().unwrap(), transport, &mut out) {
        Verdict::Answered => {}
        Verdict::Dropped(_) => return None,
        Verdict::Ask(pending) => match upstream {
            None => pending.refuse(&mut out),
            Some(upstream) => {
                let answer = upstream.answer(&pending.question(7).unwrap(), transport);
                pending.finish(Some(&answer), &mut out);
            }
        },
    }
    let answer =
        Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?} to {question:?}"));
    let limit = if transport == Transport::Udp {
        question.max_payload()
    } else {
        u16::MAX
    };
    assert!(out.len() <= limit.into(), "{} bytes for {limit}", out.len());
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.queries, question.queries);
    assert_eq!(answer.edns.is_some(), question.edns.is_some());
    Some(answer)
}

pub(crate) fn question(asked: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(asked), kind));
    message
}

fn kind(text: &str) -> RecordType {
    match text.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
        // The library reads no such names.
        None if text == "LOC" => RecordType::from(29),
        None if text == "IXFR" => RecordType::IXFR,
        None => text.parse().unwrap(),
    }
}

/// A record of `queries.jsonl` as a message.
fn recorded(record: &Value) -> (Message, Transport) {
    let (asked, type_name) = record["q"].as_str().unwrap().rsplit_once(' ').unwrap();
    let mut message = question(asked, kind(type_name));
    message.metadata.recursion_desired = record["rd"] != false;
    if let Some(class) = record["class"].as_str() {
        let class = match class {
            "CH" => DNSClass::CH,
            _ => DNSClass::ANY,
        };
        message.queries[0].set_query_class(class);
    }
    if let Some(size) = record["edns"]["udpSize"].as_u64() {
        let mut edns = Edns::new();
        // The library knows no smaller size than the least there is.
        edns.set_max_payload(u16::try_from(size).unwrap());
        edns.set_dnssec_ok(record["do"] == true);
        message.set_edns(edns);
    }
    let transport = if record["transport"] == "tcp" {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    (message, transport)
}

/// An answer in the record's form.
fn shown(answer: Option<&Message>) -> String {
    let Some(answer) = answer else {
        return "none".into();
    };
    let code = match answer.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        _ => "another",
    };
    let m = &answer.metadata;
    let flags = [
        (m.authoritative, "AA"),
        (m.truncation, "TC"),
        (m.recursion_desired, "RD"),
        (m.recursion_available, "RA"),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    if m.truncation {
        return format!("{code} {flags:?} {}", answer.answers.len());
    }
    let section = |records: &[Record]| -> Vec<String> {
        let line = |record: &Record| {
            let data = match &record.data {
                RData::SOA(soa) => format!(
                    "{} {} <serial> {} {} {} {}",
                    soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum
                ),
                RData::TXT(txt) => format!("{:?}", txt.to_string()),
                data => data.to_string(),
            };
            // The library escapes a leading hyphen.
            let name = record.name.to_string().replace('\\', "");
            format!("{name} {} {} {data}", record.ttl, record.record_type())
        };
        let mut lines: Vec<String> = records.iter().map(line).collect();
        lines.sort();
        lines
    };
    format!(
        "{code} {flags:?}\n answer {:#?}\n authority {:#?}\n additional {:#?}",
        section(&answer.answers),
        section(&answer.authorities),
        section(&answer.additionals)
    )
}

/// The record in the same form.
fn wanted(record: &Value) -> String {
    if record["noAnswer"] == true {
        return "none".into();
    }
    let code = record["rcode"].as_str().unwrap();
    let strings = |field: &str| -> Vec<String> {
        let list = record[field].as_array().cloned().unwrap_or_default();
        let serial = |text: &str| match text.split_once(" SOA ") {
            // Where the zone's letters are others, the record has the serial itself.
            Some((_, data)) if !data.contains(" 1 7200") => {
                let number = data.split(' ').nth(2).unwrap();
                text.replace(number, "<serial>")
            }
            Some(_) => text.replace(" 1 7200", " <serial> 7200"),
            None => text.to_owned(),
        };
        let mut list: Vec<String> = list.iter().map(|item| serial(item.as_str().unwrap())).collect();
        list.sort();
        list
    };
    let flags = strings("flags");
    let order = ["AA", "TC", "RD", "RA"];
    let flags: Vec<&str> = order
        .into_iter()
        .filter(|flag| flags.iter().any(|set| set == flag))
        .collect();
    if let Some(count) = record["answerCount"].as_u64() {
        return format!("{code} {flags:?} {count}");
    }
    format!(
        "{code} {flags:?}\n answer {:#?}\n authority {:#?}\n additional {:#?}",
        strings("answer"),
        strings("authority"),
        strings("additional")
    )
}

/// What was asked, and how where that is not usual.
fn id(record: &Value) -> String {
    let mut id = record["q"].as_str().unwrap().to_owned();
    if let Some(class) = record["class"].as_str() {
        id += &format!(", class {class}");
    }
    if let Some(size) = record["edns"]["udpSize"].as_u64() {
        id += &format!(", EDNS {size}");
    }
    if record["transport"] == "tcp" {
        id += ", TCP";
    }
    id
}

#[test]
fn the_recorded_answers_of_coredns_are_ours_but_for_differences_on_purpose() {
    let oracle = folder("oracle/dns");
    let zone = zone(&text(&oracle.join("zone.yaml")), &options());
    let upstream = Upstream(serde_json::from_str(&text(&oracle.join("upstream.json"))).unwrap());
    let mut tally = Tally::default();
    for record in records(&oracle.join("queries.jsonl")) {
        let (message, transport) = recorded(&record);
        let id = id(&record);
        let (got, recorded) = (ask(&zone, Some(&upstream), &message, transport), wanted(&record));
        let got = shown(got.as_ref());
        match differences::of(&id) {
            Some((reason, ours)) => tally.differ(&id, reason, &got, &recorded, &wanted(&ours)),
            None => tally.compare(&id, &got, &recorded),
        }
    }
    tally.all_differed(differences::ids());
    tally.finish(640);
}
