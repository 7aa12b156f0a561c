//! Shared memory with DPDK's testpmd, in both roles: as generator and sink, as a mirror, killed and started again.
//!
//! ```text
//! client 198.51.100.10 ── memif "clients" ── gateway ── memif "pods" ── pod 10.244.1.11
//! ```

use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use sluice_dataplane::counters::PortCounter;
use sluice_dataplane::nic::memif::{MemifSpec, Role};
use sluice_dataplane::nic::open::{DriverSpec, PortSpec, open};
use sluice_dataplane::nic::{Burst, Driver, FrameMemory, Link};

use crate::gateway::Gateway;
use crate::host::Host;
use crate::sandbox::{sandboxed, wait_until};
use crate::testpmd::{Memories, Memory, Port, Testpmd, present};

const LIMIT: Duration = Duration::from_secs(300);
/// How long anything but a start of testpmd may take, on a machine that has other work, too.
const SOON: Duration = Duration::from_secs(30);

const CLIENTS: &str = "/run/clients.sock";
const PODS: &str = "/run/pods.sock";
const CLIENT_MAC: &str = "02:00:00:00:00:0a";
const POD_MAC: &str = "02:00:00:00:00:0b";
const TABLES: &str = "
put network pods 10.244.0.0/16
put service echo udp
put cluster-ip echo 10.96.0.10:53
put backend echo 10.244.1.11:5353
";
/// What testpmd sends: datagrams of many clients to the Service, 64 bytes a frame.
const DATAGRAMS: [&str; 5] = [
    "--forward-mode=txonly",
    "--txpkts=64",
    "--tx-ip=198.51.100.10,10.96.0.10",
    "--tx-udp=4000,53",
    "--txonly-multi-flow",
];
/// The role of a client that lends its frames, as the config has it.
const LENDER: &str = "client, zeroCopy: true";
/// Enough for every ring to have gone round many times.
const MANY: u64 = 100_000;

/// The host that the gateways are on, one after the other.
fn prepared() -> Host {
    present();
    Host::silent("gateway")
}

fn other(role: &str) -> &'static str {
    if role == "server" { "client" } else { "server" }
}

