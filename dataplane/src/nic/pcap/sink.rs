//! Packets to a file: pcap with nanoseconds, or pcapng if it is called so.
//!
//! Takes  packets in the order they are sent.   Gives  a file that grows by whole bursts.
//! Never  reads a clock unless told to: a gateway that runs through a recording at full speed has no time worth noting, and
//!        the same packets make the same file. Packet n is then written as sent at n microseconds.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use byteorder_slice::LittleEndian;
use pcap_file::pcap::{PcapHeader, PcapPacket};
use pcap_file::pcapng::PcapNgBlock as _;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::SectionHeaderBlock;
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use rustix::time::{ClockId, clock_gettime};

/// Longer than any frame (`frame.rs`).
const LONGEST: u32 = 1 << 16;
/// Bytes collected before they are written, if a burst has more.
const BUFFER: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// Not written yet.
    buffer: Vec<u8>,
    next_generation: bool,
    clock: bool,
    packets: u64,
}

impl Sink {
    /// Makes the file, or empties it. With `clock`, packets have the time they were written at.
    pub(super) fn create(path: &Path, clock: bool) -> io::Result<Self> {
        let mut sink = Self {
            file: File::create(path)?,
            buffer: Vec::with_capacity(BUFFER + LONGEST as usize + 64),
            next_generation: path.extension().is_some_and(|ending| ending == "pcapng"),
            clock,
            packets: 0,
        };
        sink.begin().map_err(failure)?;
        sink.flush()?;
        Ok(sink)
    }

    fn begin(&mut self) -> Result<(), PcapError> {
        // In one byte order on every machine, so that the same packets are the same file there.
        if self.next_generation {
            let section = SectionHeaderBlock {
                endianness: Endianness::Little,
                ..SectionHeaderBlock::default()
            };
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: LONGEST,
                options: vec![InterfaceDescriptionOption::IfTsResol(9)],
            };
            for block in [section.into_block(), interface.into_block()] {
                block
                    .write_to::<LittleEndian, _>(&mut self.buffer)
                    .map_err(PcapError::IoError)?;
            }
            return Ok(());
        }
        let header = PcapHeader {
            snaplen: LONGEST,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        header.write_to(&mut self.buffer).map(drop)
    }

    /// Adds a packet. Errors: as the file's.
    pub(super) fn put(&mut self, packet: &[u8]) -> io::Result<()> {
        let timestamp = if self.clock {
            let now = clock_gettime(ClockId::Realtime);
            Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
        } else {
            Duration::from_micros(self.packets)
        };
        self.packets += 1;
        let len = packet.len() as u32;
        let written = if self.next_generation {
            let block = EnhancedPacketBlock {
                interface_id: 0,
                timestamp,
                original_len: len,
                data: Cow::Borrowed(packet),
                options: Vec::new(),
            };
            let block = block.into_block();
            block
                .write_to::<LittleEndian, _>(&mut self.buffer)
                .map_err(PcapError::IoError)
        } else {
            let packet = PcapPacket::new(timestamp, len, packet);
            packet.write_to::<_, LittleEndian>(&mut self.buffer, TsResolution::NanoSecond, LONGEST)
        };
        written.map_err(failure)?;
        if self.buffer.len() > BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes what was added. Errors: the disk is full or gone; what was added is lost then.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written
    }
}

fn failure(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
