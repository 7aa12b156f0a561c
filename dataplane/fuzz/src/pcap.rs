//! A recording of any bytes: its packets are parts of it, it comes to an end, and both are the same in whatever pieces it is
//! read.

use std::time::Duration;

use sluice_dataplane::nic::pcap::records::{Record, Records};

/// The longest record: less than inputs are, so that some are too long.
const ROOM: usize = 2048;

/// A recording's packets, its bad records, and whether it made sense to its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    packets: Vec<(Duration, Vec<u8>)>,
    bad: usize,
    sense: bool,
}

pub(crate) fn run(data: &[u8]) {
    let whole = read(data, data.len());
    let bytes: usize = whole.packets.iter().map(|(_, packet)| packet.len()).sum();
    assert!(bytes <= data.len(), "{bytes} bytes of packets in {}", data.len());
    for piece in [1, 7, 64] {
        assert_eq!(read(data, piece), whole, "in pieces of {piece} bytes");
    }
}

fn read(mut data: &[u8], piece: usize) -> Content {
    let mut records = Records::new(ROOM);
    let mut content = Content::default();
    // Every record takes bytes, and so does every piece.
    for _ in 0..=2 * data.len() + 2 {
        match records.next() {
            Record::Packet(packet) => {
                assert_eq!(records.next(), Record::Packet(packet), "not taken yet");
                content
                    .packets
                    .push((packet.time, records.bytes(&packet).to_vec()));
                records.take(&packet);
            }
            Record::Bad => content.bad += 1,
            Record::Nonsense => return content,
            Record::Part => {
                let (mut some, rest) = data.split_at(piece.min(data.len()));
                match records.read(&mut some) {
                    Ok(0) => {
                        content.sense = records.is_empty();
                        return content;
                    }
                    // There was no room for all of it.
                    Ok(_) => data = &data[data.len() - rest.len() - some.len()..],
                    Err(_) => return content,
                }
            }
        }
    }
    panic!("it did not come to an end");
}
