//! What of files is not every driver's: the formats, folders, recordings that are cut or make no sense, their pace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_dataplane::nic::open::{DriverSpec, open};
use sluice_dataplane::nic::pcap::PcapSpec;
use sluice_dataplane::nic::{Driver, FrameMemory, OpenError};

use crate::conformance::receive;
use crate::{explains, spec};

type Port = Box<dyn Driver>;

/// Microseconds in the byte order of big machines; nanoseconds in that of small ones.
const MICROSECONDS: [u8; 4] = [0xa1, 0xb2, 0xc3, 0xd4];
const NANOSECONDS: [u8; 4] = [0x4d, 0x3c, 0xb2, 0xa1];
const ETHERNET: u32 = 1;

/// A pcap of packets with these times (seconds, fraction), as many bytes each as its number says, and cut ones where told.
fn pcap(magic: [u8; 4], link: u32, packets: &[(u32, u32, usize, bool)]) -> Vec<u8> {
    let big = magic == MICROSECONDS;
    let word = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let half = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let mut file = [magic, [0; 4]].concat();
    file[4..6].copy_from_slice(&half(2));
    file[6..8].copy_from_slice(&half(4));
    for field in [0, 0, 65_535, link] {
        file.extend(word(field));
    }
    for &(seconds, fraction, len, cut) in packets {
        let original = len as u32 + u32::from(cut);
        for field in [seconds, fraction, len as u32, original] {
            file.extend(word(field));
        }
        file.extend(vec![len as u8; len]);
    }
    file
}

fn reader(read: &Path, recorded_pace: bool, memory: &mut FrameMemory) -> Result<Port, OpenError> {
    let options = PcapSpec {
        read: Some(read.to_owned()),
        recorded_pace,
        ..PcapSpec::default()
    };
    open(&spec("pcap0", DriverSpec::Pcap(options)), memory, &mut None)
}

fn memory() -> FrameMemory {
    FrameMemory::new(256, 2048).unwrap()
}

/// The lengths of the next `count` packets.
fn lengths(port: &mut Port, memory: &mut FrameMemory, count: usize) -> Vec<usize> {
    let start = now();
    let mut lengths = Vec::new();
    while lengths.len() < count {
        let packets = receive(memory, port, Duration::from_millis(10));
        lengths.extend(packets.iter().map(Vec::len));
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{lengths:?} of {count}"
        );
    }
    lengths
}

fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn files_of_a_folder_are_read_by_name_whatever_their_format_and_later_ones_as_they_come() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    file(
        &folder,
        "2.pcap",
        &pcap(NANOSECONDS, ETHERNET, &[(1, 0, 62, false)]),
    );
    file(
        &folder,
        "1.pcap",
        &pcap(MICROSECONDS, ETHERNET, &[(1, 0, 60, false), (2, 0, 61, false)]),
    );
    file(&folder, "0.txt", b"not a recording");
    let mut memory = memory();
    let mut port = reader(folder.path(), false, &mut memory).unwrap();
    assert_eq!(lengths(&mut port, &mut memory, 3), [60, 61, 62]);
    // By a driver of the same kind.
    let third = outside.path().join("3.pcapng");
    let options = PcapSpec {
        write: Some(third.clone()),
        ..PcapSpec::default()
    };
    let mut writer = open(&spec("pcap1", DriverSpec::Pcap(options)), &mut memory, &mut None).unwrap();
    let mut frames = memory.copy_in(&[7; 63]).into_iter().collect();
    writer.tx_burst(&mut memory, &mut frames);
    writer.close(&mut memory);
    fs::rename(third, folder.path().join("3.pcapng")).unwrap();
    assert_eq!(lengths(&mut port, &mut memory, 1), [63]);
    assert_eq!(port.stats().rx_errors, 0);
    port.close(&mut memory);
    assert_eq!(memory.available(), 256);
}

#[test]
fn packets_that_were_cut_or_do_not_fit_are_counted_and_the_others_come() {
    let folder = tempfile::tempdir().unwrap();
    let packets = [
        (0, 0, 59, true),
        (0, 0, 60, false),
        (0, 0, 61, true),
        (0, 0, 3000, false),
        (0, 0, 0, false),
        (0, 0, 62, false),
    ];
    let path = file(&folder, "a.pcap", &pcap(NANOSECONDS, ETHERNET, &packets));
    let mut memory = memory();
    let mut port = reader(&path, false, &mut memory).unwrap();
    assert_eq!(lengths(&mut port, &mut memory, 2), [60, 62]);
    assert_eq!((port.stats().rx_packets, port.stats().rx_errors), (2, 4));
}

