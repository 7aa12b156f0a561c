//! Workers share nothing that is written: no cache line that one of them changes while packets of known flows pass is ever
//! changed by another. A process of its own and without other threads,
//! since it looks at all of its memory before and after each worker's turn; what is
//! written as it was before is not seen.
#![allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "all of this file and its modules are test code, and the support is not only this test's"
)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;

use etherparse::PacketBuilder;

use support::records::Records;
use support::station::{Port, station};
use support::vector::Setup;
use support::world::World;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Packets of each worker in each phase: a burst, and the beginning of another.
const PACKETS: usize = 80;
const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 7);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const TABLES: &str = "put network pods 10.244.0.0/16, put network services 10.96.0.0/16, put service a udp, \
                      put cluster-ip a 10.96.0.10:53, put backend a 10.244.0.11:8080, put backend a 10.244.0.12:8080";

/// Areas of memory that this process may write to, but this thread's stack.
fn areas() -> Vec<(usize, usize)> {
    let here = 0u8;
    let here = std::ptr::from_ref(&here).addr();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|n| usize::from_str_radix(n, 16).unwrap());
        let ours = rest.starts_with("rw") && !rest.contains("[stack]") && !(start..end).contains(&here);
        ours.then_some((start, end - start))
    });
    ours.collect()
}

/// What is in `areas`, one after the other.
fn read(areas: &[(usize, usize)], into: &mut [u8]) {
    let own = File::open("/proc/self/mem").unwrap();
    let mut rest = into;
    for (start, len) in areas {
        let (area, others) = rest.split_at_mut(*len);
        own.read_exact_at(area, *start as u64).unwrap();
        rest = others;
    }
}

/// Places of lines that differ.
fn differing(a: &[u8], b: &[u8]) -> BTreeSet<usize> {
    let lines = a.chunks(LINE).zip(b.chunks(LINE)).enumerate();
    lines.filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect()
}

fn request(port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(station(CLIENT), Port::Client.mac())
        .ipv4(CLIENT.octets(), CLUSTER_IP.octets(), 64)
        .udp(port, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"whose?").unwrap();
    frame
}

/// How many lines each of two workers changes, and how many of them both do, while packets of known flows come in on the
/// queue that `queue` says for the flow's owner.
fn changed(queue: impl Fn(usize) -> usize) -> ([usize; 2], usize) {
    let mut world = World::new(&Setup::default(), 2, 20_261_127);
    let tables = Records::default().transaction(TABLES).unwrap();
    world.apply(&tables).unwrap();
    let mut ports = [0, 1].map(|worker| {
        (40_000..)
            .filter(|&port| world.owner(CLIENT, port) == worker)
            .take(PACKETS)
            .collect::<Vec<u16>>()
    });
    // The second time, everything that is done once has been done.
    for _ in 0..2 {
        for (worker, ports) in ports.iter().enumerate() {
            for &port in ports {
                world.send(worker, Port::Client, &request(port));
            }
        }
        world.settle();
        assert_eq!(world.left().len(), 2 * PACKETS);
    }

    for (owner, ports) in ports.iter_mut().enumerate() {
        for &port in &*ports {
            world.send(queue(owner), Port::Client, &request(port));
        }
    }
    let areas = areas();
    let all = areas.iter().map(|(_, len)| len).sum();
    let [mut before, mut between, mut after] = [(); 3].map(|()| vec![0; all]);
    read(&areas, &mut before);
    world.turn_alone(0);
    read(&areas, &mut between);
    world.turn_alone(1);
    read(&areas, &mut after);

    let by = [differing(&before, &between), differing(&between, &after)];
    let both = by[0].intersection(&by[1]).count();
    world.settle();
    assert_eq!(world.left().len(), 2 * PACKETS, "they have all passed");
    (by.map(|lines| lines.len()), both)
}

/// No cache line is written by two workers while packets of known flows pass.
fn main() {
    let (by, both) = changed(|owner| owner);
    println!("the workers wrote {by:?} lines, both of them {both}");
    assert!(
        by.iter().all(|&lines| lines > 2 * PACKETS),
        "frames and flows at least: {by:?}"
    );
    assert_eq!(both, 0);
    let (by, both) = changed(|owner| 1 - owner);
    println!("with every packet on the other's queue {by:?} lines, both of them {both}");
    assert!(both > 0, "what is handed over is written by two");
}
