//! A question and what is known, to the answer. Pure: no socket, no clock, no chance. What must be asked of somebody else
//! is said, not asked.
//!
//! Names are read from the right: `web.default.svc.cluster.local` is a Service, with `_http._tcp.` before it one of its
//! ports, with one other label before it one of its endpoints.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

mod name;

use super::zone::{Endpoint, Hosts, Zone};
use name::{Found, Place, Wanted, find};

/// Aliases that are followed for one question, as far as CoreDNS goes (DNS-12).
const LONGEST_CHAIN: usize = 8;
/// The version of the names' specification (DNS-14), and how long it may be kept.
const VERSION: (&str, u32) = ("1.1.0", 28_800);
/// Of negative answers (DNS-20), in seconds.
const LONGEST_SOA_TTL: u32 = 300;
/// Refresh, retry and expire of a zone that nobody transfers, in seconds (DNS-18).
const SOA_TIMES: (i32, i32, i32) = (7_200, 1_800, 86_400);

/// What an answer has beside its header.
#[derive(Debug)]
pub struct Reply {
    /// How it went.
    pub code: ResponseCode,
    /// Whether the answer is ours.
    pub authoritative: bool,
    /// Whether more was there than may be.
    pub truncated: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The zone, where there is nothing.
    pub authorities: Vec<Record>,
    /// Addresses of what the answers name.
    pub additionals: Vec<Record>,
}

/// What becomes of a question.
#[derive(Debug)]
pub enum Outcome {
    /// This is the answer.
    Reply(Reply),
    /// Nothing of ours: it is for an upstream server as it is (DNS-23).
    Forward,
    /// The answer so far; an upstream server is to be asked for the same type at this name (DNS-12).
    Chase(Reply, Name),
}

/// What of many is given.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    /// Where in the list to begin, so that not all clients take the same one (DNS-21).
    pub turn: usize,
    /// Most records of an answer: no message holds more.
    pub most: usize,
}

impl Reply {
    /// One without records.
    pub const fn empty(code: ResponseCode, authoritative: bool) -> Self {
        Self {
            code,
            authoritative,
            truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// Answers `query` from `zone`.
pub fn answer(zone: &Zone, query: &Query, pick: Pick) -> Outcome {
    let (name, kind) = (query.name(), query.query_type());
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return Outcome::Reply(Reply::empty(ResponseCode::Refused, false));
    }
    if !zone.domain.zone_of(name) {
        return reverse(zone, name, kind, pick);
    }
    let question = Question {
        zone,
        suffix: name.trim_to(zone.domain.num_labels().into()),
        kind,
        pick,
    };
    question.answer(name)
}

/// DNS-4, DNS-10: what has this address. What is not known is not ours alone to say.
fn reverse(zone: &Zone, name: &Name, kind: RecordType, pick: Pick) -> Outcome {
    let address = match kind {
        RecordType::PTR => name.parse_arpa_name().ok(),
        _ => None,
    };
    let Some(address) = address.filter(|net| net.prefix_len() == net.max_prefix_len()) else {
        return Outcome::Forward;
    };
    let mut reply = Reply::empty(ResponseCode::NoError, true);
    for (service, host) in zone.at(address.addr()).take(pick.most) {
        let labels = [host.unwrap_or_default(), &service.name, &service.namespace, "svc"];
        if let Some(target) = below(labels.map(str::as_bytes), &zone.domain) {
            let record = Record::from_rdata(name.clone(), zone.ttl, RData::PTR(PTR(target)));
            reply.answers.push(record);
        }
    }
    match (reply.answers.is_empty(), zone.complete) {
        (false, _) => Outcome::Reply(reply),
        (true, false) => Outcome::Reply(Reply::empty(ResponseCode::ServFail, false)),
        (true, true) => Outcome::Forward,
    }
}

/// The name of these labels below `suffix`; empty labels are left out.
fn below<'l>(labels: impl IntoIterator<Item = &'l [u8]>, suffix: &Name) -> Option<Name> {
    let labels = labels.into_iter().filter(|label| !label.is_empty());
    Name::from_labels(labels).ok()?.append_domain(suffix).ok()
}

/// A question about the zone.
struct Question<'z> {
    zone: &'z Zone,
    /// The zone's name as the asker wrote it: answers are in its letters (0x20).
    suffix: Name,
    kind: RecordType,
    pick: Pick,
}

