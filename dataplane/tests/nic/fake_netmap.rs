//! netmap's kernel module, played by a test: a memory of descriptions, rings and buffers in a memfd, ports of pipes and of
//! VALE switches, both sides of the ring protocol as sys/dev/netmap has it.
//!
//! It trusts its user less than the module does: a buffer that is put into a slot while the kernel has it elsewhere, a number
//! changed without NS_BUF_CHANGED, a `head` outside of what the user was given, or a buffer freed twice is a panic, so that
//! every test on it is one of these rules, too. A hostile one (`scribble`) breaks every rule itself instead.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netmap_sys::netmap::{NR_EXCLUSIVE, NS_BUF_CHANGED, netmap_if, netmap_ring, netmap_slot};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use sluice_dataplane::nic::netmap::abi::{Device, Devices, NR_REG_NULL, Register};

/// Number of the one memory region, as of netmap's global one.
pub(crate) const REGION: u16 = 1;
const BUFFER: usize = 2048;
const IF_SIZE: usize = 1024;
const IFS: usize = 64;
/// Room for 256 slots.
const RING_SIZE: usize = 256 + 256 * 16;
const RINGS: usize = 32;
const RINGS_AT: usize = IFS * IF_SIZE;
const BUFFERS_AT: usize = RINGS_AT + RINGS * RING_SIZE;

/// The module.
#[derive(Clone)]
pub(crate) struct Module(Arc<Mutex<Kernel>>);

impl Module {
    /// With a memory of `buffers` buffers.
    pub(crate) fn new(buffers: usize) -> Self {
        let memory = Memory::new(BUFFERS_AT + buffers * BUFFER);
        Self(Arc::new(Mutex::new(Kernel {
            memory,
            free_ifs: (0..IFS).map(|n| n * IF_SIZE).collect(),
            free_rings: (0..RINGS).map(|n| RINGS_AT + n * RING_SIZE).collect(),
            free_buffers: (2..buffers as u32).collect(),
            users: vec![false; buffers],
            ports: BTreeMap::new(),
            hostile: false,
            removed: false,
        })))
    }

    /// What ports are opened by.
    pub(crate) fn devices(&self) -> Arc<dyn Devices> {
        Arc::new(self.clone())
    }

    /// From now on nothing is checked, and every sync leaves what `scribble` writes over any word of the memory but the
    /// buffers: `number` gives ever new numbers.
    pub(crate) fn scribble(&self, mut number: impl FnMut() -> u32, words: usize) {
        let mut kernel = lock(&self.0);
        kernel.hostile = true;
        for _ in 0..words {
            let at = (number() as usize % (BUFFERS_AT / 4)) * 4;
            let value = match number() % 4 {
                0 => number(),
                1 => number() % 300,
                2 => 0,
                _ => u32::MAX - number() % 3,
            };
            kernel.memory.write(at, value);
        }
    }

    /// Buffers that are nobody's.
    pub(crate) fn free_buffers(&self) -> usize {
        lock(&self.0).free_buffers.len()
    }

    /// Ports go away under their users, as with the interface behind them; or come back.
    pub(crate) fn remove(&self, removed: bool) {
        lock(&self.0).removed = removed;
    }

    /// Who still has ports. As long as it is anybody, whoever removes what is behind them waits.
    pub(crate) fn holders(&self) -> usize {
        lock(&self.0).ports.values().map(|port| port.users).sum()
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Module")
    }
}

