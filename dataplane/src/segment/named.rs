//! A named file that outlives the process: memory to map, and behind it a page for whoever says what is in it.
//!
//! The file is its process's alone: nobody else may open it (0600), a second process of ours is kept out by a lock, and all
//! of it is allocated before it is used, so that a full file system is an error at the start and not a SIGBUS later.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use super::{HUGE_PAGE, Region, page_align};

/// Bytes of the head that may be used.
pub const HEAD: usize = 256;

/// The file, locked until it or the region mapped from it is dropped.
#[derive(Debug)]
pub struct NamedFile {
    file: File,
    len: usize,
}

impl NamedFile {
    /// Opens or creates the file at `path` for `len` bytes of memory. Errors: WouldBlock if another process has it; what
    /// open(2) says.
    pub fn open(path: &Path, len: usize) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            file,
            len: page_align(len)?,
        })
    }

    /// What `set_head` wrote, by whatever process; `None` if the file is new or of another size.
    pub fn head(&self) -> io::Result<Option<[u8; HEAD]>> {
        if self.file.metadata()?.len() != self.size()? {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, self.len as u64)?;
        Ok((head != [0; HEAD]).then_some(head))
    }

    /// Makes head and memory zero and of the right size. Killed halfway, it leaves a file without a head.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(self.size()?)?;
        // A page of each huge one that is to be: of none at all the kernel makes none.
        for at in (0..self.size()?).step_by(HUGE_PAGE) {
            fallocate(&self.file, FallocateFlags::empty(), at, 1)?;
        }
        Ok(())
    }

    /// Says what is in the memory.
    pub fn set_head(&self, head: &[u8; HEAD]) -> io::Result<()> {
        self.file.write_all_at(head, self.len as u64)
    }

    /// Maps the memory, in huge pages where the kernel can make them. Errors: InvalidData if the file has another size;
    /// ENOSPC; what mmap(2) says.
    pub fn map(self) -> io::Result<Region> {
        if self.file.metadata()?.len() != self.size()? {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Region::map_huge(self.file.into(), self.len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok((self.len + page_align(HEAD)?) as u64)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use crate::segment::Slab;
    use crate::segment::tests::HUGE_PAGES_ALLOWED;

    #[test]
    fn what_was_written_is_there_for_the_next_and_for_nobody_else_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let file = NamedFile::open(&path, 8192).unwrap();
        assert_eq!(file.head().unwrap(), None);
        file.clear().unwrap();
        assert_eq!(file.head().unwrap(), None);
        file.set_head(&[7; HEAD]).unwrap();
        let mut slab = Slab::<u64>::over(file.map().unwrap(), 1000).unwrap();
        slab[999] = 42;
        assert_eq!(
            NamedFile::open(&path, 8192).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(slab);

        assert_eq!(
            NamedFile::open(&path, 16_384).unwrap().head().unwrap(),
            None,
            "another size"
        );
        let file = NamedFile::open(&path, 8192).unwrap();
        assert_eq!(file.head().unwrap(), Some([7; HEAD]));
        assert_eq!(Slab::<u64>::over(file.map().unwrap(), 1000).unwrap()[999], 42);
        let file = NamedFile::open(&path, 8192).unwrap();
        file.clear().unwrap();
        assert_eq!(file.head().unwrap(), None);
        assert_eq!(Slab::<u64>::over(file.map().unwrap(), 1000).unwrap()[999], 0);
    }

    #[test]
    fn a_file_on_a_tmpfs_is_mapped_in_huge_pages() {
        const LEN: usize = 8 << 20;
        let _setting = HUGE_PAGES_ALLOWED.lock().unwrap();
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let open = || NamedFile::open(&folder.path().join("memory"), LEN).unwrap();
        // By the process that makes it, and by the next.
        for first in [true, false] {
            let file = open();
            if first {
                file.clear().unwrap();
                file.set_head(&[7; HEAD]).unwrap();
            }
            assert_eq!(file.head().unwrap(), Some([7; HEAD]));
            let region = file.map().unwrap();
            if region.small_pages {
                eprintln!("skipped: 1 (huge pages for files on a tmpfs: this kernel gives none)");
                return;
            }
            assert_eq!(huge(region.base().as_ptr().addr()), LEN);
            let mut slab = Slab::<u64>::over(region, LEN / 8).unwrap();
            for at in [0, LEN / 16, LEN / 8 - 1] {
                assert_eq!(slab[at], if first { 0 } else { 42 });
                slab[at] = 42;
            }
        }
    }

    /// Bytes of the mapping at this address that page tables map in huge pieces (proc_pid_smaps(5)).
    fn huge(base: usize) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{base:x}-");
        let mut ours = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let line = ours.find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }
}