/// A gateway with a role at each of its ports, the Service published.
fn gateway(host: Host, clients: &str, pods: &str, workers: u8) -> Gateway {
    let config = format!(
        "
node: {{addresses: [198.51.100.1]}}
ports:
- name: clients
  driver: memif
  interface: clients
  addresses: [198.51.100.1/24]
  memif: {{socket: {CLIENTS}, role: {clients}, peerMac: \"{CLIENT_MAC}\"}}
- name: pods
  driver: memif
  interface: pods
  addresses: [10.244.1.1/24]
  memif: {{socket: {PODS}, role: {pods}, peerMac: \"{POD_MAC}\"}}
routes: [{{to: 0.0.0.0/0, via: 198.51.100.10}}]
"
    );
    let mut gateway = Gateway::start_with(host, &config, workers, None);
    gateway.publish(TABLES);
    gateway
}

/// Our address on a port, from the line that tells of it.
fn mac_of(gateway: &Gateway, port: &str) -> String {
    let said = gateway.said();
    let line = said
        .lines()
        .find(|line| line.contains(&format!("NIC port {port}:")));
    let words = line
        .unwrap_or_else(|| panic!("no line about {port}: {said}"))
        .split([',', ' ']);
    let is_mac = |word: &&str| word.len() == 17 && word.matches(':').count() == 5;
    words
        .filter(|word| !word.is_empty())
        .find(is_mac)
        .unwrap()
        .to_owned()
}

/// How often a port was linked with a peer.
fn links(gateway: &Gateway, socket: &str) -> usize {
    let said = gateway.said();
    said.lines()
        .filter(|line| line.contains(&format!("at {socket}: linked with")))
        .count()
}

fn wait_for_link(gateway: &Gateway, socket: &str, count: usize) {
    wait_until("the peer is linked", SOON, || {
        (links(gateway, socket) >= count).then_some(())
    });
}

fn queue_pairs(count: u8) -> [String; 2] {
    [format!("--rxq={count}"), format!("--txq={count}")]
}

fn generator(gateway: &Gateway, memory: Memory, role: &str, queues: u8) -> Testpmd {
    let port = Port {
        role: other(role),
        socket: CLIENTS,
        mac: CLIENT_MAC,
    };
    let to = format!("--eth-peer=0,{}", mac_of(gateway, "clients"));
    let [rx, tx] = queue_pairs(queues);
    let options = [&DATAGRAMS[..], &[&to, &rx, &tx]].concat();
    Testpmd::start("generator", memory, &[port], &options)
}

fn sink(memory: Memory, role: &str, queues: u8) -> Testpmd {
    let port = Port {
        role: other(role),
        socket: PODS,
        mac: POD_MAC,
    };
    let [rx, tx] = queue_pairs(queues);
    let options = ["--forward-mode=rxonly", &rx, &tx];
    let mut sink = Testpmd::start("sink", memory, &[port], &options);
    sink.forward();
    sink
}

/// A counter that has stopped: nothing is under way any more.
pub(crate) fn settled(mut read: impl FnMut() -> u64) -> u64 {
    let mut last = None;
    wait_until("the counters stand still", SOON, || {
        // Still is what does not move for so long: nobody reports the last packet.
        std::thread::sleep(Duration::from_millis(100));
        let now = read();
        (last.replace(now) == Some(now)).then_some(now)
    })
}

fn everything_is_counted(host: Host, clients: &str, pods: &str, memory: Memory, queues: u8) -> Gateway {
    let gateway = gateway(host, clients, pods, queues);
    let mut sink = sink(memory, pods, queues);
    let mut generator = generator(&gateway, memory, clients, queues);
    wait_for_link(&gateway, PODS, 1);
    wait_for_link(&gateway, CLIENTS, 1);
    generator.forward();
    wait_until("packets arrive", SOON, || {
        (sink.counts(0).received > MANY).then_some(())
    });
    generator.stop();
    let received = settled(|| sink.counts(0).received);
    let sent = generator.counts(0).sent;
    let counter = |name| gateway.counter(name);
    eprintln!(
        "memif: clients {clients}, pods {pods}, {memory:?}, {queues} queues: {sent} sent, {} in, {} forwarded, {received} received; dropped: {}",
        counter("rx-packets"),
        counter("forwarded"),
        gateway.drops()
    );
    assert_eq!(counter("rx-packets"), sent, "what was sent was received here");
    assert_eq!(
        received + gateway.dropped(),
        sent,
        "and arrived, or was dropped, for want of room"
    );
    gateway
}

#[test]
fn what_testpmd_sends_is_translated_and_arrives_at_testpmd_or_is_counted() {
    let name = "memif::what_testpmd_sends_is_translated_and_arrives_at_testpmd_or_is_counted";
    sandboxed(name, LIMIT, || {
        let host = prepared();
        let memories = Memories::new(name);
        for &memory in &memories.kinds {
            for (clients, pods) in [("server", "client"), ("client", "server"), (LENDER, LENDER)] {
                everything_is_counted(host, clients, pods, memory, 1);
            }
        }
    });
}

#[test]
fn each_worker_has_a_queue_pair_of_testpmds() {
    let name = "memif::each_worker_has_a_queue_pair_of_testpmds";
    sandboxed(name, LIMIT, || {
        let host = prepared();
        for (clients, pods) in [("server", "client"), ("client", "server"), (LENDER, LENDER)] {
            let gateway = everything_is_counted(host, clients, pods, Memory::Small, 2);
            let said = gateway.said();
            let both = said.matches("2 rings to us and 2 from us").count();
            assert_eq!(both, 2, "{said}");
        }
    });
}

/// A station of ours on one of the sockets.
pub(crate) struct Station {
    pub(crate) port: Box<dyn Driver>,
    pub(crate) memory: FrameMemory,
}

impl Station {
    fn new(socket: &str, role: Role) -> Self {
        let new = Self::open(socket, role, false);
        wait_until("linked", SOON, || (new.port.link() == Link::Up).then_some(()));
        new
    }

    /// One whose peer comes later. A client may lend its frames.
    pub(crate) fn open(socket: &str, role: Role, zero_copy: bool) -> Self {
        let new = if zero_copy {
            FrameMemory::shared
        } else {
            FrameMemory::new
        };
        let mut memory = new(4096, 2048).unwrap();
        let options = MemifSpec {
            zero_copy,
            ..MemifSpec::new(socket, role)
        };
        let spec = PortSpec::new("station", "station0", DriverSpec::Memif(options));
        let port = open(&spec, &mut memory, &mut None).unwrap();
        Self { port, memory }
    }

    fn send(&mut self, packet: &[u8]) {
        let mut frames: Burst = self.memory.copy_in(packet).into_iter().collect();
        wait_until("room", SOON, || {
            self.port.tx_burst(&mut self.memory, &mut frames);
            frames.is_empty().then_some(())
        });
    }

    /// What has come.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Burst::new();
        self.port.rx_burst(&mut self.memory, &mut frames);
        let packets = frames
            .iter()
            .map(|frame| self.memory.bytes(frame).to_vec())
            .collect();
        frames.drain(..).for_each(|frame| self.memory.free(frame));
        packets
    }

    /// The next UDP packet; neighbours ask, too.
    fn next_datagram(&mut self) -> Vec<u8> {
        let udp = |packet: &Vec<u8>| packet[12..14] == [8, 0] && packet[23] == 17;
        wait_until("a datagram", SOON, || self.receive().into_iter().find(udp))
    }
}

/// Source and destination of a datagram, and whether its checksums are right (or, of UDP, absent).
fn judge(packet: &[u8]) -> (String, String) {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&sliced.net, &sliced.transport) else {
        panic!("no UDP over IPv4: {packet:02x?}")
    };
    let header = ip.header();
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum()
    );
    if udp.checksum() != 0 {
        let right = udp
            .to_header()
            .calc_checksum_ipv4(&header.to_header(), udp.payload())
            .unwrap();
        assert_eq!(udp.checksum(), right);
    }
    (
        format!("{}:{}", header.source_addr(), udp.source_port()),
        format!("{}:{}", header.destination_addr(), udp.destination_port()),
    )
}

#[test]
fn every_packet_of_testpmds_is_translated_right() {
    let name = "memif::every_packet_of_testpmds_is_translated_right";
    sandboxed(name, LIMIT, || {
        let host = prepared();
        for (clients, pods, role) in [
            ("server", "server", Role::Client),
            ("client", "client", Role::Server),
            (LENDER, LENDER, Role::Server),
        ] {
            let gateway = gateway(host, clients, pods, 1);
            let mut pod = Station::new(PODS, role);
            let mut generator = generator(&gateway, Memory::Small, clients, 1);
            wait_for_link(&gateway, CLIENTS, 1);
            generator.forward();
            let mut sources = std::collections::BTreeSet::new();
            let mut seen = 0;
            wait_until("many packets", SOON, || {
                for packet in pod
                    .receive()
                    .into_iter()
                    .filter(|packet| packet[12..14] == [8, 0])
                {
                    let (from, to) = judge(&packet);
                    assert!(
                        to == "10.244.1.11:5353" && packet[..6] == [2, 0, 0, 0, 0, 0x0b],
                        "{from} to {to}"
                    );
                    // Through the gateway's address, since the answer must come this way.
                    assert!(from.starts_with("10.244.1.1:"), "{from}");
                    sources.insert(from);
                    seen += 1;
                }
                (seen > MANY / 10).then_some(())
            });
            eprintln!("memif: {seen} packets of {} flows, each right", sources.len());
            assert!(sources.len() > 1, "many flows: {sources:?}");
        }
    });
}

#[test]
fn what_testpmd_answers_comes_back_from_the_service_with_right_checksums() {
    let name = "memif::what_testpmd_answers_comes_back_from_the_service_with_right_checksums";
    sandboxed(name, LIMIT, || {
        let host = prepared();
        for (clients, role, pods) in [
            ("server", Role::Client, "client"),
            ("client", Role::Server, "server"),
            (LENDER, Role::Server, LENDER),
        ] {
            let gateway = gateway(host, clients, pods, 1);
            let mut client = Station::new(CLIENTS, role);
            let port = Port {
                role: other(pods),
                socket: PODS,
                mac: POD_MAC,
            };
            // Addresses and ports of all layers swapped: an echo server.
            let mut mirror = Testpmd::start("mirror", Memory::Small, &[port], &["--forward-mode=5tswap"]);
            mirror.forward();
            wait_for_link(&gateway, PODS, 1);
            let mac = mac_of(&gateway, "clients")
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect::<Vec<_>>();
            // Longer ones take several of a client's buffers at testpmd, which has them of 2,048 bytes: none here.
            for (nth, len) in [0, 1, 18, 300, 1472].into_iter().cycle().take(100).enumerate() {
                let payload: Vec<u8> = (0..len).map(|n| (n + nth) as u8).collect();
                let mut packet = Vec::new();
                etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x0a], mac.clone().try_into().unwrap())
                    .ipv4([198, 51, 100, 10], [10, 96, 0, 10], 64)
                    .udp(4000 + nth as u16, 53)
                    .write(&mut packet, &payload)
                    .unwrap();
                client.send(&packet);
                let answer = client.next_datagram();
                let (from, to) = judge(&answer);
                assert_eq!(
                    (from.as_str(), to),
                    ("10.96.0.10:53", format!("198.51.100.10:{}", 4000 + nth))
                );
                assert_eq!(answer[42..42 + len], payload);
            }
        }
    });
}

