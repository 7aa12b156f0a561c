#![allow(unsafe_code)]
//! Mapped memory: anonymous for one process's big tables and frames, a sealed memfd to share with another, or a named file
//! for the next.
//!
//! A `Region` is bytes; a `Slab<T>` is a region that holds plain old data of one type, zeroed at birth. Neither ever
//! grows or moves, so raw rings and other processes may keep pointing into them.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytemuck::AnyBitPattern;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use serde::{Deserialize, Serialize};

/// Files that outlive the process.
pub mod named;

/// Bytes of a huge page, where page tables have entries for 512 pages (x86-64, and arm64 with pages of 4 KiB).
const HUGE_PAGE: usize = 2 << 20;

/// Where the kernel says whether it gives transparent huge pages to those who ask (Documentation/admin-guide/mm/transhuge).
pub const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Whether it does: then anonymous regions are in them as far as memory is not in pieces.
pub fn has_huge_pages() -> bool {
    std::fs::read_to_string(HUGE_PAGES).is_ok_and(|modes| !modes.contains("[never]"))
}

/// What pages this process's memory is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Pages {
    /// Huge ones that the kernel makes as it has memory in one piece: nothing is to be prepared, and none are guaranteed.
    #[default]
    Transparent,
    /// Huge ones that were set apart for such as us (hugetlbfs, `vm.nr_hugepages`), or where none are left transparent ones.
    /// Not what is shared with other processes or left to the next.
    Reserved,
    /// Small ones only: to see what the others are worth.
    Small,
}

/// Of this process: a `Pages`, set once before there is memory.
static PAGES: AtomicU8 = AtomicU8::new(Pages::Transparent as u8);
/// Bytes that were to be in reserved pages, of which none were left.
static LACKING: AtomicU64 = AtomicU64::new(0);

/// Says what pages the memory is to be in that is mapped from now on.
pub fn choose(pages: Pages) {
    PAGES.store(pages as u8, Ordering::Relaxed);
}

fn chosen() -> Pages {
    match PAGES.load(Ordering::Relaxed) {
        1 => Pages::Reserved,
        2 => Pages::Small,
        _ => Pages::Transparent,
    }
}

/// How many bytes so far were to be in reserved pages, and are not.
pub fn lacking() -> u64 {
    LACKING.load(Ordering::Relaxed)
}

/// A mapping of this process, unmapped on drop.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    /// The file behind it: present when the memory can be handed to another process, or is left to the next.
    memfd: Option<OwnedFd>,
    /// Whether the kernel was asked for huge pages and gave none.
    pub(crate) small_pages: bool,
}

// SAFETY: a Region owns its mapping and has no thread affinity; access through it is governed by whoever wraps it.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives only the base pointer and the length.
unsafe impl Sync for Region {}