impl Devices for Module {
    fn open(&self) -> io::Result<Box<dyn Device>> {
        Ok(Box::new(Fake {
            kernel: Arc::clone(&self.0),
            registered: Mutex::new(None),
            memory: lock(&self.0).memory.file.try_clone()?,
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Memory {
    file: OwnedFd,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping has no thread affinity; the kernel's lock orders accesses.
unsafe impl Send for Memory {}

impl Memory {
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(4096);
        let file = rustix::fs::memfd_create("netmap", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len as u64).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0).unwrap() };
        Self {
            file,
            base: base.cast(),
            len,
        }
    }

    fn read<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned, just checked; only plain integers and slots are read.
        unsafe { self.base.add(at).cast::<T>().read_volatile() }
    }

    fn write<T: Copy>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned, just checked.
        unsafe { self.base.add(at).cast::<T>().write_volatile(value) }
    }

    fn copy_buffer(&self, from: u32, to: u32) {
        let place = |index: u32| BUFFERS_AT + index as usize * BUFFER;
        assert!(from != to && place(from.max(to)) + BUFFER <= self.len);
        // SAFETY: two different buffers, in bounds, just checked.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(place(from)), self.base.add(place(to)), BUFFER);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what mmap gave; nobody can use it after.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

struct Kernel {
    memory: Memory,
    free_ifs: Vec<usize>,
    free_rings: Vec<usize>,
    free_buffers: Vec<u32>,
    /// Buffers that a user has, by its slots or beside them.
    users: Vec<bool>,
    ports: BTreeMap<String, Port>,
    hostile: bool,
    removed: bool,
}

struct Port {
    tx: Ring,
    rx: Ring,
    users: usize,
    /// Of the users' eventfds.
    wakes: Vec<Arc<OwnedFd>>,
}

/// `netmap_kring`.
#[derive(Clone)]
struct Ring {
    at: usize,
    size: u32,
    /// First slot of the kernel's that the user released last (nr_hwcur).
    cur: u32,
    /// First slot that is not the user's (nr_hwtail); in a pipe, as the other end's sync has it (pipe_tail).
    tail: u32,
    /// What the user was told.
    told: u32,
    /// The buffer of each slot as the kernel knows it.
    known: Vec<u32>,
}

impl Ring {
    fn next(&self, slot: u32) -> u32 {
        (slot + 1) % self.size
    }

    fn slot_at(&self, slot: u32) -> usize {
        self.at + size_of::<netmap_ring>() + slot as usize * size_of::<netmap_slot>()
    }

    const HEAD: usize = std::mem::offset_of!(netmap_ring, head);
    const CUR: usize = std::mem::offset_of!(netmap_ring, cur);
    const TAIL: usize = std::mem::offset_of!(netmap_ring, tail);
}

struct Fake {
    kernel: Arc<Mutex<Kernel>>,
    registered: Mutex<Option<Registered>>,
    memory: OwnedFd,
    wake: OwnedFd,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

struct Registered {
    /// `None`: memory only.
    port: Option<(String, Arc<OwnedFd>)>,
    interface: usize,
}

fn refused(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The other end of a pipe.
fn other_end(name: &str) -> Option<String> {
    let swapped = |from: char, to: &str| name.contains(from).then(|| name.replace(from, to));
    swapped('{', "}").or_else(|| swapped('}', "{"))
}

impl Kernel {
    fn ring(&mut self, size: u32, is_rx: bool, with_buffers: bool) -> io::Result<Ring> {
        let buffers = if with_buffers { size as usize } else { 0 };
        if self.free_buffers.len() < buffers || self.free_rings.is_empty() {
            return Err(refused(libc::ENOMEM));
        }
        let at = self.free_rings.pop().unwrap();
        let mut known: Vec<u32> = self
            .free_buffers
            .drain(self.free_buffers.len() - buffers..)
            .collect();
        known.resize(size as usize, 0);
        let tail = if is_rx { 0 } else { size - 1 };
        let ring = Ring {
            at,
            size,
            cur: 0,
            tail,
            told: tail,
            known,
        };
        let memory = &self.memory;
        memory.write(at, (BUFFERS_AT - at) as i64);
        memory.write(at + 8, size);
        memory.write(at + 12, BUFFER as u32);
        [Ring::HEAD, Ring::CUR]
            .into_iter()
            .for_each(|field| memory.write(at + field, 0u32));
        memory.write(at + Ring::TAIL, tail);
        for slot in 0..size {
            let buf_idx = ring.known[slot as usize];
            memory.write(
                ring.slot_at(slot),
                netmap_slot {
                    buf_idx,
                    len: BUFFER as u16,
                    flags: 0,
                    ptr: 0,
                },
            );
            if slot < tail && buf_idx != 0 {
                self.users[buf_idx as usize] = true;
            }
        }
        Ok(ring)
    }

    fn port(&mut self, name: &str, request: &Register) -> io::Result<()> {
        if self.ports.contains_key(name) {
            return Ok(());
        }
        let size = |asked: u32| if asked == 0 { 64 } else { asked.min(256) };
        let ends = match other_end(name) {
            // Both ends of a pipe are made at once. Its rx rings have no buffers of their own.
            Some(other) => vec![name.to_owned(), other],
            None if name.starts_with("vale") => vec![name.to_owned()],
            None => return Err(refused(libc::ENXIO)),
        };
        let own_rx_buffers = ends.len() == 1;
        for end in ends {
            let tx = self.ring(size(request.tx_slots), false, true)?;
            let rx = self.ring(size(request.rx_slots), true, own_rx_buffers)?;
            let port = Port {
                tx,
                rx,
                users: 0,
                wakes: Vec::new(),
            };
            self.ports.insert(end, port);
        }
        Ok(())
    }

    fn register(&mut self, name: &str, request: &mut Register, wake: &OwnedFd) -> io::Result<Registered> {
        if self.removed {
            return Err(refused(libc::ENXIO));
        }
        if request.mem_id > REGION || (request.mode == NR_REG_NULL && request.mem_id == 0) {
            return Err(refused(libc::EINVAL));
        }
        let interface = self.free_ifs.pop().ok_or_else(|| refused(libc::ENOMEM))?;
        let rings = if request.mode == NR_REG_NULL {
            None
        } else {
            self.port(name, request)?;
            let port = self.ports.get_mut(name).unwrap();
            if port.users > 0 && !self.hostile && request.flags & u64::from(NR_EXCLUSIVE) != 0 {
                self.free_ifs.push(interface);
                return Err(refused(libc::EBUSY));
            }
            port.users += 1;
            let wake = Arc::new(wake.try_clone()?);
            port.wakes.push(Arc::clone(&wake));
            Some((port.tx.at, port.rx.at, (name.to_owned(), wake)))
        };
        let memory = &self.memory;
        let count = u32::from(rings.is_some());
        let rest: [u32; 9] = [0, 0, count, count, 0, 1, 1, 0, 0];
        (0..4).for_each(|n| memory.write(interface + 4 * n, 0u32));
        for (n, word) in rest.into_iter().enumerate() {
            memory.write(interface + 16 + 4 * n, word);
        }
        if let Some((tx, rx, _)) = &rings {
            // tx, host tx, rx, host rx.
            for (n, ring) in [*tx, 0, *rx, 0].into_iter().enumerate() {
                let offset = if ring == 0 { 0 } else { (ring - interface) as i64 };
                memory.write(interface + size_of::<netmap_if>() + 8 * n, offset);
            }
        }
        let extra = (request.extra_bufs as usize).min(self.free_buffers.len());
        let mut head = 0;
        for buffer in self.free_buffers.drain(self.free_buffers.len() - extra..) {
            memory.write(BUFFERS_AT + buffer as usize * BUFFER, head);
            self.users[buffer as usize] = true;
            head = buffer;
        }
        memory.write(interface + 32, head);
        request.extra_bufs = extra as u32;
        request.mem_id = REGION;
        request.memsize = memory.len as u64;
        request.offset = interface as u64;
        Ok(Registered {
            port: rings.map(|(_, _, port)| port),
            interface,
        })
    }

    fn unregister(&mut self, registered: Registered) {
        self.free_ifs.push(registered.interface);
        let mut next: u32 = self.memory.read(registered.interface + 32);
        // What a user who broke the rules gives back is not believed.
        while !self.hostile && next != 0 {
            let buffer = next;
            let users = std::mem::replace(&mut self.users[buffer as usize], false);
            assert!(users, "buffer {buffer} is given back, and was not the user's");
            next = self.memory.read(BUFFERS_AT + buffer as usize * BUFFER);
            self.free_buffers.push(buffer);
        }
        let Some((name, wake)) = registered.port else {
            return;
        };
        let port = self.ports.get_mut(&name).unwrap();
        port.users -= 1;
        port.wakes.retain(|other| !Arc::ptr_eq(other, &wake));
        let other = other_end(&name);
        let busy = |name: &String| self.ports.get(name).is_some_and(|port| port.users > 0);
        if busy(&name) || other.as_ref().is_some_and(busy) {
            return;
        }
        let freed: Vec<u32> = [Some(&name), other.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|name| self.buffers_of(name))
            .collect();
        for name in [Some(name), other].into_iter().flatten() {
            let port = self.ports.remove(&name).unwrap();
            self.free_rings.extend([port.tx.at, port.rx.at]);
        }
        if !self.hostile {
            freed
                .iter()
                .for_each(|&buffer| self.users[buffer as usize] = false);
            assert!(freed.iter().all(|buffer| !self.free_buffers.contains(buffer)));
            self.free_buffers.extend(freed);
        }
    }

    /// The buffers of what a port sends by, as they are now, and of what it receives by unless it is a pipe's: there a slot's
    /// buffer is where the packet is, in the tx ring or in the other end's rx ring.
    fn buffers_of(&self, name: &str) -> Vec<u32> {
        let read = |ring: &Ring, slot| self.memory.read::<u32>(ring.slot_at(slot));
        let port = &self.ports[name];
        if let Some(other) = other_end(name) {
            let rx = &self.ports[&other].rx;
            let received = |slot: u32| {
                let after = |n: u32| (n + rx.size - rx.cur) % rx.size;
                after(slot) < after(rx.tail)
            };
            let buffer = |slot| read(if received(slot) { rx } else { &port.tx }, slot);
            return (0..rx.size).map(buffer).collect();
        }
        let all = |ring: &Ring| (0..ring.size).map(|slot| read(ring, slot)).collect::<Vec<_>>();
        [all(&port.tx), all(&port.rx)].concat()
    }

    /// Slots that the user released since the last time; they are the kernel's from now on.
    fn released(&mut self, name: &str, is_rx: bool) -> Vec<(u32, netmap_slot)> {
        let port = &self.ports[name];
        let mut ring = if is_rx { port.rx.clone() } else { port.tx.clone() };
        let head: u32 = self.memory.read(ring.at + Ring::HEAD);
        let cur: u32 = self.memory.read(ring.at + Ring::CUR);
        if self.hostile && (head >= ring.size || cur >= ring.size) {
            return Vec::new();
        }
        assert!(self.hostile || head == cur, "this driver never looks ahead");
        let mut slots = Vec::new();
        let mut at = ring.cur;
        while at != head {
            assert!(
                self.hostile || at != ring.told,
                "head {head} is beyond tail {}",
                ring.told
            );
            let slot: netmap_slot = self.memory.read(ring.slot_at(at));
            let sound = slot.buf_idx >= 2 && (slot.buf_idx as usize) < self.users.len();
            if !self.hostile {
                let known = ring.known[at as usize];
                assert!(sound, "slot {at} names buffer {}", slot.buf_idx);
                let told = known == slot.buf_idx || slot.flags & NS_BUF_CHANGED != 0;
                assert!(told, "slot {at} has another buffer and does not say so");
                let users = std::mem::replace(&mut self.users[slot.buf_idx as usize], false);
                assert!(users, "buffer {} is in two places", slot.buf_idx);
                assert!(
                    is_rx || slot.len > 0,
                    "an interface would send slot {at} as it is"
                );
            }
            ring.known[at as usize] = slot.buf_idx;
            if sound {
                slots.push((at, slot));
            }
            at = ring.next(at);
        }
        ring.cur = head;
        let port = self.ports.get_mut(name).unwrap();
        *(if is_rx { &mut port.rx } else { &mut port.tx }) = ring;
        slots
    }

    /// Tells the user how far its slots go.
    fn tell(&mut self, name: &str, is_rx: bool) {
        let port = self.ports.get_mut(name).unwrap();
        let ring = if is_rx { &mut port.rx } else { &mut port.tx };
        while ring.told != ring.tail {
            let buffer: u32 = self.memory.read(ring.slot_at(ring.told));
            ring.known[ring.told as usize] = buffer;
            if let Some(users) = self.users.get_mut(buffer as usize) {
                *users = true;
            }
            ring.told = ring.next(ring.told);
        }
        self.memory.write(ring.at + Ring::TAIL, ring.tail);
    }

    fn wake(&self, name: &str) {
        let port = &self.ports[name];
        for wake in &port.wakes {
            if port.rx.cur == port.rx.tail {
                let _ = rustix::io::read(&**wake, &mut [0; 8]);
            } else {
                let _ = rustix::io::write(&**wake, &1u64.to_ne_bytes());
            }
        }
    }

    fn sync_tx(&mut self, name: &str) {
        let slots = self.released(name, false);
        if let Some(other) = other_end(name) {
            let mut tail = self.ports[&other].rx.tail;
            for (at, slot) in slots {
                let rx = &self.ports[&other].rx;
                self.memory.write(rx.slot_at(at), slot);
                tail = rx.next(at);
            }
            self.ports.get_mut(&other).unwrap().rx.tail = tail;
            self.wake(&other);
        } else {
            let switch = name.split(':').next().unwrap_or_default();
            let others: Vec<_> = self
                .ports
                .keys()
                .filter(|other| other.split(':').next() == Some(switch) && *other != name)
                .cloned()
                .collect();
            for other in others {
                for (_, slot) in slots.iter().filter(|(_, slot)| slot.len > 0) {
                    self.deliver(&other, *slot);
                }
                self.wake(&other);
            }
            let tx = &mut self.ports.get_mut(name).unwrap().tx;
            tx.tail = (tx.cur + tx.size - 1) % tx.size;
        }
        self.tell(name, false);
    }

    /// Copies a packet into a port's rx ring; drops it if that is full, and tells nobody.
    fn deliver(&mut self, name: &str, slot: netmap_slot) {
        let rx = &self.ports[name].rx;
        let (at, next) = (rx.tail, rx.next(rx.tail));
        let buffer = rx.known[at as usize];
        let lie = buffer < 2 || buffer as usize >= self.users.len();
        if next == rx.cur || (self.hostile && lie) {
            return;
        }
        if usize::from(slot.len) <= BUFFER && buffer != slot.buf_idx {
            self.memory.copy_buffer(slot.buf_idx, buffer);
        }
        let arrived = netmap_slot {
            buf_idx: buffer,
            flags: 0,
            ..slot
        };
        self.memory.write(rx.slot_at(at), arrived);
        self.ports.get_mut(name).unwrap().rx.tail = next;
    }

    fn sync_rx(&mut self, name: &str) {
        let slots = self.released(name, true);
        if let Some(other) = other_end(name) {
            for (at, slot) in slots {
                let tx = &mut self.ports.get_mut(&other).unwrap().tx;
                self.memory.write(tx.slot_at(at), slot);
                tx.tail = at;
            }
        }
        self.tell(name, true);
        self.wake(name);
    }
}

impl Fake {
    fn with_port(&self, sync: impl FnOnce(&mut Kernel, &str)) -> io::Result<()> {
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = lock(&self.kernel);
        match &*registered {
            Some(Registered {
                port: Some((name, _)),
                ..
            }) if !kernel.removed => {
                sync(&mut kernel, name);
                Ok(())
            }
            _ => Err(refused(libc::EIO)),
        }
    }
}

impl Device for Fake {
    fn register(&self, name: &str, request: &mut Register) -> io::Result<()> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if registered.is_some() {
            return Err(refused(libc::EBUSY));
        }
        *registered = Some(lock(&self.kernel).register(name, request, &self.wake)?);
        Ok(())
    }

    fn sync_tx(&self) -> io::Result<()> {
        self.with_port(Kernel::sync_tx)
    }

    fn sync_rx(&self) -> io::Result<()> {
        self.with_port(Kernel::sync_rx)
    }

    fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let registered = self
            .registered
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(registered) = registered {
            lock(&self.kernel).unregister(registered);
        }
    }
}
