//! The generator's two NIC ports, toward clients' and toward pods' side of a gateway: any driver of the dataplane. Both
//! share frame memory, so an answer is the packet itself, turned round.

use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::open::{self, PortSpec};
use sluice_dataplane::nic::{Burst, Driver, Frame, FrameMemory, OpenError};
use sluice_dataplane::wire::arp::{self, Arp, Operation};

/// A driver and what waits for room in its ring.
pub struct Side {
    /// The driver.
    pub driver: Box<dyn Driver>,
    pub(super) out: Burst,
}

impl Side {
    fn new(driver: Box<dyn Driver>) -> Self {
        Self {
            driver,
            out: Burst::new_const(),
        }
    }

    /// Gives the driver what waits; how many frames it took.
    #[inline]
    pub(super) fn flush(&mut self, memory: &mut FrameMemory) -> u64 {
        if self.out.is_empty() {
            return 0;
        }
        let before = self.out.len();
        self.driver.tx_burst(memory, &mut self.out);
        (before - self.out.len()) as u64
    }
}

/// Both, with their frames.
pub struct Ports {
    /// Frame memory of both.
    pub memory: FrameMemory,
    /// Where clients are.
    pub clients: Side,
    /// Where pods are.
    pub pods: Side,
}

impl Ports {
    /// Two drivers opened with `memory`.
    pub fn new(memory: FrameMemory, clients: Box<dyn Driver>, pods: Box<dyn Driver>) -> Self {
        Self {
            memory,
            clients: Side::new(clients),
            pods: Side::new(pods),
        }
    }

    /// Opens both with `frames` frames of 2,048 bytes. Errors: as the drivers say; no memory.
    pub fn open(clients: &PortSpec, pods: &PortSpec, frames: usize) -> Result<Self, OpenError> {
        let mut memory = FrameMemory::new(frames, 2_048).map_err(|error| OpenError {
            port: clients.port.clone(),
            interface: clients.interface.clone(),
            what: format!("no memory for {frames} frames"),
            advice: "lower --frames".to_owned(),
            source: Some(error),
        })?;
        let mut umem = None;
        let clients = open::open(clients, &mut memory, &mut umem)?;
        let pods = open::open(pods, &mut memory, &mut umem)?;
        Ok(Self::new(memory, clients, pods))
    }

    /// Frees what still waits to be sent.
    pub fn clear(&mut self) {
        for side in [&mut self.clients, &mut self.pods] {
            side.out.drain(..).for_each(|frame| self.memory.free(frame));
        }
    }
}

/// Turns an ARP request into its answer: whatever address is asked for is here, since a generator stands for everybody.
/// `false` for anything else.
#[cold]
pub(super) fn answer_arp(memory: &FrameMemory, frame: &mut Frame, mac: Mac) -> bool {
    let bytes = memory.bytes_mut(frame);
    let Some((ethernet, packet)) = bytes.split_at_mut_checked(14) else {
        return false;
    };
    let Ok(request) = Arp::new(&packet) else {
        return false;
    };
    let asked = request.operation() == Operation::REQUEST && request.sender_ip() != request.target_ip();
    if ethernet[12..14] != [8, 6] || !asked {
        return false;
    }
    let (asker, asker_ip, target) = (request.sender_mac(), request.sender_ip(), request.target_ip());
    let Ok(mut reply) = Arp::blank(&mut packet[..arp::LEN], Operation::REPLY) else {
        return false;
    };
    reply.set_sender(mac, target);
    reply.set_target(asker, asker_ip);
    ethernet[..6].copy_from_slice(&asker.0);
    ethernet[6..12].copy_from_slice(&mac.0);
    true
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn whoever_is_asked_for_is_here_and_nothing_else_is_answered() {
        let mut memory = FrameMemory::new(1, 2_048).unwrap();
        let mut request = vec![0xff; 6];
        request.extend([2, 0, 0, 0, 0, 1, 8, 6]);
        let mut packet = [0; arp::LEN];
        let mut arp = Arp::blank(&mut packet, Operation::REQUEST).unwrap();
        arp.set_sender(Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
        arp.set_target(Mac::default(), Ipv4Addr::new(10, 0, 0, 2));
        request.extend(packet);
        let mut frame = memory.copy_in(&request).unwrap();
        let ours = Mac([2, 0, 0, 0, 0, 9]);
        assert!(answer_arp(&memory, &mut frame, ours));
        let reply = memory.bytes(&frame).to_vec();
        let arp = Arp::new(&reply[14..]).unwrap();
        assert_eq!(arp.operation(), Operation::REPLY);
        assert_eq!(
            (arp.sender_mac(), arp.sender_ip()),
            (ours, Ipv4Addr::new(10, 0, 0, 2))
        );
        assert_eq!(reply[..6], [2, 0, 0, 0, 0, 1]);
        assert!(!answer_arp(&memory, &mut frame, ours), "a reply needs none");
    }
}
