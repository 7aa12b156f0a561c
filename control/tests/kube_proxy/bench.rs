//! The gateway that the rows of `flows.jsonl` meet, and open flows through it.

use std::net::IpAddr;

use crate::bed::Seen;
use crate::cluster::{Cluster, Options};
use crate::ledger::Row;
use crate::packet::{Packet, TCP};
use crate::probe::opening;
use crate::shape::{ALL, Shape, pair, ready};
use crate::topology::{self, Family, Station, having, named};

pub(crate) const NODE_PORT: u16 = 30_094;

/// Frontends of the bench: cluster IPs that share an endpoint two and two, one with all, one that nobody listens behind.
pub(crate) const REMOTE: [&str; 2] = ["10.96.51.135", "fd00:10:96::5032"];
const REMOTE_TOO: [&str; 2] = ["10.96.71.64", "fd00:10:96::5b3f"];
pub(crate) const LOCAL: [&str; 2] = ["10.96.174.72", "fd00:10:96::3939"];
const LOCAL_TOO: [&str; 2] = ["10.96.200.7", "fd00:10:96::e43d"];
pub(crate) const CLOSED: [&str; 2] = ["10.96.139.248", "fd00:10:96::e991"];
pub(crate) const BALANCED: [&str; 2] = ["203.0.113.71", "2001:db8:113::71"];
pub(crate) const ANY: [&str; 2] = ["10.96.51.1", "fd00:10:96::5001"];

/// The gateway with the Services of these rows.
pub(crate) fn bench() -> Cluster {
    let of = |name: &str, [v4, v6]: [&str; 2], endpoints: &[&'static str]| Shape {
        name: name.into(),
        cluster: pair(v4, v6),
        endpoints: ready(endpoints),
        ..Shape::default()
    };
    let closed = Shape {
        ports: vec![("u", "UDP", 80, 9999, None)],
        ..of("closed", CLOSED, &["r1"])
    };
    let balanced = Shape {
        balanced: pair(BALANCED[0], BALANCED[1]).into(),
        external_policy: "Local",
        ..of("balanced", ["10.96.51.2", "fd00:10:96::5002"], &ALL)
    };
    let any = Shape {
        ports: vec![
            ("t", "TCP", 80, 8080, Some(NODE_PORT)),
            ("u", "UDP", 80, 8080, Some(NODE_PORT)),
        ],
        ..of("any", ANY, &ALL)
    };
    let shapes = [
        of("remote", REMOTE, &["r1"]),
        of("remote-too", REMOTE_TOO, &["r1"]),
        of("local", LOCAL, &["l1"]),
        of("local-too", LOCAL_TOO, &["l1"]),
        closed,
        balanced,
        any,
    ];
    let mut cluster = Cluster::new(&Options::default());
    cluster.apply(shapes.iter().flat_map(Shape::objects));
    cluster
}

/// The family of a row: named, or that of the addresses in it.
pub(crate) fn family(row: &Row) -> Family {
    match row.text("family") {
        "" if row.value.to_string().contains("fd00:") => Family::V6,
        "" => Family::V4,
        name => Family::named(name),
    }
}

/// The row's client and its address.
pub(crate) fn client(row: &Row) -> (&'static Station, IpAddr) {
    let name = match row.text("client") {
        "" => "client",
        "node1" => "node",
        name => name,
    };
    (named(name), named(name).address(family(row)))
}

/// A flow that is open: both ends' sight of it.
pub(crate) struct Talk {
    client: &'static Station,
    /// The client's packet, and the same at the endpoint.
    pub(crate) sent: Packet,
    pub(crate) got: Packet,
}

impl Talk {
    /// Opens it; `None` if nothing reaches an endpoint.
    pub(crate) fn open(
        cluster: &mut Cluster,
        client: &'static Station,
        protocol: &str,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
    ) -> Option<Self> {
        Self::begin(cluster, client, opening(protocol, from, to))
    }

    /// The same with a packet of one's own.
    pub(crate) fn begin(cluster: &mut Cluster, client: &'static Station, sent: Packet) -> Option<Self> {
        let mut seen = cluster.bed.send(client, &sent);
        let got = seen.pop()?.packet;
        having(got.dst)?;
        seen.is_empty().then_some(Self { client, sent, got })
    }

    /// Who the endpoint is, and whom it sees.
    pub(crate) fn ends(&self) -> (&'static str, &'static str) {
        let kind = match topology::kind(self.got.src) {
            _ if self.got.src == self.sent.src => "client-kept",
            kind => kind.unwrap_or("a stranger"),
        };
        (
            having(self.got.dst).map_or("nobody", |station| station.name),
            kind,
        )
    }

    /// The client goes on; whether it arrives where the flow leads.
    pub(crate) fn say(&self, cluster: &mut Cluster, flags: u8) -> bool {
        let (from, to) = (
            (self.sent.src, self.sent.sport()),
            (self.sent.dst, self.sent.dport()),
        );
        let packet = self.packet(from, to, flags);
        let seen = cluster.bed.send(self.client, &packet);
        arrived(&seen, self.got.src, self.got.sport(), self.got.dst)
    }

    /// The endpoint goes on; whether it comes back to the client from where the client had sent to.
    pub(crate) fn answer(&self, cluster: &mut Cluster, flags: u8) -> bool {
        let (from, to) = ((self.got.dst, self.got.dport()), (self.got.src, self.got.sport()));
        let packet = self.packet(from, to, flags);
        let Some(endpoint) = having(self.got.dst) else {
            return false;
        };
        let seen = cluster.bed.send(endpoint, &packet);
        arrived(&seen, self.sent.dst, self.sent.dport(), self.sent.src)
    }

    fn packet(&self, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Packet {
        if self.sent.protocol == TCP {
            Packet::tcp(from, to, flags, b"")
        } else {
            Packet::udp(from, to, b"more")
        }
    }
}

fn arrived(seen: &[Seen], src: IpAddr, sport: u16, dst: IpAddr) -> bool {
    matches!(seen, [one] if (one.packet.src, one.packet.sport(), one.packet.dst) == (src, sport, dst) && one.packet.is_sound())
}
