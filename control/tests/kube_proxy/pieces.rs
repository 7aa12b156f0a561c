//! Fragments and checksums of flows (FRG-1, CSM-1).

use crate::bench::{REMOTE, bench, client, family};
use crate::cluster::Cluster;
use crate::fate::{place, same_payload};
use crate::ledger::Row;
use crate::packet::Packet;
use crate::topology::{self, Family, Station, having, ip, named};

/// What fragments of one datagram come to at the other side.
fn arrived(cluster: &mut Cluster, from: &Station, pieces: &[Packet]) -> Vec<Packet> {
    let mut seen = Vec::new();
    for piece in pieces {
        seen.extend(cluster.bed.send(from, piece));
    }
    // All to one place, or it is no datagram.
    let to = |packet: &Packet| having(packet.dst).map(place);
    let astray = seen.iter().any(|one| to(&one.packet) != Some((one.nic, one.to)));
    if astray {
        Vec::new()
    } else {
        seen.into_iter().map(|one| one.packet).collect()
    }
}

/// Whom the endpoint sees, once the datagram is whole and right.
fn sight(pieces: &[Packet], sent: &Packet) -> String {
    let Some(whole) = Packet::joined(pieces) else {
        return "incomplete".into();
    };
    let one = pieces
        .iter()
        .all(|piece| (piece.src, piece.dst) == (whole.src, whole.dst));
    if !one || !whole.is_sound() || same_payload(&whole, sent).is_none() {
        return format!("not the datagram: {:?}", whole.src);
    }
    let kind = if whole.src == sent.src {
        Some("client-kept")
    } else {
        topology::kind(whole.src)
    };
    format!(
        "{} pieces, {}:{}",
        pieces.len(),
        kind.unwrap_or("a stranger"),
        whole.dport()
    )
}

pub(crate) fn long_datagram(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let mut cluster = bench();
    let sent = Packet::udp((address, 28_400), (ip(row.text("dst")), 80), &[b'x'; 8000]);
    let size = if family == Family::V4 { 1480 } else { 1448 };
    let got = arrived(&mut cluster, station, &sent.cut(77, size));
    let mut ours = sight(&got, &sent);
    // The answer is as long.
    if let Some(whole) = Packet::joined(&got) {
        let answer = Packet::udp(
            (whole.dst, whole.dport()),
            (whole.src, whole.sport()),
            &[b'y'; 8000],
        );
        let endpoint = having(whole.dst).unwrap();
        let back = arrived(&mut cluster, endpoint, &answer.cut(78, size));
        let right = Packet::joined(&back).is_some_and(|back| {
            (back.src, back.sport(), back.dst, back.dport()) == (sent.dst, 80, sent.src, 28_400)
                && back.is_sound()
        });
        ours += if right { ", answered" } else { ", not answered" };
    }
    let seen = row.value["fragments_seen_by_endpoint"].as_array().unwrap();
    let src = seen[0]["src"].as_str().unwrap();
    let kind = if src == address.to_string() {
        Some("client-kept")
    } else {
        topology::kind(ip(src))
    };
    // The record has both ways, where both were at the endpoint's own interface.
    let towards = seen.iter().filter(|piece| piece["dst"] == seen[0]["dst"]).count();
    let recorded = format!(
        "{towards} pieces, {}:{}, answered",
        kind.unwrap(),
        seen[0]["dport"]
    );
    (recorded, ours)
}

pub(crate) fn hand_made(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let (station, address) = client(row);
    let sent = Packet::udp((address, 28_500), (ip(REMOTE[0]), 80), &[b'x'; 4000]);
    let pieces = sent.cut(28_680, 1480);
    let order = row.value["sent"].as_array().unwrap().iter();
    let order: Vec<_> = order
        .map(|index| pieces[index.as_u64().unwrap() as usize].clone())
        .collect();
    let ours = arrived(&mut cluster, station, &order);
    let seen = row.value["seen_by_endpoint"].as_array().unwrap();
    let recorded = match seen.first() {
        None => "nothing".to_owned(),
        Some(first) => {
            let kind = topology::kind(ip(first["src"].as_str().unwrap()));
            format!("{} pieces, {}:{}", seen.len(), kind.unwrap(), first["dport"])
        }
    };
    let ours = if ours.is_empty() {
        "nothing".to_owned()
    } else {
        sight(&ours, &sent)
    };
    (recorded, ours)
}

/// CSM-1: no checksum stays none, a right one stays right.
pub(crate) fn checksum(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let (station, address) = client(row);
    let mut sent = Packet::udp((address, 28_600), (ip(REMOTE[0]), 80), b"checksum");
    if row.value["sent_checksum"] == 0 {
        sent.transport[6..8].fill(0);
    }
    let word = |none: bool, right: bool| match (none, right) {
        (true, _) => "none",
        (false, true) => "right",
        (false, false) => "wrong",
    };
    let of = |packet: &Packet| word(packet.number(6) == 0, packet.is_sound());
    let ours = match &cluster.bed.send(station, &sent)[..] {
        [one] => match &cluster.bed.send(named("r1"), &one.packet.answer())[..] {
            [back] => format!("{} there, {} back", of(&one.packet), of(&back.packet)),
            _ => "no answer".into(),
        },
        _ => "nothing".into(),
    };
    let field = |name: &str| {
        let seen = &row.value[name][0];
        word(seen["ucsum"] == 0, seen["valid"] == true)
    };
    (
        format!(
            "{} there, {} back",
            field("seen_by_endpoint"),
            field("reply_at_client")
        ),
        ours,
    )
}