impl Region {
    /// `len` zeroed bytes (rounded up to whole pages), private to this process, on huge pages where the machine has them to
    /// give (`Pages`). Errors: what mmap(2) says, in practice ENOMEM.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::anonymous_in(len, chosen())
    }

    fn anonymous_in(len: usize, pages: Pages) -> io::Result<Self> {
        // Less than one is not worth one.
        if pages == Pages::Reserved && len >= HUGE_PAGE {
            match Self::reserved(len) {
                Ok(region) => return Ok(region),
                Err(_) => LACKING.fetch_add(len as u64, Ordering::Relaxed),
            };
        }
        let len = page_align(len)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses overlaps nothing.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE)? };
        let advice = match pages {
            Pages::Small => Advice::LinuxNoHugepage,
            Pages::Transparent | Pages::Reserved => Advice::LinuxHugepage,
        };
        // SAFETY: the range was just mapped and is ours; the advice changes no contents. It may fail where the kernel
        // has no transparent huge pages: the memory is as good, only slower.
        let _ = unsafe { rustix::mm::madvise(base, len, advice) };
        Self::owning(base, len, None)
    }

    /// The same in pages of the kernel's pool, all of which are ours from now on. Errors: ENOMEM if it has too few.
    fn reserved(len: usize) -> io::Result<Self> {
        let whole = len.checked_next_multiple_of(HUGE_PAGE);
        let len = whole.ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // SAFETY: as in `anonymous_in`.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags)? };
        Self::owning(base, len, None)
    }

    /// `len` zeroed bytes in a memfd that can neither shrink nor grow, to be handed to another process.
    pub fn shared(name: &str, len: usize) -> io::Result<Self> {
        let len = page_align(len)?;
        Self::map(sealed(name, len)?, len)
    }

    /// The same with all its pages there from the beginning, huge ones where they are to be had: packets that go through it
    /// wait for none.
    pub fn shared_whole(name: &str, len: usize) -> io::Result<Self> {
        let len = page_align(len)?;
        Self::map_huge(sealed(name, len)?, len)
    }

    /// Maps what another process handed over. Refused (InvalidData) unless the file can no longer shrink, since a
    /// shrinking file turns a read into SIGBUS, and unless it has exactly `len` bytes rounded up to pages.
    pub fn adopt(memfd: OwnedFd, len: usize) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&memfd)?;
        let size = rustix::fs::fstat(&memfd)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || u64::try_from(size).ok() != Some(page_align(len)? as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "shared segment is unsealed or of another size",
            ));
        }
        Self::map(memfd, page_align(len)?)
    }

    /// Maps the first `len` bytes (at least one) of a file that another process handed over, in whole pages of `page` bytes.
    /// Refused (InvalidData) if the file is shorter. It may become shorter at any time, and touching what is gone is a
    /// SIGBUS: the caller provides for that.
    #[cfg(feature = "nic")]
    pub(crate) fn foreign(file: OwnedFd, len: usize, page: usize) -> io::Result<Self> {
        let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if len == 0 || size < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "shared region is too short",
            ));
        }
        let whole = len.checked_next_multiple_of(page);
        Self::map(file, whole.ok_or(io::ErrorKind::OutOfMemory)?)
    }

    fn map(memfd: OwnedFd, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses. The file is sealed and cannot shrink below `len`, or the
        // caller provides for that (`foreign`).
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &memfd, 0)? };
        Self::owning(base, len, Some(memfd))
    }

    /// Maps a file in memory that nobody makes shorter: it is sealed, or of a tmpfs that only its owner may open and that no
    /// second process of ours gets.
    /// Holes in it are filled with huge pages, and what is in small ones is moved there, which takes Linux 6.1
    /// (MADV_COLLAPSE); where that cannot be, small ones are as good, only slower. Afterwards all of it is allocated. Errors:
    /// ENOSPC; what mmap(2) says.
    fn map_huge(file: OwnedFd, len: usize) -> io::Result<Self> {
        let room = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses overlaps nothing, and is gone at once.
        let free = unsafe {
            let free = rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                room,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )?;
            rustix::mm::munmap(free, room)?;
            free
        };
        // A huge page is mapped in one piece only at such an address.
        let hint = free.map_addr(|address| address.next_multiple_of(HUGE_PAGE));
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, and no MAP_FIXED: where the address is not free any more the kernel chooses another. The
        // file cannot shrink, see above.
        let base = unsafe { rustix::mm::mmap(hint, len, prot, MapFlags::SHARED, &file, 0)? };
        let asked = chosen() != Pages::Small;
        // SAFETY: the range was just mapped and is ours; the advice changes no contents.
        let moved = asked && unsafe { libc::madvise(base, len, libc::MADV_COLLAPSE) } == 0;
        let mut region = Self::owning(base, len, None)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
        region.memfd = Some(file);
        // Of a shorter one nobody misses it.
        region.small_pages = asked && !moved && len >= 2 * HUGE_PAGE;
        Ok(region)
    }

    fn owning(base: *mut std::ffi::c_void, len: usize, memfd: Option<OwnedFd>) -> io::Result<Self> {
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned the null page"))?;
        Ok(Self {
            base,
            len,
            memfd,
            small_pages: false,
        })
    }

    /// First byte; the mapping stays where it is for the Region's life.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes, whole pages.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one page.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memfd to hand over, for a shared region.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and len are exactly what mmap gave, and nobody can use the Region after its drop.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A memfd of `len` bytes, for good.
fn sealed(name: &str, len: usize) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&memfd, len as u64)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memfd)
}

fn page_align(len: usize) -> io::Result<usize> {
    len.max(1)
        .checked_next_multiple_of(rustix::param::page_size())
        .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// A fixed array of plain data in mapped memory: zeroed lazily by the kernel, on huge pages where possible.
#[derive(Debug)]
pub struct Slab<T> {
    region: Region,
    count: usize,
    _items: PhantomData<T>,
}

impl<T: AnyBitPattern> Slab<T> {
    /// `count` zeroed items. Errors: ENOMEM.
    pub fn zeroed(count: usize) -> io::Result<Self> {
        let bytes = count
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            region: Region::anonymous(bytes)?,
            count,
            _items: PhantomData,
        })
    }

    /// The first `count` items of a region as they are. Errors: InvalidInput if it is too short for them.
    pub fn over(region: Region, count: usize) -> io::Result<Self> {
        if count
            .checked_mul(size_of::<T>())
            .is_none_or(|bytes| bytes > region.len())
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            region,
            count,
            _items: PhantomData,
        })
    }

    /// Bytes of address space taken.
    pub const fn bytes(&self) -> usize {
        self.region.len()
    }
}

