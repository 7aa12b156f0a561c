//! What one packet costs: whole turns of a worker, `rx` to `tx`, with conntrack in both directions, counters and expiry
//! as in production. Packets are made, and judged, outside the timed region.

use std::net::Ipv4Addr;
use std::time::Instant;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use hdrhistogram::Histogram;
use sluice_dataplane::tick::Tick;

use crate::gateway::{CLIENT_SIDE, CLUSTER_IP, Gateway, PORT, Setup};

/// Packets prepared at a time: the equal-work contract's 2,048 frames, so that no frame is still in the first cache.
const ROUND: usize = 2_048;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Established flows; every packet belongs to a random one.
    pub flows: usize,
    /// Endpoints.
    pub backends: u16,
    /// Full NAT instead of DNAT.
    pub full_nat: bool,
    /// Repeats, each of `packets`.
    pub repeats: usize,
    /// Packets per repeat.
    pub packets: usize,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Row {
    /// Nanoseconds a packet, one value per repeat, ascending.
    pub ns_per_packet: Vec<f64>,
    /// Nanoseconds of turns of 64 packets.
    pub turn_ns: Histogram<u64>,
    /// Packets whose translation was checked before timing.
    pub verified: usize,
}

/// Runs a workload. Errors: no memory; a packet that was not translated as it must.
// A benchmark's business is the wall clock; the pipeline under it gets its time as a Tick, as ever.
#[allow(clippy::disallowed_methods)]
pub fn run(workload: Workload) -> Result<Row, Box<dyn std::error::Error>> {
    // The ranges in `gateway`, toward each endpoint; three quarters, since endpoints are picked at random.
    let room = usize::from(workload.backends) * 61_744 / 4 * 3;
    if workload.full_nat && workload.flows > room {
        return Err(format!(
            "full NAT: {} endpoints have source ports for {room} flows; give more --backends",
            workload.backends
        )
        .into());
    }
    let setup = Setup {
        flows: workload.flows + workload.flows / 3 + 64,
        backends: workload.backends,
        keep_source: !workload.full_nat,
    };
    let mut gateway = Gateway::new(setup)?;
    let now = Tick(8_000);
    gateway.client.keep_sent(false);
    let verified = open_and_verify(&mut gateway, workload, now)?;

    let mut random = Random(1);
    let mut repeats = Vec::new();
    // Up to ten seconds: a turn that was preempted is still in it.
    let mut turn_ns = Histogram::new_with_bounds(1, 10_000_000_000, 3)?;
    for _ in 0..workload.repeats {
        let mut spent = 0;
        let mut packets = 0;
        while packets < workload.packets {
            gateway
                .client
                .load((0..ROUND).map(|_| packet(random.below(workload.flows))));
            gateway.turn(now); // stages the frames
            loop {
                let start = Instant::now();
                let handled = gateway.turn(now);
                let elapsed = start.elapsed().as_nanos() as u64;
                if handled == 0 {
                    break;
                }
                spent += elapsed;
                packets += handled;
                turn_ns.saturating_record(elapsed);
            }
        }
        repeats.push(spent as f64 / packets as f64);
    }
    repeats.sort_by(f64::total_cmp);
    Ok(Row {
        ns_per_packet: repeats,
        turn_ns,
        verified,
    })
}

/// Opens every flow by a packet of its own, and checks each as it leaves: an endpoint's address, the Service's port,
/// and a source as the mode says.
fn open_and_verify(
    gateway: &mut Gateway,
    workload: Workload,
    now: Tick,
) -> Result<usize, Box<dyn std::error::Error>> {
    gateway.pods.keep_sent(true);
    let mut verified = 0;
    for first in (0..workload.flows).step_by(ROUND) {
        let flows = first..(first + ROUND).min(workload.flows);
        gateway.client.load(flows.clone().map(packet));
        gateway.turn(now);
        while gateway.turn(now) > 0 {}
        let sent = gateway.pods.sent();
        if sent.len() != flows.len() {
            return Err(format!("{} of {} first packets came out", sent.len(), flows.len()).into());
        }
        for (flow, bytes) in flows.zip(&sent) {
            check(flow, bytes, workload.full_nat)?;
            verified += 1;
        }
    }
    gateway.pods.keep_sent(false);
    Ok(verified)
}

fn check(flow: usize, bytes: &[u8], full_nat: bool) -> Result<(), Box<dyn std::error::Error>> {
    let wrong = |what: &str| format!("flow {flow}: {what}");
    let sliced = SlicedPacket::from_ethernet(bytes)?;
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else {
        return Err(wrong("not IPv4").into());
    };
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        return Err(wrong("not UDP").into());
    };
    let header = ip.header();
    let (client, port) = client(flow);
    let kept = (header.source_addr(), udp.source_port()) == (client, port);
    if kept == full_nat {
        return Err(wrong("source translated although it must be kept, or the reverse").into());
    }
    if header.destination_addr().octets()[..2] != [10, 244] || udp.destination_port() != PORT {
        return Err(wrong("not addressed to an endpoint").into());
    }
    let payload = udp.payload();
    let sum = udp.to_header().calc_checksum_ipv4(&header.to_header(), payload)?;
    if sum != udp.checksum() || header.to_header().calc_header_checksum() != header.header_checksum() {
        return Err(wrong("wrong checksum").into());
    }
    Ok(())
}

/// The address and port of a flow's client: 60,000 ports per address.
fn client(flow: usize) -> (Ipv4Addr, u16) {
    let address = u32::from(Ipv4Addr::new(198, 18, 0, 1)) + (flow / 60_000) as u32;
    (Ipv4Addr::from(address), 2_000 + (flow % 60_000) as u16)
}

/// A 64-byte frame (60 and the FCS that no ring carries) of a flow.
fn packet(flow: usize) -> Vec<u8> {
    let (address, port) = client(flow);
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], CLIENT_SIDE.0)
        .ipv4(address.octets(), CLUSTER_IP.octets(), 64)
        .udp(port, PORT);
    let payload = [0x5a; 18];
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    // Writing to a Vec cannot fail; a short packet would fail its check.
    let _ = builder.write(&mut bytes, &payload);
    bytes
}

/// SplitMix64: the same flows in the same order in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ z >> 31) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_full_nat_flows_than_source_ports_are_refused_with_what_to_do() {
        let workload = Workload {
            flows: 1_000_000,
            backends: 4,
            full_nat: true,
            repeats: 1,
            packets: 1,
        };
        assert!(run(workload).unwrap_err().to_string().contains("--backends"));
    }

    #[test]
    fn every_flow_is_opened_verified_and_followed_in_both_modes() {
        for full_nat in [false, true] {
            let workload = Workload {
                flows: 5_000,
                backends: 4,
                full_nat,
                repeats: 1,
                packets: 4_096,
            };
            let row = run(workload).unwrap();
            assert_eq!((row.verified, row.ns_per_packet.len()), (5_000, 1));
        }
    }
}
