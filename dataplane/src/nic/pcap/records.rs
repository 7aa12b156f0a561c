//! The records of one recording: pcap of either resolution and byte order, pcapng; of Ethernet links.
//!
//! Takes  the recording's bytes, in pieces of any length.
//! Gives  one packet after the other, in a buffer of its own, with the time it was recorded at.
//! Never  believes a length or a block; opens or waits for nothing.

use std::io::{self, Read};
use std::time::Duration;

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgParser};
use pcap_file::{DataLink, PcapError, TsResolution};

/// A section header of pcapng, in either byte order; all else begins a pcap.
const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A packet in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Since 1970, to the nanosecond where the recording has them.
    pub time: Duration,
    start: usize,
    len: usize,
    /// Of its record: where the next begins.
    end: usize,
}

/// What comes next in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// This packet, again and again until it is taken.
    Packet(Packet),
    /// A packet that its recorder cut, of no byte or of no Ethernet link. It is passed over.
    Bad,
    /// As much of a record as has been read.
    Part,
    /// Nothing that makes sense, from here on.
    Nonsense,
}

/// A recording as far as it has been read.
pub struct Records {
    format: Option<Format>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

enum Format {
    Pcap(PcapParser),
    PcapNg(Box<PcapNgParser>),
}

/// What stands at the front of the buffer.
enum Front {
    Packet(Packet),
    /// A record that is no packet of ours, up to here; the bool says whether it is an error.
    Other(usize, bool),
    /// The beginning of a record.
    Part,
    Nonsense,
}

impl Records {
    /// Nothing read yet; records have at most `room` bytes.
    pub fn new(room: usize) -> Self {
        Self {
            format: None,
            buffer: vec![0; room].into(),
            start: 0,
            end: 0,
        }
    }

    /// Begins another recording; what was read of this one is forgotten.
    pub fn restart(&mut self) {
        self.format = None;
        self.end = self.start;
    }

    /// Whether all that was read has been given.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads on; 0 at the end. Errors: InvalidData for a record that is longer than there is room; what `from` says.
    pub fn read(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let read = from.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// The bytes of a packet that `next` gave, and that nothing has been done with since.
    pub fn bytes(&self, packet: &Packet) -> &[u8] {
        &self.buffer[packet.start..packet.start + packet.len]
    }

    /// Passes over a packet that `next` gave.
    pub const fn take(&mut self, packet: &Packet) {
        self.start = packet.end;
    }

    /// What comes next.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would not give a packet again"
    )]
    pub fn next(&mut self) -> Record {
        loop {
            match self.front() {
                Front::Packet(packet) => return Record::Packet(packet),
                Front::Other(end, bad) => {
                    self.start = end;
                    if bad {
                        return Record::Bad;
                    }
                }
                Front::Part => return Record::Part,
                Front::Nonsense => return Record::Nonsense,
            }
        }
    }

    fn front(&mut self) -> Front {
        let bytes = &self.buffer[self.start..self.end];
        if bytes.len() < SECTION.len() {
            return Front::Part;
        }
        let at = |rest: &[u8]| self.end - rest.len();
        match &mut self.format {
            None if bytes.starts_with(&SECTION) => match PcapNgParser::new(bytes) {
                Ok((rest, parser)) => {
                    let end = at(rest);
                    self.format = Some(Format::PcapNg(Box::new(parser)));
                    Front::Other(end, false)
                }
                Err(error) => part_or_nonsense(&error),
            },
            None => match PcapParser::new(bytes) {
                Ok((rest, parser)) if parser.header().datalink == DataLink::ETHERNET => {
                    let end = at(rest);
                    self.format = Some(Format::Pcap(parser));
                    Front::Other(end, false)
                }
                Ok(_) => Front::Nonsense,
                Err(error) => part_or_nonsense(&error),
            },
            // Raw: a packet longer than the recorder's limit is no error of the file's.
            Some(Format::Pcap(parser)) => match parser.next_raw_packet(bytes) {
                Ok((rest, raw)) => {
                    let (end, len) = (at(rest), raw.incl_len as usize);
                    if raw.incl_len != raw.orig_len || len == 0 {
                        return Front::Other(end, true);
                    }
                    let unit = match parser.header().ts_resolution {
                        TsResolution::MicroSecond => 1000,
                        TsResolution::NanoSecond => 1,
                    };
                    let nanos = Duration::from_nanos(u64::from(raw.ts_frac) * unit);
                    Front::Packet(Packet {
                        time: Duration::from_secs(raw.ts_sec.into()) + nanos,
                        start: end - len,
                        len,
                        end,
                    })
                }
                Err(error) => part_or_nonsense(&error),
            },
            Some(Format::PcapNg(parser)) => match parser.next_block(bytes) {
                Ok((rest, block)) => {
                    let end = at(rest);
                    let (interface, units, original, data) = match &block {
                        Block::EnhancedPacket(block) => {
                            // The crate takes all timestamps for nanoseconds; the interface says what they are.
                            let units = block.timestamp.as_nanos();
                            (block.interface_id, units, block.original_len, &block.data)
                        }
                        Block::SimplePacket(block) => (0, 0, block.original_len, &block.data),
                        _ => return Front::Other(end, false),
                    };
                    let interface = parser.interfaces().get(interface as usize);
                    let Some(interface) = interface.filter(|i| i.linktype == DataLink::ETHERNET) else {
                        return Front::Other(end, true);
                    };
                    // A simple packet's data has its padding.
                    let len = data.len().min(original as usize);
                    if len < original as usize || len == 0 {
                        return Front::Other(end, true);
                    }
                    let offset = data.as_ptr().addr() - bytes.as_ptr().addr();
                    Front::Packet(Packet {
                        time: time(units, &interface.options),
                        start: self.start + offset,
                        len,
                        end,
                    })
                }
                Err(error) => part_or_nonsense(&error),
            },
        }
    }
}

const fn part_or_nonsense(error: &PcapError) -> Front {
    match error {
        PcapError::IncompleteBuffer => Front::Part,
        _ => Front::Nonsense,
    }
}

/// A timestamp of an interface with these options: microseconds unless `if_tsresol` says otherwise (pcapng §4.2: a power of
/// ten, or of two if the highest bit is set).
fn time(units: u128, options: &[InterfaceDescriptionOption<'_>]) -> Duration {
    let resolution = options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let exponent = u32::from(resolution.unwrap_or(6));
    let per_second = if exponent < 128 {
        10u128.checked_pow(exponent)
    } else {
        2u128.checked_pow(exponent - 128)
    };
    let nanos = per_second.map_or(0, |per_second| units * 1_000_000_000 / per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_the_resolution_of_their_interface() {
        let of = |resolution: u8| [InterfaceDescriptionOption::IfTsResol(resolution)];
        assert_eq!(time(1_500_000, &[]), Duration::from_millis(1500));
        assert_eq!(time(1_500_000_000, &of(9)), Duration::from_millis(1500));
        assert_eq!(time(3, &of(0)), Duration::from_secs(3));
        assert_eq!(time(3 << 9, &of(0x80 | 10)), Duration::from_millis(1500));
        assert_eq!(time(u128::from(u64::MAX), &of(127)), Duration::ZERO);
        assert_eq!(time(u128::from(u64::MAX), &of(0)), Duration::from_nanos(u64::MAX));
    }
}
