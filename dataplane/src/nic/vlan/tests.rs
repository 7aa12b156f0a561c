//! Tagged and untagged frames over one memory ring.

use super::*;
use crate::nic::memory::{MemoryPeer, port_with_peer};

const UNTAGGED: &[u8] = b"dstmacsrcmac\x08\x00payload of sixty bytes or so";

fn tagged(vlan: u16, priority: u16) -> Vec<u8> {
    let mut frame = UNTAGGED.to_vec();
    let [high, low] = (vlan | priority << 13).to_be_bytes();
    frame.splice(12..12, [0x81, 0x00, high, low]);
    frame
}

fn trunk(vlans: &[u16], ring: usize) -> (FrameMemory, MemoryPeer, Vec<Box<dyn Driver>>) {
    let (driver, peer) = port_with_peer("uplink0", ring);
    let ports = share(Box::new(driver), vlans).unwrap();
    (FrameMemory::new(256, 2048).unwrap(), peer, ports)
}

fn receive(port: &mut Box<dyn Driver>, memory: &mut FrameMemory) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    port.rx_burst(memory, &mut burst);
    let bytes = burst.iter().map(|frame| memory.bytes(frame).to_vec()).collect();
    burst.into_iter().for_each(|frame| memory.free(frame));
    bytes
}

#[test]
fn every_port_receives_the_frames_of_its_vlan_without_the_tag_in_order() {
    let (mut memory, peer, mut ports) = trunk(&[0, 100, 200], 16);
    let numbered = |frame: &[u8], n: u8| [frame, &[n]].concat();
    for (n, vlan) in (0..).zip([100, 200, 100]) {
        assert!(peer.send(&numbered(&tagged(vlan, 3), n)));
    }
    assert!(peer.send(&numbered(UNTAGGED, 3)) && peer.send(&numbered(&tagged(0, 5), 4)));
    // Whichever port asks first: the others' frames wait for them.
    let got: Vec<_> = [1, 0, 2]
        .map(|port| receive(&mut ports[port], &mut memory))
        .into();
    let plain = |ns: &[u8]| ns.iter().map(|&n| numbered(UNTAGGED, n)).collect::<Vec<_>>();
    assert_eq!(got, [plain(&[0, 2]), plain(&[3, 4]), plain(&[1])]);
    assert_eq!(memory.available(), memory.capacity());
}

#[test]
fn every_port_sends_with_its_tag() {
    let (mut memory, peer, mut ports) = trunk(&[0, 100], 16);
    for port in &mut ports {
        let mut burst: Burst = memory.copy_in(UNTAGGED).into_iter().collect();
        port.tx_burst(&mut memory, &mut burst);
        assert!(burst.is_empty());
    }
    assert_eq!(peer.receive().as_deref(), Some(UNTAGGED));
    assert_eq!(peer.receive(), Some(tagged(100, 0)));
    assert_eq!(memory.available(), memory.capacity());
}

#[test]
fn a_frame_of_a_vlan_that_no_port_has_goes_to_the_untagged_port_as_it_came_or_counts_as_an_error() {
    let (mut memory, peer, mut ports) = trunk(&[0, 100], 16);
    assert!(peer.send(&tagged(7, 0)));
    assert_eq!(receive(&mut ports[0], &mut memory), [tagged(7, 0)]);
    let (mut memory, peer, mut ports) = trunk(&[100], 16);
    assert!(peer.send(&tagged(7, 0)) && peer.send(UNTAGGED));
    assert!(receive(&mut ports[0], &mut memory).is_empty());
    assert_eq!(ports[0].stats().rx_errors, 2);
    assert_eq!(memory.available(), memory.capacity());
}

#[test]
fn frames_for_a_full_ring_wait_and_leave_in_order_with_one_tag() {
    let (mut memory, peer, mut ports) = trunk(&[100], 2);
    let mut burst: Burst = (0..5u8)
        .filter_map(|n| memory.copy_in(&[UNTAGGED, &[n]].concat()))
        .collect();
    ports[0].tx_burst(&mut memory, &mut burst);
    let mut left = Vec::new();
    while left.len() < 5 {
        left.extend(std::iter::from_fn(|| peer.receive()));
        // A turn without anything to send sends on what waits.
        assert!(receive(&mut ports[0], &mut memory).is_empty());
    }
    let expected: Vec<_> = (0..5u8).map(|n| [&tagged(100, 0)[..], &[n]].concat()).collect();
    assert_eq!(left, expected);
    assert_eq!(memory.available(), memory.capacity());
}

#[test]
fn a_port_that_does_not_take_its_frames_costs_no_more_than_a_burst() {
    let (mut memory, peer, mut ports) = trunk(&[0, 100], 512);
    (0..200).for_each(|_| assert!(peer.send(&tagged(100, 0))));
    (0..10).for_each(|_| assert!(receive(&mut ports[0], &mut memory).is_empty()));
    assert_eq!(memory.capacity() - memory.available(), crate::nic::BURST);
    for port in ports {
        port.close(&mut memory);
    }
    assert_eq!(memory.available(), memory.capacity());
}

#[test]
fn frames_too_short_for_a_tag_have_none() {
    for len in 0..16 {
        assert_eq!(vlan(&tagged(100, 0)[..len]), None);
    }
    assert_eq!(vlan(&tagged(100, 7)[..16]), Some(100));
}
