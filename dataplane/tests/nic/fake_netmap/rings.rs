//! The ring protocol as the module keeps it: what a user released, what it is told of, where packets go.

use netmap_sys::netmap::{NS_BUF_CHANGED, netmap_ring, netmap_slot};

use super::Kernel;
use super::memory::BUFFER;

/// `netmap_kring`.
#[derive(Clone)]
pub(super) struct Ring {
    pub(super) at: usize,
    pub(super) size: u32,
    /// First slot of the kernel's that the user released last (nr_hwcur).
    pub(super) cur: u32,
    /// First slot that is not the user's (nr_hwtail); in a pipe, as the other end's sync has it (pipe_tail).
    pub(super) tail: u32,
    /// What the user was told.
    pub(super) told: u32,
    /// The buffer of each slot as the kernel knows it.
    pub(super) known: Vec<u32>,
}

impl Ring {
    pub(super) fn next(&self, slot: u32) -> u32 {
        (slot + 1) % self.size
    }

    pub(super) fn slot_at(&self, slot: u32) -> usize {
        self.at + size_of::<netmap_ring>() + slot as usize * size_of::<netmap_slot>()
    }

    pub(super) const HEAD: usize = std::mem::offset_of!(netmap_ring, head);
    pub(super) const CUR: usize = std::mem::offset_of!(netmap_ring, cur);
    pub(super) const TAIL: usize = std::mem::offset_of!(netmap_ring, tail);
}

/// The other end of a pipe.
pub(super) fn other_end(name: &str) -> Option<String> {
    let swapped = |from: char, to: &str| name.contains(from).then(|| name.replace(from, to));
    swapped('{', "}").or_else(|| swapped('}', "{"))
}

impl Kernel {
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

    pub(super) fn sync_tx(&mut self, name: &str) {
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

    pub(super) fn sync_rx(&mut self, name: &str) {
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
