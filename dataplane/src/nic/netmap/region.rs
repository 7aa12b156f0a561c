#![allow(unsafe_code)]
//! The memory that netmap ports share with the kernel: a `netmap_if` for each registration, which says where its rings are,
//! the rings, and the buffers that slots of rings name by number. All of it may be written by others at any time, so each
//! word is read once and checked before it is used; an unsound one opens no port.
//!
//! Takes  a registered device.   Gives  its rings; frame memory made of buffers that are in no ring.
//! Never  believes an offset, a length or a number that it has not compared with the mapping.

use std::io;
use std::mem::offset_of;
use std::sync::Arc;

use netmap_sys::netmap::netmap_if;

use super::abi::{Device, NR_REG_NULL, Register};
use super::ring::Ring;
use crate::nic::frame::{FrameMemory, Lender};
use crate::nic::sys::Mapping;

/// Buffers 0 and 1 are the kernel's own.
pub(crate) const FIRST_BUFFER: u32 = 2;

// The layout of API 14, of which `netmap_sys` knows `ni_host_tx_rings` and `ni_host_rx_rings` as spare.
const _: () = assert!(size_of::<netmap_if>() == 56 && offset_of!(netmap_if, ni_spare1) == 36);

/// Which rings of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Tx,
    Rx,
}

/// Where the buffers are: the same for all rings of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffers {
    /// Of buffer 0 in the memory.
    pub(crate) offset: usize,
    /// Bytes of each.
    pub(crate) size: usize,
    /// How many.
    pub(crate) count: u32,
}

/// A registration's view of the memory.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) mapping: Arc<Mapping>,
    /// Where its `netmap_if` is.
    interface: usize,
}