#[test]
fn a_file_that_makes_no_sense_is_left_there_and_the_next_is_read() {
    let folder = tempfile::tempdir().unwrap();
    file(&folder, "0.pcap", b"nonsense, and enough of it to be a header");
    let mut broken = pcap(NANOSECONDS, ETHERNET, &[(0, 0, 60, false)]);
    broken.extend([0xff; 64]);
    file(&folder, "1.pcap", &broken);
    let whole = pcap(NANOSECONDS, ETHERNET, &[(0, 0, 61, false), (0, 0, 62, false)]);
    file(&folder, "2.pcap", &whole[..whole.len() - 1]);
    file(&folder, "3.pcap", &pcap(NANOSECONDS, 101, &[(0, 0, 63, false)]));
    file(&folder, "4.pcap", b"nonsense, and enough of it to be a header");
    file(
        &folder,
        "5.pcap",
        &pcap(MICROSECONDS, ETHERNET, &[(0, 0, 64, false)]),
    );
    let mut memory = memory();
    let mut port = reader(folder.path(), false, &mut memory).unwrap();
    assert_eq!(lengths(&mut port, &mut memory, 3), [60, 61, 64]);
    assert_eq!(port.stats().rx_errors, 5);
}

/// Bytes of recordings changed at random: no panic, no packet longer than the file, and the port goes on.
#[test]
fn no_file_whatever_is_in_it_does_harm() {
    let folder = tempfile::tempdir().unwrap();
    let packets: Vec<_> = (60..120).map(|len| (1, 0, len, false)).collect();
    let mut samples = vec![
        pcap(MICROSECONDS, ETHERNET, &packets),
        pcap(NANOSECONDS, ETHERNET, &packets),
    ];
    let ng = folder.path().join("sample.pcapng");
    let mut memory = memory();
    let options = PcapSpec {
        write: Some(ng.clone()),
        ..PcapSpec::default()
    };
    let mut writer = open(&spec("pcap1", DriverSpec::Pcap(options)), &mut memory, &mut None).unwrap();
    let mut frames = (60..120)
        .filter_map(|len| memory.copy_in(&vec![1; len]))
        .collect();
    writer.tx_burst(&mut memory, &mut frames);
    writer.close(&mut memory);
    samples.push(fs::read(ng).unwrap());
    let mut state = 1u32;
    let mut number = || {
        // xorshift32.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize
    };
    for round in 0..600 {
        let mut sample = samples[round % samples.len()].clone();
        for _ in 0..=number() % 8 {
            let at = number() % if number() % 2 == 0 { sample.len() } else { 120 };
            sample[at] = number() as u8;
        }
        sample.truncate(number() % 2000 + sample.len() / 2);
        let path = file(&folder, "odd.pcap", &sample);
        // Refused at once, or read as far as it goes.
        let Ok(mut port) = reader(&path, false, &mut memory) else {
            continue;
        };
        for _ in 0..20 {
            for packet in receive(&mut memory, &mut port, Duration::ZERO) {
                assert!(packet.len() <= sample.len());
            }
        }
        port.close(&mut memory);
        assert_eq!(memory.available(), 256);
    }
}

#[test]
fn a_recording_is_read_at_its_pace_and_a_sleeper_is_woken_for_each_packet() {
    let folder = tempfile::tempdir().unwrap();
    // A long time ago; 30 ms apart.
    let packets: Vec<_> = (0..4)
        .map(|n| (5, n * 30_000_000, 60 + n as usize, false))
        .collect();
    let path = file(&folder, "a.pcap", &pcap(NANOSECONDS, ETHERNET, &packets));
    let mut memory = memory();
    let mut port = reader(&path, true, &mut memory).unwrap();
    let start = now();
    assert_eq!(lengths(&mut port, &mut memory, 4), [60, 61, 62, 63]);
    // Never early; how late is the machine's affair.
    assert!(
        start.elapsed() >= Duration::from_millis(90),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn what_cannot_be_read_or_written_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let mut memory = memory();
    let none = folder.path().join("none.pcap");
    explains(
        &reader(&none, false, &mut memory).err().unwrap(),
        "cannot read",
        "pcap or pcapng",
    );
    for (name, bytes) in [
        ("text.pcap", b"nonsense, and enough of it to be a header".to_vec()),
        ("raw-ip.pcap", pcap(NANOSECONDS, 101, &[])),
    ] {
        let path = file(&folder, name, &bytes);
        let error = reader(&path, false, &mut memory).err().unwrap();
        explains(&error, "cannot read", "pcap or pcapng");
        assert!(error.source.unwrap().to_string().contains("Ethernet"));
    }
    let options = PcapSpec {
        write: Some(folder.path().join("no-folder/out.pcap")),
        ..PcapSpec::default()
    };
    let error = open(&spec("pcap0", DriverSpec::Pcap(options)), &mut memory, &mut None);
    explains(&error.err().unwrap(), "cannot write", "folder that exists");
}

#[test]
fn a_disk_that_is_full_opens_no_port() {
    let mut memory = memory();
    let options = PcapSpec {
        write: Some("/dev/full".into()),
        ..PcapSpec::default()
    };
    // The header is written at once: a disk that is full from the beginning opens no port.
    let spec = spec("pcap0", DriverSpec::Pcap(options));
    let error = open(&spec, &mut memory, &mut None).err().unwrap();
    explains(&error, "cannot write /dev/full", "folder");
}

#[allow(clippy::disallowed_methods, reason = "bounds how long a failing test waits")]
fn now() -> Instant {
    Instant::now()
}
