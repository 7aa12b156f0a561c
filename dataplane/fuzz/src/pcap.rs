//! A recording of any bytes: it opens or not, gives packets no longer than itself, and comes to an end.

use sluice_dataplane::nic::open::{DriverSpec, PortSpec, open};
use sluice_dataplane::nic::pcap::PcapSpec;
use sluice_dataplane::nic::{Burst, FrameMemory};

/// Turns; a record is at least 12 bytes, and after the last one a port rests for some.
const fn turns(len: usize) -> usize {
    len / 12 + 64
}

pub(crate) fn run(data: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any.pcap");
    std::fs::write(&path, data).unwrap();
    let mut memory = FrameMemory::new(64, 2048).unwrap();
    let options = PcapSpec {
        read: Some(path),
        ..PcapSpec::default()
    };
    let spec = PortSpec::new("fuzz", "fuzz", DriverSpec::Pcap(options));
    let Ok(mut port) = open(&spec, &mut memory, &mut None) else {
        return;
    };
    let mut frames = Burst::new();
    let mut bytes = 0;
    for _ in 0..turns(data.len()) {
        port.rx_burst(&mut memory, &mut frames);
        bytes += frames.iter().map(|frame| frame.len()).sum::<usize>();
        frames.drain(..).for_each(|frame| memory.free(frame));
    }
    assert!(
        bytes <= data.len(),
        "{bytes} bytes of packets in a file of {}",
        data.len()
    );
    let before = port.stats();
    port.rx_burst(&mut memory, &mut frames);
    assert_eq!(port.stats(), before, "it did not come to an end");
    port.close(&mut memory);
    assert_eq!(memory.available(), 64);
}