fn unsound(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Region {
    /// Maps what `device`, registered with the answer `got`, shares.
    pub(crate) fn map(device: &dyn Device, got: &Register) -> io::Result<Self> {
        let (Ok(len), Ok(interface)) = (usize::try_from(got.memsize), usize::try_from(got.offset)) else {
            return Err(unsound("the memory is larger than an address space"));
        };
        let mapping = Mapping::sparse(device.memory(), len)?;
        let region = Self {
            mapping: Arc::new(mapping),
            interface,
        };
        region.interface()?;
        Ok(region)
    }

    /// A word of the memory, read once.
    pub(crate) fn read<T: Word>(&self, offset: usize) -> Option<T> {
        let at = self.place::<T>(offset)?;
        // SAFETY: `place` checked bounds and alignment, and any bit pattern is a Word. Others may write it meanwhile: a
        // volatile read of a machine word gives one of its values.
        Some(unsafe { at.read_volatile() })
    }

    fn write<T: Word>(&self, offset: usize, value: T) -> Option<()> {
        let at = self.place::<T>(offset)?;
        // SAFETY: as in `read`.
        unsafe { at.write_volatile(value) };
        Some(())
    }

    fn place<T: Word>(&self, offset: usize) -> Option<*mut T> {
        let fits = offset.checked_add(size_of::<T>())? <= self.mapping.len();
        let at = self.mapping.base().as_ptr().wrapping_add(offset).cast::<T>();
        (fits && at.is_aligned()).then_some(at)
    }

    /// Rings of the registration: tx, host tx, rx, host rx.
    fn interface(&self) -> io::Result<[usize; 4]> {
        let field = |offset| self.read::<u32>(self.interface.checked_add(offset)?);
        let spare = offset_of!(netmap_if, ni_spare1);
        let counts = [
            offset_of!(netmap_if, ni_tx_rings),
            spare,
            offset_of!(netmap_if, ni_rx_rings),
            spare + 4,
        ];
        let all = counts.map(|offset| field(offset).map_or(usize::MAX, |count| count as usize));
        let most = self.mapping.len() / size_of::<isize>();
        if all.iter().any(|&count| count > most) {
            return Err(unsound("the port's description is outside of its memory"));
        }
        Ok(all)
    }

    /// Ring `index` of those of the NIC, or of the host's; the first if there are fewer, as the kernel does it.
    pub(crate) fn ring(&self, direction: Direction, host: bool, index: u16) -> io::Result<Ring> {
        let [tx, host_tx, rx, host_rx] = self.interface()?;
        let (before, count) = match (direction, host) {
            (Direction::Tx, false) => (0, tx),
            (Direction::Tx, true) => (tx, host_tx),
            (Direction::Rx, false) => (tx + host_tx, rx),
            (Direction::Rx, true) => (tx + host_tx + rx, host_rx),
        };
        let index = usize::from(index);
        let place = before + if index < count { index } else { 0 };
        let entry = self.interface + size_of::<netmap_if>() + place * size_of::<isize>();
        let offset = self.read::<isize>(entry).filter(|&offset| offset != 0);
        let ring = offset.and_then(|offset| self.interface.checked_add_signed(offset));
        ring.and_then(|ring| Ring::at(self, ring))
            .ok_or_else(|| unsound("a ring is outside of its memory, or none"))
    }

    /// Moves `memory` into the region with number `id`, whose buffers are `buffers`: a second `device` is registered
    /// without rings, for as many buffers as `memory` has frames. It must be whole: nothing knows its frames. On error it is
    /// as it was.
    pub(crate) fn lend(
        device: Box<dyn Device>,
        id: u16,
        buffers: Buffers,
        memory: &mut FrameMemory,
    ) -> io::Result<()> {
        let wanted = u32::try_from(memory.capacity()).unwrap_or(u32::MAX);
        let mut request = Register {
            mode: NR_REG_NULL,
            mem_id: id,
            extra_bufs: wanted,
            ..Register::default()
        };
        device.register("sluice", &mut request)?;
        if request.extra_bufs < wanted {
            let what = format!("{} buffers of {wanted} are left", request.extra_bufs);
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
        }
        let region = Self::map(&*device, &request)?;
        let end = buffers.offset + buffers.size * buffers.count as usize;
        if request.mem_id != id || end > region.mapping.len() {
            return Err(unsound("the memory is another than the port's"));
        }
        let loan = Loan {
            region,
            buffers,
            id,
            device,
        };
        let mine = loan.list(memory.capacity())?;
        // SAFETY: `buffers` lies in the mapping, just compared with its length, which the loan keeps; `list` gives each
        // number once and below `count`.
        *memory = unsafe {
            let base = loan.region.mapping.base().add(buffers.offset);
            FrameMemory::lent(base, buffers.size, buffers.count as usize, mine, Box::new(loan))
        };
        Ok(())
    }
}

/// Types that any bytes are one of, read and written at once.
pub(crate) trait Word: Copy {}
impl Word for u32 {}
impl Word for isize {}
impl Word for i64 {}
impl Word for u64 {}

/// Frame memory's registration: the kernel gave it buffers in a list, and wants them back in one.
#[derive(Debug)]
struct Loan {
    region: Region,
    buffers: Buffers,
    id: u16,
    /// Registered as long as the buffers are used.
    #[allow(dead_code, reason = "held for its drop")]
    device: Box<dyn Device>,
}

impl Loan {
    const fn head(&self) -> usize {
        self.region.interface + offset_of!(netmap_if, ni_bufs_head)
    }

    const fn buffer(&self, index: u32) -> usize {
        self.buffers.offset + index as usize * self.buffers.size
    }

    /// The numbers of `count` buffers that the kernel linked up: each begins with the number of the next.
    fn list(&self, count: usize) -> io::Result<Vec<u32>> {
        let mut seen = vec![false; self.buffers.count as usize];
        let mut list = Vec::with_capacity(count);
        let mut next = self.region.read::<u32>(self.head()).unwrap_or(0);
        while list.len() < count {
            let new = next >= FIRST_BUFFER
                && seen
                    .get_mut(next as usize)
                    .is_some_and(|seen| !std::mem::replace(seen, true));
            if !new {
                return Err(unsound("the list of buffers leads to none or in a circle"));
            }
            list.push(next);
            next = self.region.read::<u32>(self.buffer(next)).unwrap_or(0);
        }
        Ok(list)
    }
}

impl Lender for Loan {
    fn region(&self) -> u64 {
        self.id.into()
    }

    fn take_back(&mut self, chunks: &[u32]) {
        let mut next = 0;
        for &chunk in chunks {
            self.region.write(self.buffer(chunk), next);
            next = chunk;
        }
        self.region.write(self.head(), next);
    }
}
