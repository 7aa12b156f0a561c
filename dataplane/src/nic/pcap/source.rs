//! Recorded packets, in the order of the files: pcap of either resolution and byte order, pcapng; of Ethernet links.
//!
//! Takes  a file, which may still grow, or a folder: its files by name, and later ones as they come (to be moved in
//!        finished: the end of a file there is its end).
//! Gives  one packet after the other, in a buffer of its own, with the time it was recorded at.
//! Never  believes a length or a block: a file that makes no sense is left at that place, and counted.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgParser};
use pcap_file::{DataLink, PcapError, TsResolution};
use rustix::fs::inotify;

/// Bytes read at once, and the longest record: twice the longest that tcpdump writes (MAXIMUM_SNAPLEN, 256 KiB).
const BUFFER: usize = 512 << 10;
/// A section header of pcapng, in either byte order; all else begins a pcap.
const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A packet in the source's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Since 1970, to the nanosecond where the file has them.
    pub(super) time: Duration,
    start: usize,
    len: usize,
    /// Of its record: where the next begins.
    end: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This packet, again and again until it is taken.
    Packet(Packet),
    /// A packet that its recorder cut, of no byte or of no Ethernet link; or a file whose rest makes no sense. It is passed over.
    Bad,
    /// Nothing, for now.
    Nothing,
}

pub(super) struct Source {
    path: PathBuf,
    /// Names already read, if it is a folder.
    read: Option<BTreeSet<OsString>>,
    file: Option<File>,
    format: Option<Format>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The first packet was, and nobody has been told.
    is_bad: bool,
    /// Inotify: readable when there may be more.
    news: OwnedFd,
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

impl Source {
    /// Errors: no such file, no right to read it; a first file that is no recording of an Ethernet link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let folder = fs::metadata(path)?.is_dir();
        let news = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let events = if folder {
            inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE
        } else {
            inotify::WatchFlags::MODIFY
        };
        inotify::add_watch(&news, path, events)?;
        let mut source = Self {
            path: path.to_owned(),
            read: folder.then(BTreeSet::new),
            file: if folder { None } else { Some(File::open(path)?) },
            format: None,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            is_bad: false,
            news,
        };
        // A file alone is looked at now; one of a folder is passed over if it is none.
        source.is_bad = !folder && source.next() == Next::Bad;
        if source.is_bad && source.file.is_none() {
            let what = "it is no pcap or pcapng of an Ethernet link";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(source)
    }

    /// Readable when there may be more, until `next` has said that there is nothing.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    pub(super) fn bytes(&self, packet: &Packet) -> &[u8] {
        &self.buffer[packet.start..packet.start + packet.len]
    }

    /// Passes over a packet that `next` gave.
    pub(super) const fn take(&mut self, packet: &Packet) {
        self.start = packet.end;
    }

    pub(super) fn next(&mut self) -> Next {
        if std::mem::take(&mut self.is_bad) {
            return Next::Bad;
        }
        loop {
            match self.front() {
                Front::Packet(packet) => return Next::Packet(packet),
                Front::Other(end, bad) => {
                    self.start = end;
                    if bad {
                        return Next::Bad;
                    }
                }
                Front::Nonsense => return self.leave(),
                Front::Part => match self.fill() {
                    Ok(0) if self.read.is_none() => {
                        self.forget_news();
                        return Next::Nothing;
                    }
                    // A file of a folder ends here, if not within a record.
                    Ok(0) if self.start < self.end => return self.leave(),
                    Ok(0) => {
                        if !self.next_file() {
                            return Next::Nothing;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return self.leave(),
                },
            }
        }
    }

    /// No more of this file.
    fn leave(&mut self) -> Next {
        self.file = None;
        self.format = None;
        self.end = self.start;
        Next::Bad
    }

    /// Opens the first file of the folder, by name, that has not been read.
    fn next_file(&mut self) -> bool {
        self.file = None;
        self.format = None;
        // Before the folder is looked at: what comes after that is told again.
        self.forget_news();
        let Some(read) = &mut self.read else { return false };
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let new = names
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.file_name())
            .filter(|name| {
                let ending = Path::new(name).extension();
                ending.is_some_and(|ending| ending == "pcap" || ending == "pcapng") && !read.contains(name)
            })
            .min();
        let Some(name) = new else { return false };
        self.file = File::open(self.path.join(&name)).ok();
        read.insert(name);
        true
    }

    fn forget_news(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.news, &mut events).is_ok_and(|read| read > 0) {}
    }

    /// Reads on; 0 at the end of the file, or if there is none. Errors: a record that is longer than the buffer.
    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(file) = &mut self.file else { return Ok(0) };
        let read = file.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
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
