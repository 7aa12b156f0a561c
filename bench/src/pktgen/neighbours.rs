//! Answers to whoever asks for a station: a generator stands for every client and pod, so whatever address is asked for is
//! here. Takes a frame, makes it the answer.

use std::net::Ipv6Addr;

use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::nic::{Frame, FrameMemory};
use sluice_dataplane::wire::arp::{self, Arp, Operation};
use sluice_dataplane::wire::nd::{self, Neighbour};
use sluice_dataplane::wire::{Icmpv6, Ipv6};

use super::layout::IP;

/// Bytes of an advertisement's frame.
const ADVERTISEMENT: usize = IP + 40 + nd::LEN;

/// Turns a question into its answer; `false` for anything else. Who asks whether an address is free is not answered:
/// it is theirs.
#[cold]
pub(super) fn answer(memory: &FrameMemory, frame: &mut Frame, mac: Mac) -> bool {
    match memory.bytes(frame).get(IP - 2..IP) {
        Some([0x08, 0x06]) => answer_arp(memory.bytes_mut(frame), mac).is_some(),
        Some([0x86, 0xdd]) => {
            let Some((target, asker)) = solicited(memory.bytes(frame)) else {
                return false;
            };
            memory.set_len(frame, ADVERTISEMENT)
                && advertise(memory.bytes_mut(frame), mac, target, asker).is_some()
        }
        _ => false,
    }
}

fn answer_arp(frame: &mut [u8], mac: Mac) -> Option<()> {
    let (ethernet, packet) = frame.split_at_mut_checked(IP)?;
    let request = Arp::new(&packet).ok()?;
    if request.operation() != Operation::REQUEST || request.sender_ip() == request.target_ip() {
        return None;
    }
    let (asker, asker_ip, target) = (request.sender_mac(), request.sender_ip(), request.target_ip());
    let mut reply = Arp::blank(packet.get_mut(..arp::LEN)?, Operation::REPLY).ok()?;
    reply.set_sender(mac, target);
    reply.set_target(asker, asker_ip);
    address(ethernet, asker, mac);
    Some(())
}

/// Who is asked for, and who asks.
fn solicited(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let ip = Ipv6::new(frame.get(IP..)?).ok()?;
    let message = Neighbour::received(&ip).ok()?;
    (message.is_solicitation() && !ip.src().is_unspecified()).then(|| (message.target(), ip.src()))
}

/// Writes an advertisement behind the asker's Ethernet header (RFC 4861 §4.4).
fn advertise(frame: &mut [u8], mac: Mac, target: Ipv6Addr, asker: Ipv6Addr) -> Option<()> {
    let (ethernet, packet) = frame.split_at_mut_checked(IP)?;
    let asker_mac = Mac(*ethernet.get(6..)?.first_chunk()?);
    let mut ip = Ipv6::blank(packet, Protocol::ICMPV6).ok()?;
    ip.set_hop_limit(nd::HOP_LIMIT);
    ip.set_src(target);
    ip.set_dst(asker);
    let mut message = Neighbour::blank(ip.payload_mut(), nd::ADVERTISEMENT).ok()?;
    message.set_flags(nd::SOLICITED | nd::OVERRIDE);
    message.set_target(target);
    message.set_link_address(mac);
    let mut icmp = Icmpv6::new(ip.payload_mut()).ok()?;
    icmp.fill_checksum(target.octets(), asker.octets());
    address(ethernet, asker_mac, mac);
    Some(())
}

fn address(ethernet: &mut [u8], to: Mac, from: Mac) {
    ethernet[..6].copy_from_slice(&to.0);
    ethernet[6..12].copy_from_slice(&from.0);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::layout::Family;
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const ASKER: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn whoever_is_asked_for_by_arp_is_here_and_nothing_else_is_answered() {
        let mut memory = FrameMemory::new(1, 2_048).unwrap();
        let mut request = vec![0xff; 6];
        request.extend([2, 0, 0, 0, 0, 1, 8, 6]);
        let mut packet = [0; arp::LEN];
        let mut arp = Arp::blank(&mut packet, Operation::REQUEST).unwrap();
        arp.set_sender(ASKER, Ipv4Addr::new(10, 0, 0, 1));
        arp.set_target(Mac::default(), Ipv4Addr::new(10, 0, 0, 2));
        request.extend(packet);
        let mut frame = memory.copy_in(&request).unwrap();
        assert!(answer(&memory, &mut frame, OURS));
        let reply = memory.bytes(&frame).to_vec();
        let arp = Arp::new(&reply[14..]).unwrap();
        assert_eq!(arp.operation(), Operation::REPLY);
        assert_eq!(
            (arp.sender_mac(), arp.sender_ip()),
            (OURS, Ipv4Addr::new(10, 0, 0, 2))
        );
        assert_eq!(reply[..6], ASKER.0);
        assert!(!answer(&memory, &mut frame, OURS), "a reply needs none");
    }

    /// Asked for `fd44::9` by `from`.
    fn solicitation(from: &str) -> Vec<u8> {
        let from: Ipv6Addr = from.parse().unwrap();
        let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        let mut packet = [0; 40 + nd::LEN];
        let to = "ff02::1:ff00:9".parse().unwrap();
        let mut ip = Ipv6::blank(&mut packet[..], Protocol::ICMPV6).unwrap();
        ip.set_hop_limit(nd::HOP_LIMIT);
        ip.set_src(from);
        ip.set_dst(to);
        let mut message = Neighbour::blank(ip.payload_mut(), nd::SOLICITATION).unwrap();
        message.set_target("fd44::9".parse().unwrap());
        message.set_link_address(ASKER);
        let mut icmp = Icmpv6::new(ip.payload_mut()).unwrap();
        icmp.fill_checksum(from.octets(), to.octets());
        frame.extend(packet);
        frame
    }

    #[test]
    fn whoever_is_solicited_is_here_but_whether_an_address_is_free_is_no_question_to_us() {
        let mut memory = FrameMemory::new(1, 2_048).unwrap();
        let mut frame = memory.copy_in(&solicitation("fd44::1")).unwrap();
        assert!(answer(&memory, &mut frame, OURS));
        let reply = memory.bytes(&frame).to_vec();
        assert_eq!((&reply[..6], &reply[6..12]), (&ASKER.0[..], &OURS.0[..]));
        assert_eq!(Family::of_frame(&reply), Some(Family::V6));
        let ip = Ipv6::new(&reply[IP..]).unwrap();
        let message = Neighbour::received(&ip).unwrap();
        assert!(!message.is_solicitation());
        assert_eq!((message.target(), message.link_address()), (ip.src(), Some(OURS)));
        assert_eq!(ip.src(), "fd44::9".parse::<Ipv6Addr>().unwrap());
        assert_eq!(message.flags(), nd::SOLICITED | nd::OVERRIDE);
        assert!(!answer(&memory, &mut frame, OURS), "a reply needs none");
        memory.free(frame);
        let mut frame = memory.copy_in(&solicitation("::")).unwrap();
        assert!(!answer(&memory, &mut frame, OURS));
    }
}
