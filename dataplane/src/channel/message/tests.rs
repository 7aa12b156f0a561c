use proptest::prelude::*;
use proptest::sample::select;

use super::super::codec::SLOT;
use super::super::row::arbitrary::{key, record};
use super::*;
use crate::channel::record::{FrontendRecord, ServicePortRecord};

fn message() -> impl Strategy<Value = Message> {
    let generation = || any::<u64>().prop_map(Generation);
    prop_oneof![
        any::<[u64; 2]>().prop_map(|[version, layout_hash]| Message::Hello { version, layout_hash }),
        generation().prop_map(|generation| Message::Begin { generation }),
        record().prop_map(Message::Put),
        key().prop_map(Message::Delete),
        (generation(), any::<[u64; 2]>()).prop_map(|(generation, [count, digest])| Message::Commit {
            generation,
            count,
            digest
        }),
        generation().prop_map(|generation| Message::Ack { generation }),
        (
            generation(),
            any::<u64>(),
            select(&NackReason::ALL[..]),
            "[ -~ä]{0,110}"
        )
            .prop_map(|(generation, message, reason, text)| Message::Nack(Nack {
                generation,
                message,
                reason,
                text
            })),
        Just(Message::DumpRequest),
        record().prop_map(Message::DumpRecord),
        (generation(), any::<[u64; 2]>()).prop_map(|(generation, [count, digest])| Message::DumpEnd {
            generation,
            count,
            digest
        }),
    ]
}

proptest! {
    #[test]
    fn every_message_survives_its_encoding(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_the_one_encoding_of_a_message(
        kind in 0u8..12, row in 0u8..7, rest in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..SLOT - 2),
    ) {
        let mut slot = [0; SLOT];
        slot[0] = kind;
        slot[1] = row;
        slot[2..2 + rest.len()].copy_from_slice(&rest);
        if let Ok(message) = Message::decode(&slot) {
            prop_assert_eq!(message.encode().unwrap(), slot);
        }
    }

    #[test]
    fn a_message_with_one_byte_changed_is_an_error_or_another_message(
        message in message(), at in 0..SLOT, flip in 1u8..,
    ) {
        let mut slot = message.encode().unwrap();
        slot[at] ^= flip;
        if let Ok(other) = Message::decode(&slot) {
            prop_assert_ne!(&other, &message);
            prop_assert_eq!(other.encode().unwrap(), slot);
        }
    }
}

/// The sentence for a put of `record`, after its bytes were changed by `spoil`.
fn refusal(record: &Record, spoil: impl FnOnce(&mut Slot)) -> String {
    let mut slot = Message::Put(record.clone()).encode().unwrap();
    spoil(&mut slot);
    Message::decode(&slot).unwrap_err().to_string()
}

fn service_port() -> ServicePortRecord {
    let slot = crate::channel::fingerprint::samples()[13]; // the put after the first delete
    let Ok(Message::Put(Record::ServicePort(record))) = Message::decode(&slot) else {
        panic!("{slot:?}")
    };
    record
}

#[test]
fn each_fault_has_its_own_sentence() {
    use crate::addr::Protocol;
    use crate::channel::record::{FrontendKind, NetworkKind, NetworkRecord};
    use crate::index::ServicePortIndex;

    let port = Record::ServicePort(ServicePortRecord {
        namespace: "ns".into(),
        name: "web".into(),
        port_name: String::new(),
        ..service_port()
    });
    // kind, record kind, index ×4, protocol at 6, algorithm at 7, affinity at 8, policies at 12, names from 14
    assert_eq!(refusal(&port, |s| s[0] = 99), "99 is no message kind");
    assert_eq!(refusal(&port, |s| s[1] = 9), "9 is no record kind");
    assert_eq!(refusal(&port, |s| s[6] = 1), "1 is no protocol of a Service");
    assert_eq!(refusal(&port, |s| s[7] = 4), "4 is no algorithm");
    assert_eq!(
        refusal(&port, |s| s[10] = 9),
        "the affinity timeout in seconds is 600624, but at most 86400 is allowed"
    );
    assert_eq!(refusal(&port, |s| s[12] = 2), "2 is no externalTrafficPolicy");
    assert_eq!(
        refusal(&port, |s| s[14] = 64),
        "the namespace is 64 bytes long, but at most 63 are allowed"
    );
    assert_eq!(refusal(&port, |s| s[14] = 0), "the namespace is empty");
    assert_eq!(
        refusal(&port, |s| s[15] = 0xff),
        "the namespace is not printable UTF-8 text"
    );
    assert_eq!(
        refusal(&port, |s| s[15] = 0x1b),
        "the namespace is not printable UTF-8 text"
    );
    assert_eq!(
        refusal(&port, |s| s[255] = 1),
        "byte 255, after the last field, is not zero"
    );
    let nameless = Record::ServicePort(ServicePortRecord {
        name: String::new(),
        ..service_port()
    });
    assert_eq!(refusal(&nameless, |_| ()), "the Service name is empty");

    let frontend = Record::Frontend(FrontendRecord {
        address: [0; 4].into(),
        protocol: Protocol::UDP,
        port: 0,
        kind: FrontendKind::NodePort,
        service_port: ServicePortIndex(0),
    });
    assert_eq!(
        refusal(&frontend, |_| ()),
        "the frontend port is 0, but ports are 1 to 65535"
    );
    assert_eq!(refusal(&frontend, |s| s[7] = 2), "2 is no protocol of a Service");
    assert_eq!(
        refusal(&frontend, |s| s[2] = 5),
        "5 is no address family (4 or 6)"
    );

    let network = Record::Network(NetworkRecord {
        kind: NetworkKind::PodRange,
        network: "10.1.0.0/16".parse().unwrap(),
    });
    assert_eq!(
        refusal(&network, |s| s[8] = 33),
        "the prefix length is 33, but at most 32 is allowed"
    );
    assert_eq!(
        refusal(&network, |s| s[8] = 8),
        "the network 10.1.0.0/8 has address bits set beyond its prefix"
    );
}

#[test]
fn a_name_too_long_is_refused_before_it_is_sent() {
    let record = ServicePortRecord {
        name: "x".repeat(64),
        ..service_port()
    };
    let error = Message::Put(Record::ServicePort(record)).encode().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the Service name is 64 bytes long, but at most 63 fit"
    );
}

#[test]
fn the_text_of_a_nack_is_cut_and_kept_to_one_line() {
    let text = format!("a\nb{}", "ä".repeat(200));
    let nack = Nack {
        generation: Generation(1),
        message: 2,
        reason: NackReason::Refused,
        text,
    };
    let Ok(Message::Nack(read)) = Message::decode(&Message::Nack(nack).encode().unwrap()) else {
        panic!("a nack is read as a nack")
    };
    assert!(read.text.starts_with("a bää") && read.text.len() <= TEXT_MAX && read.text.len() > TEXT_MAX - 2);
}
