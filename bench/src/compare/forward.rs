//! The least that a gateway does with a driver: takes a packet from one port, counts the hop, gives it to the other. No
//! table, no flow: the driver's own ceiling.

use sluice_dataplane::nic::memif::Role;
use sluice_dataplane::nic::open::{self, DriverSpec, PortSpec};
use sluice_dataplane::nic::{Burst, FrameMemory};

use crate::pktgen::layout::{Family, IP_CHECKSUM};
use crate::pktgen::ports::{Driver, Port};
use crate::pktgen::template::fold;

/// Empty turns before it waits, as a sleeping worker does.
const TURNS_BEFORE_SLEEP: u32 = 32;

/// What it says on standard error when its ports are open.
pub const READY: &str = "forwarding";

/// Forwards between two interfaces, or sockets of memif that it makes, until the process ends.
pub fn run(driver: Driver, ends: [&str; 2]) -> Result<(), Box<dyn std::error::Error>> {
    let mut memory = FrameMemory::new(16_384, 2_048)?;
    let mut umem = None;
    let mut open = |end| -> Result<_, Box<dyn std::error::Error>> {
        let mut spec = PortSpec {
            complete_checksums: true,
            ..Port::on(driver, end)
                .spec(end)
                .ok_or("driver memory has no interfaces")?
        };
        if let DriverSpec::Memif(memif) = &mut spec.driver {
            memif.role = Role::Server;
        }
        Ok(open::open(&spec, &mut memory, &mut umem)?)
    };
    let (mut a, mut b) = (open(ends[0])?, open(ends[1])?);
    eprintln!("{READY}");
    let mut idle = 0;
    loop {
        let mut packets = 0;
        for way in 0..2 {
            let (from, to) = if way == 0 {
                (&mut a, &mut b)
            } else {
                (&mut b, &mut a)
            };
            let mut frames = Burst::new_const();
            from.rx_burst(&mut memory, &mut frames);
            packets += frames.len();
            for frame in &mut frames {
                count_hop(memory.bytes_mut(frame));
            }
            if !frames.is_empty() {
                to.tx_burst(&mut memory, &mut frames);
            }
            frames.drain(..).for_each(|frame| memory.free(frame));
        }
        idle = if packets > 0 { 0 } else { idle + 1 };
        if idle > TURNS_BEFORE_SLEEP {
            let fds: Vec<_> = [&a, &b].into_iter().filter_map(|port| port.wait_fd()).collect();
            let mut fds: Vec<_> = fds
                .iter()
                .map(|fd| rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN))
                .collect();
            let longest = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            rustix::event::poll(&mut fds, Some(&longest))?;
        }
    }
}

/// One hop less; an IPv4 header's checksum by RFC 1624's short way.
fn count_hop(frame: &mut [u8]) {
    let Some(family) = Family::of_frame(frame).filter(|family| frame.len() >= family.l4()) else {
        return;
    };
    let hops = &mut frame[family.hops()];
    *hops = hops.saturating_sub(1);
    if family == Family::V4 {
        let sum = u16::from_be_bytes([frame[IP_CHECKSUM], frame[IP_CHECKSUM + 1]]);
        let sum = fold(u64::from(sum) + 0x100).to_be_bytes();
        frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&sum);
    }
}
