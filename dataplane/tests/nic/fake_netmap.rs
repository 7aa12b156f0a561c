//! netmap's kernel module, played by a test: a memory of descriptions, rings and buffers in a memfd, ports of pipes and of
//! VALE switches, both sides of the ring protocol as sys/dev/netmap has it.
//!
//! It trusts its user less than the module does: a buffer that is put into a slot while the kernel has it elsewhere, a number
//! changed without NS_BUF_CHANGED, a `head` outside of what the user was given, or a buffer freed twice is a panic, so that
//! every test on it is one of these rules, too. A hostile one (`scribble`) breaks every rule itself instead.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netmap_sys::netmap::{NR_EXCLUSIVE, netmap_if, netmap_slot};
use rustix::event::{EventfdFlags, eventfd};
use sluice_dataplane::nic::netmap::abi::{Device, Devices, NR_REG_NULL, Register};

#[path = "fake_netmap/memory.rs"]
mod memory;
#[path = "fake_netmap/rings.rs"]
mod rings;

use memory::{BUFFER, BUFFERS_AT, IF_SIZE, IFS, Memory, RING_SIZE, RINGS, RINGS_AT};
use rings::{Ring, other_end};

/// Number of the one memory region, as of netmap's global one.
pub(crate) const REGION: u16 = 1;
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
