//! Several workers, each with a packet socket of every interface: where it is known who is beyond an interface, hardly a packet of
//! TCP or UDP comes to another worker than its flow's, in either direction, translated twice or once, in both families.

use std::sync::Arc;
use std::time::Duration;

use sluice_dataplane::counters::PortCounter;

use crate::gateway::Gateway;
use crate::load::Load;
use crate::relay::UNHARMED;
use crate::sandbox::{sandboxed, wait_until};
use crate::soak::{Place, tables};

const LIMIT: Duration = Duration::from_secs(120);
/// Packets: many of every flow.
const MUCH: u64 = 40_000;
const CONFIG: &str = "
node: {addresses: [198.51.100.1, \"2001:db8:c::1\"]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [198.51.100.1/24, \"2001:db8:c::1/64\"], faces: CLIENTS}
- {name: pods0, driver: af_packet, interface: pods0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"], faces: ENDPOINTS}
";

#[test]
fn hardly_a_packet_is_handed_over_where_it_is_known_who_is_beyond_each_interface() {
    let name = "owners::hardly_a_packet_is_handed_over_where_it_is_known_who_is_beyond_each_interface";
    sandboxed(name, LIMIT, || {
        let place = Place::new([UNHARMED; 2]);
        // Packets that waited for a neighbour come back by the first worker, which may not be their owner.
        let (came, handed_over) = carry(&place, "clients", "endpoints");
        assert!(handed_over * 1_000 < came, "{handed_over} of {came}");
        // The same load has packets that would be.
        let (came, handed_over) = carry(&place, "both", "both");
        assert!(handed_over * 4 > came, "{handed_over} of {came}");
    });
}

/// A load of every kind: packets that came from clients, and those that were handed over.
fn carry(place: &Place, clients: &str, endpoints: &str) -> (u64, u64) {
    let config = CONFIG.replace("CLIENTS", clients).replace("ENDPOINTS", endpoints);
    // The last FINs of the load before are still on their way.
    let mut gateway = Gateway::start_with(place.gateway, &config, 3, Some("/run/flows"));
    gateway.publish(&tables());
    let load = Arc::new(Load::default());
    let clients = place.clients(&load, 4);
    wait_until("clients have sent much", LIMIT / 4, || {
        (gateway.port_counter("up0", PortCounter::RxPackets) > MUCH).then_some(())
    });
    place.end(&load, clients);
    let came = gateway.port_counter("up0", PortCounter::RxPackets);
    let handed_over = gateway.counter("handed-over");
    eprintln!("owners: {came} packets came from clients, {handed_over} packets were handed over; {load}");
    (came, handed_over)
}
