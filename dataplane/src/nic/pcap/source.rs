//! Recorded packets, in the order of the files: pcap of either resolution and byte order, pcapng; of Ethernet links.
//!
//! Takes  a file, which may still grow, or a folder: its files by name, and later ones as they come (to be moved in
//!        finished: the end of a file there is its end).
//! Gives  one packet after the other, in a buffer of its own, with the time it was recorded at.
//! Never  believes a length or a block: a file that makes no sense is left at that place, and counted.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify;

use super::records::{Packet, Record, Records};

/// Bytes read at once, and the longest record: twice the longest that tcpdump writes (MAXIMUM_SNAPLEN, 256 KiB).
const BUFFER: usize = 512 << 10;

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
    records: Records,
    /// The first packet was, and nobody has been told.
    is_bad: bool,
    /// Inotify: readable when there may be more.
    news: OwnedFd,
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
            records: Records::new(BUFFER),
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
        self.records.bytes(packet)
    }

    /// Passes over a packet that `next` gave.
    pub(super) fn take(&mut self, packet: &Packet) {
        self.records.take(packet);
    }

    pub(super) fn next(&mut self) -> Next {
        if std::mem::take(&mut self.is_bad) {
            return Next::Bad;
        }
        loop {
            match self.records.next() {
                Record::Packet(packet) => return Next::Packet(packet),
                Record::Bad => return Next::Bad,
                Record::Nonsense => return self.leave(),
                Record::Part => match self.read_on() {
                    Ok(0) if self.read.is_none() => {
                        self.forget_news();
                        return Next::Nothing;
                    }
                    // A file of a folder ends here, if not within a record.
                    Ok(0) if !self.records.is_empty() => return self.leave(),
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
        self.records.restart();
        Next::Bad
    }

    /// Opens the first file of the folder, by name, that has not been read.
    fn next_file(&mut self) -> bool {
        self.file = None;
        self.records.restart();
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

    /// 0 at the end of the file, or if there is none.
    fn read_on(&mut self) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => self.records.read(file),
            None => Ok(0),
        }
    }
}