impl<T: AnyBitPattern> Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the region holds count * size_of::<T>() bytes at a page-aligned address (alignment of every T that
        // is plain data is below a page), any bit pattern is a T, and `&self` allows shared reads only. What padding a T
        // may have is written and never read.
        unsafe { std::slice::from_raw_parts(self.region.base.cast().as_ptr(), self.count) }
    }
}

impl<T: AnyBitPattern> DerefMut for Slab<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` is the only access, since the Slab owns the region and, where there
        // is one, nobody else maps the file.
        unsafe { std::slice::from_raw_parts_mut(self.region.base.cast().as_ptr(), self.count) }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Whether this process may have huge pages: held by the tests that mind.
    pub(super) static HUGE_PAGES_ALLOWED: Mutex<()> = Mutex::new(());

    #[test]
    fn memory_is_had_where_there_are_no_huge_pages() {
        let _setting = HUGE_PAGES_ALLOWED.lock().unwrap();
        // As on a machine without.
        rustix::thread::disable_transparent_huge_pages(true).unwrap();
        let mut slab = Slab::<u64>::zeroed(1 << 20).unwrap();
        assert!(slab.iter().all(|&word| word == 0));
        slab.iter_mut().for_each(|word| *word = 7);
        let huge: usize = std::fs::read_to_string("/proc/self/smaps_rollup")
            .unwrap()
            .lines()
            .filter(|line| line.contains("Hugetlb:"))
            .map(|line| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(huge, 0, "and none is asked for");
        assert!(slab.iter().all(|&word| word == 7));
        rustix::thread::disable_transparent_huge_pages(false).unwrap();
    }

    /// The kernel's pool of huge pages.
    const POOL: &str = "/proc/sys/vm/nr_hugepages";

    /// Gives the pool the size that it had.
    struct Restore(usize);

    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = std::fs::write(POOL, self.0.to_string());
        }
    }

    #[test]
    fn reserved_pages_are_taken_while_there_are_some() {
        let number = || -> usize { std::fs::read_to_string(POOL).unwrap().trim().parse().unwrap() };
        let before = number();
        let _restore = Restore(before);
        if std::fs::write(POOL, (before + 2).to_string()).is_err() || number() < before + 2 {
            eprintln!("skipped: 1 ({POOL} cannot be raised: not root, or no memory in pieces of 2 MiB)");
            return;
        }
        let huge = |region: &Region| {
            // SAFETY: the mapping is alive, zeroed, and nobody else's.
            unsafe { region.base().as_ptr().add(HUGE_PAGE).write(1) };
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", region.base().addr());
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
            let line = lines.find(|line| line.starts_with("Private_Hugetlb:")).unwrap();
            line.split_whitespace().nth(1) == Some("2048")
        };
        let region = Region::anonymous_in(HUGE_PAGE + 1, Pages::Reserved).unwrap();
        assert!(region.len() == 2 * HUGE_PAGE && huge(&region));
        // More than any machine has: as if it had not been asked for.
        let lacking = lacking();
        let much = Region::anonymous_in(1 << 44, Pages::Reserved);
        assert_eq!(super::lacking() - lacking, 1 << 44);
        assert!(much.is_err() || !huge(&much.unwrap()));
    }

    #[test]
    fn a_slab_is_zeroed_and_keeps_what_is_written() {
        let mut slab = Slab::<u64>::zeroed(100_000).unwrap();
        assert!(slab.iter().all(|&x| x == 0));
        slab[99_999] = 7;
        assert_eq!(slab[99_999], 7);
    }

    #[test]
    fn a_shared_region_is_seen_by_its_adopter_and_refuses_other_sizes() {
        for make in [Region::shared, Region::shared_whole] {
            let region = make("sluice-test", 8192).unwrap();
            let fd = || region.memfd().unwrap().try_clone_to_owned().unwrap();
            let other = Region::adopt(fd(), 8192).unwrap();
            // SAFETY: both mappings are alive and at least one page long; nobody else writes.
            unsafe {
                region.base().as_ptr().write(42);
                assert_eq!(other.base().as_ptr().read(), 42);
            }
            assert!(Region::adopt(fd(), 16384).is_err());
        }
    }
}