#[test]
fn testpmd_killed_under_load_is_missed_and_served_again_when_it_is_back() {
    let name = "memif::testpmd_killed_under_load_is_missed_and_served_again_when_it_is_back";
    sandboxed(name, LIMIT, || {
        let host = prepared();
        let memories = Memories::new(name);
        let lent = memories.kinds.contains(&Memory::Lent);
        let lent = lent.then_some(("server", "server", Memory::Lent));
        let small = [("server", "client"), ("client", "server"), (LENDER, LENDER)];
        let small = small.map(|(clients, pods)| (clients, pods, Memory::Small));
        for (clients, pods, memory) in small.into_iter().chain(lent) {
            let gateway = gateway(host, clients, pods, 1);
            let mut pod = sink(memory, pods, 1);
            let mut source = generator(&gateway, memory, clients, 1);
            wait_for_link(&gateway, PODS, 1);
            wait_for_link(&gateway, CLIENTS, 1);
            for round in 2..4 {
                source.forward();
                wait_until("packets arrive", SOON, || {
                    (pod.counts(0).received > MANY).then_some(())
                });
                // The sink goes under load: what is sent to nobody is counted, and the generator is received from as before.
                pod.kill();
                let lost = gateway.counter("drop-no-peer");
                wait_until("drops are counted", SOON, || {
                    (gateway.counter("drop-no-peer") > lost + MANY).then_some(())
                });
                wait_until("its driver's count and link are told", SOON, || {
                    let told = |counter| gateway.port_counter("pods", counter);
                    (told(PortCounter::TxUnlinked) > MANY && told(PortCounter::LinkUp) == 0).then_some(())
                });
                pod = sink(memory, pods, 1);
                wait_for_link(&gateway, PODS, round);
                wait_until("packets arrive again", SOON, || {
                    (pod.counts(0).received > MANY).then_some(())
                });
                // The generator goes, packets in its memory that nobody has received yet.
                source.kill();
                source = generator(&gateway, memory, clients, 1);
                wait_for_link(&gateway, CLIENTS, round);
            }
            source.forward();
            let before = pod.counts(0).received;
            wait_until("packets arrive again", SOON, || {
                (pod.counts(0).received > before + MANY).then_some(())
            });
            assert!(!gateway.said().contains("panicked"), "{}", gateway.said());
            eprintln!(
                "memif: clients {clients}, pods {pods}, {memory:?}: killed and back twice; dropped: {}",
                gateway.drops()
            );
        }
    });
}
