use sluice_dataplane::addr::Mac;

use super::super::layout::IP_CHECKSUM;
use super::super::template::Template;
use super::super::world::tests::world;
use super::*;

const STAMP: Stamp = Stamp {
    trial: 1,
    flow: 5,
    sequence: 9,
    due: 1_000,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn untouched(from: Socket, to: Socket) -> Vec<u8> {
    let template = Template::udp(Family::of(from.0), Mac([2; 6]), Mac([4; 6]), 100);
    let mut frame = vec![0; template.len()];
    template.write_udp(&mut frame, from, to, STAMP);
    frame
}

/// A datagram as a gateway would send it on.
fn sent(from: Socket, to: Socket) -> Vec<u8> {
    let mut frame = untouched(from, to);
    let family = Family::of(from.0);
    frame[family.hops()] = 63;
    if family == Family::V4 {
        let sum = u16::from_be_bytes([frame[IP_CHECKSUM], frame[IP_CHECKSUM + 1]]);
        // One less in a word's high byte: 0x100 more in the checksum.
        let sum = fold(u64::from(sum) + 0x100);
        frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

fn judge(world: &World) -> Judge<'_> {
    Judge {
        world,
        flows: 10,
        trial: 1,
        began: 500,
        now: 2_000,
    }
}

#[test]
fn a_right_translation_is_right_and_every_departure_from_it_has_its_name() {
    for family in FAMILIES {
        let mut world = world(family);
        let client = world.client(5);
        let endpoint = world.endpoint(0, 2);
        let right = sent(client, endpoint);
        let arrived = Arrived {
            flow: 5,
            due: 1_000,
            what: What::Udp(9),
        };
        assert_eq!(judge(&world).at_pods(&right), (Judgement::Right(arrived), 2));
        let wrong = |frame: &[u8]| match judge(&world).at_pods(frame).0 {
            Judgement::Wrong(wrong) => wrong,
            other => panic!("{other:?}"),
        };
        let flipped = |place: usize| {
            let mut frame = right.clone();
            frame[place] ^= 1;
            frame
        };
        let length = match family {
            Family::V4 => {
                assert_eq!(wrong(&flipped(IP + 1)), Wrong::IpChecksum);
                IP + 2
            }
            Family::V6 => IP + 4,
        };
        assert_eq!(wrong(&flipped(95)), Wrong::Checksum);
        assert_eq!(wrong(&flipped(length)), Wrong::Header);
        assert_eq!(wrong(&sent(client, (endpoint.0, 81))), Wrong::Destination);
        assert_eq!(wrong(&sent(world.client(6), endpoint)), Wrong::Source);
        assert_eq!(wrong(&untouched(client, endpoint)), Wrong::Ttl);
        let mut erased = right.clone();
        let udp = family.l4();
        erased[udp + l4::UDP_CHECKSUM..udp + l4::UDP_PAYLOAD].fill(0);
        assert_eq!(wrong(&erased), Wrong::Checksum);
        // With SNAT, a kept source is wrong, and only ours is right.
        let node = match family {
            Family::V4 => "192.0.2.2",
            Family::V6 => "fd02::2",
        };
        world.snat = vec![node.parse().unwrap()];
        let ours = sent((world.snat[0], 5_000), endpoint);
        assert_eq!(judge(&world).at_pods(&right).0, Judgement::Wrong(Wrong::Source));
        assert!(matches!(judge(&world).at_pods(&ours).0, Judgement::Right(_)));
    }
}

#[test]
fn an_endpoints_address_at_the_clients_is_a_leak_whatever_else_is_in_the_packet() {
    for family in FAMILIES {
        let world = world(family);
        let (client, endpoint) = (world.client(5), world.endpoint(0, 1));
        let mut leak = sent(endpoint, client);
        leak[family.l4() + l4::UDP_PAYLOAD] ^= 0xff;
        assert_eq!(judge(&world).at_clients(&leak), Judgement::Wrong(Wrong::Leak));
        let reply = sent(world.frontend(5), client);
        assert!(matches!(judge(&world).at_clients(&reply), Judgement::Right(_)));
        let astray = sent(world.frontend(5), world.client(4));
        assert_eq!(
            judge(&world).at_clients(&astray),
            Judgement::Wrong(Wrong::Destination)
        );
    }
}

#[test]
fn what_is_of_another_trial_or_no_ip_is_foreign() {
    for family in FAMILIES {
        let world = world(family);
        let right = sent(world.client(5), world.endpoint(0, 1));
        let later = Judge {
            trial: 2,
            ..judge(&world)
        };
        assert_eq!(later.at_pods(&right).0, Judgement::Foreign);
        for cut in [20, family.l4() + 3, right.len() - 1] {
            assert_eq!(
                judge(&world).at_pods(&right[..cut]).0,
                Judgement::Wrong(Wrong::Header)
            );
        }
        let mut arp = right.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(judge(&world).at_pods(&arp).0, Judgement::Foreign);
        assert_eq!(judge(&world).at_pods(&[]).0, Judgement::Foreign);
    }
}
