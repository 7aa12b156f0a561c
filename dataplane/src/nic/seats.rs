//! The order in which the sockets of a fanout group are opened: the kernel numbers them by it, and whose is whose is known by
//! that number. At start the workers' sockets are opened in turn; when an interface is back each worker opens its own.
//!
//! Takes  a group's interface and the worker whose socket is to be opened.
//! Gives  whether those of all workers before it are open, and a seat that is free again when it is dropped with the socket.
//! Never  waits: who comes too early comes again.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use super::interface::{Interface, InterfaceId};
use super::registry::{Registry, Share};

/// A group: its interface, and its number there.
type Group = (InterfaceId, u16);

/// Seats that are taken in each group, a bit for each worker, of which there are 64 at most.
static TAKEN: Registry<Group, AtomicU64> = Registry::new();

/// A worker's place in a group.
#[derive(Debug)]
pub(crate) struct Seat {
    taken: Share<Group, AtomicU64>,
    bit: u64,
}

impl Seat {
    /// Whether those of all workers before `worker` are taken: it may open its socket.
    pub(crate) fn is_next(interface: &Interface, number: u16, worker: u32) -> bool {
        is_next(group(interface, number), worker)
    }

    /// Takes it, once the socket is in the group.
    pub(crate) fn take(interface: &Interface, number: u16, worker: u32) -> Self {
        Self::of(group(interface, number), worker)
    }

    fn of(group: Group, worker: u32) -> Self {
        let (taken, bit) = (taken(group), bit(worker));
        taken.fetch_or(bit, Ordering::AcqRel);
        Self { taken, bit }
    }
}

fn group(interface: &Interface, number: u16) -> Group {
    (interface.id(), number)
}

fn taken(group: Group) -> Share<Group, AtomicU64> {
    let Ok(taken) = TAKEN.hold(group, |_| Ok::<_, Infallible>(true), || Ok(AtomicU64::new(0)));
    taken
}

fn is_next(group: Group, worker: u32) -> bool {
    let before = bit(worker).wrapping_sub(1);
    taken(group).load(Ordering::Acquire) & before == before
}

/// Beyond the last worker there is none: nobody's, and after all.
const fn bit(worker: u32) -> u64 {
    match 1u64.checked_shl(worker) {
        Some(bit) => bit,
        None => 0,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.fetch_and(!self.bit, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_seat_once_all_before_it_have_and_an_interface_made_anew_has_none_taken() {
        let (old, new) = (((1, 7), 9), ((1, 8), 9));
        assert!(is_next(old, 0) && !is_next(old, 1));
        let first = Seat::of(old, 0);
        assert!(is_next(old, 1) && !is_next(old, 2));
        let second = Seat::of(old, 1);
        assert!(is_next(old, 2));
        assert!(!is_next(new, 1), "another interface");
        drop((first, second));
        assert!(!is_next(old, 1), "free again");
    }
}