impl Question<'_> {
    fn answer(&self, asked: &Name) -> Outcome {
        let mut reply = Reply::empty(ResponseCode::NoError, true);
        let mut name = asked.clone();
        // DNS-12: from alias to alias; a way that leads nowhere in here is as if it were not there.
        loop {
            let lower = name.to_lowercase();
            let target = match find(self.zone, &lower) {
                Found::Nothing if reply.answers.is_empty() && !self.zone.complete => {
                    return Outcome::Reply(Reply::empty(ResponseCode::ServFail, false));
                }
                Found::Nothing if reply.answers.is_empty() => {
                    reply.code = ResponseCode::NXDomain;
                    break;
                }
                Found::Alias(target) => target.clone(),
                found => {
                    let aliases = reply.answers.len();
                    self.fill(&mut reply, &name, &found);
                    if reply.answers.len() == aliases {
                        reply.answers.clear();
                    }
                    break;
                }
            };
            let again = target.eq_ignore_root(&name) || aliased(&reply.answers, &name);
            let alias = RData::CNAME(CNAME(target.clone()));
            match self.kind {
                RecordType::CNAME if reply.answers.is_empty() => self.push(&mut reply, &name, alias),
                RecordType::A | RecordType::AAAA if again || reply.answers.len() == LONGEST_CHAIN => {
                    reply.answers.clear();
                }
                RecordType::A | RecordType::AAAA => {
                    self.push(&mut reply, &name, alias);
                    if !self.zone.domain.zone_of(&target) {
                        return Outcome::Chase(reply, target);
                    }
                    name = target;
                    continue;
                }
                _ => {}
            }
            break;
        }
        if reply.answers.is_empty() {
            reply.authorities.extend(self.soa());
        }
        Outcome::Reply(reply)
    }

    /// Adds what stands at `name` that is of the type asked for.
    fn fill(&self, reply: &mut Reply, name: &Name, found: &Found<'_, '_>) {
        match (found, self.kind) {
            (Found::Apex, RecordType::SOA) => reply.answers.extend(self.soa()),
            (Found::Apex, RecordType::NS) => {
                for server in self.zone.servers.iter().take(self.pick.most) {
                    let labels = server.labels.iter().map(|label| label.as_bytes());
                    let Some(server_name) = below(labels, &self.suffix) else {
                        continue;
                    };
                    let addresses = server.addresses.iter();
                    let addresses = addresses.map(|address| self.record(&server_name, rdata(*address)));
                    reply.additionals.extend(addresses);
                    self.push(reply, name, RData::NS(NS(server_name)));
                }
            }
            (Found::Version, RecordType::TXT) => {
                let text = RData::TXT(TXT::new(vec![VERSION.0.into()]));
                reply
                    .answers
                    .push(Record::from_rdata(name.clone(), VERSION.1, text));
            }
            (Found::NameServer, _) => {
                let servers = self.zone.servers.iter();
                let all: Vec<IpAddr> = servers
                    .flat_map(|server| server.addresses.iter().copied())
                    .collect();
                self.addresses(reply, name, &all);
            }
            (Found::Service(hosts, wanted, place), RecordType::SRV) => match hosts.headless {
                true => self.endpoint_ports(reply, name, &hosts.endpoints, *wanted, *place),
                false => self.service_ports(reply, name, hosts, *wanted, *place),
            },
            (Found::Service(hosts, ..), RecordType::A) => self.rotated(reply, &hosts.v4, |reply, address| {
                self.push(reply, name, RData::A(A(address)));
            }),
            (Found::Service(hosts, ..), RecordType::AAAA) => {
                self.rotated(reply, &hosts.v6, |reply, address| {
                    self.push(reply, name, RData::AAAA(AAAA(address)));
                })
            }
            (Found::Endpoints(list, wanted, place), RecordType::SRV) => {
                self.endpoint_ports(reply, name, list, *wanted, *place);
            }
            (Found::Endpoints(list, wanted, _), RecordType::A | RecordType::AAAA) => {
                let any = wanted.name.is_empty() && wanted.protocol.is_empty();
                let takes =
                    |endpoint: &&Endpoint| any || endpoint.ports.iter().any(|port| wanted.takes(port));
                let addresses = list.iter().filter(takes).filter_map(Endpoint::address);
                let mut addresses: Vec<IpAddr> = addresses.collect();
                addresses.sort_unstable();
                addresses.dedup();
                self.addresses(reply, name, &addresses);
            }
            (Found::Pod(address, namespace, pod), RecordType::SRV) => {
                if let Some(target) = below([*pod, *namespace, b"pod"], &self.suffix) {
                    reply.additionals.push(self.record(&target, rdata(*address)));
                    self.push(reply, name, RData::SRV(SRV::new(0, 100, 0, target)));
                }
            }
            (Found::Pod(address, ..), _) => self.addresses(reply, name, &[*address]),
            _ => {}
        }
    }

    /// Those of `list` that are of the family asked for.
    fn addresses(&self, reply: &mut Reply, name: &Name, list: &[IpAddr]) {
        let of_kind = |address: &IpAddr| match self.kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => false,
        };
        let list: Vec<IpAddr> = list.iter().copied().filter(of_kind).collect();
        self.rotated(reply, &list, |reply, address| {
            self.push(reply, name, rdata(address))
        });
    }

    /// DNS-2, DNS-3: of a Service with cluster IPs.
    fn service_ports(
        &self,
        reply: &mut Reply,
        name: &Name,
        hosts: &Hosts,
        wanted: Wanted<'_>,
        place: Place<'_>,
    ) {
        let ports = || hosts.ports.iter().filter(|port| wanted.takes(port));
        let addresses = hosts.v4.len() + hosts.v6.len();
        let weight = weight(ports().count() * addresses);
        let Some(target) = below([place.service, place.namespace, b"svc"], &self.suffix) else {
            return;
        };
        let mut numbers: Vec<u16> = ports().map(|port| port.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers.into_iter().take(self.pick.most) {
            self.push(
                reply,
                name,
                RData::SRV(SRV::new(0, weight, number, target.clone())),
            );
        }
        let v4 = hosts.v4.iter().map(|address| RData::A(A(*address)));
        let v6 = hosts.v6.iter().map(|address| RData::AAAA(AAAA(*address)));
        reply
            .additionals
            .extend(v4.chain(v6).map(|data| self.record(&target, data)));
    }

    /// DNS-8: of endpoints.
    fn endpoint_ports(
        &self,
        reply: &mut Reply,
        name: &Name,
        list: &[Endpoint],
        wanted: Wanted<'_>,
        place: Place<'_>,
    ) {
        let ports = |endpoint: &Endpoint| endpoint.ports.iter().filter(|port| wanted.takes(port)).count();
        let of_addresses = list.iter().filter(|endpoint| endpoint.address().is_some());
        let weight = weight(of_addresses.map(ports).sum());
        let (mut said, mut named) = (HashSet::new(), HashSet::new());
        let turn = self.pick.turn % list.len().max(1);
        for endpoint in list[turn..].iter().chain(&list[..turn]) {
            let Some(address) = endpoint.address() else {
                continue;
            };
            let labels = [endpoint.host.as_bytes(), place.service, place.namespace, b"svc"];
            let Some(target) = below(labels, &self.suffix) else {
                continue;
            };
            for port in endpoint.ports.iter().filter(|port| wanted.takes(port)) {
                if reply.answers.len() == self.pick.most {
                    reply.truncated = true;
                    return;
                }
                if said.insert((&*endpoint.host, port.number)) {
                    let srv = SRV::new(0, weight, port.number, target.clone());
                    self.push(reply, name, RData::SRV(srv));
                }
                if named.insert((&*endpoint.host, address)) {
                    reply.additionals.push(self.record(&target, rdata(address)));
                }
            }
        }
    }

    /// As many of `list` as may be, begun in turn.
    fn rotated<T: Copy>(&self, reply: &mut Reply, list: &[T], mut push: impl FnMut(&mut Reply, T)) {
        let turn = self.pick.turn % list.len().max(1);
        let all = list[turn..].iter().chain(&list[..turn]);
        all.take(self.pick.most).for_each(|item| push(reply, *item));
        reply.truncated |= list.len() > self.pick.most;
    }

    fn push(&self, reply: &mut Reply, name: &Name, data: RData) {
        reply.answers.push(self.record(name, data));
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.zone.ttl, data)
    }

    /// DNS-18.
    fn soa(&self) -> Option<Record> {
        let (refresh, retry, expire) = SOA_TIMES;
        let server = below([&b"ns"[..], b"dns"], &self.suffix)?;
        let mailbox = below([&b"hostmaster"[..]], &self.suffix)?;
        let ttl = self.zone.ttl.min(LONGEST_SOA_TTL);
        let soa = SOA::new(
            server,
            mailbox,
            self.zone.serial,
            refresh,
            retry,
            expire,
            self.zone.ttl,
        );
        Some(Record::from_rdata(self.suffix.clone(), ttl, RData::SOA(soa)))
    }
}

/// Whether one of the aliases is that of `name`.
fn aliased(aliases: &[Record], name: &Name) -> bool {
    aliases.iter().any(|alias| alias.name.eq_ignore_root(name))
}

fn rdata(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// The share of each of `count`, never none.
fn weight(count: usize) -> u16 {
    u16::try_from(100 / count.max(1)).unwrap_or(100).max(1)
}
