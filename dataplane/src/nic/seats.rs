//! The order in which the sockets of a fanout group are opened: the kernel numbers them by it, and whose is whose is known by
//! that number. At start the workers' sockets are opened in turn; when an interface is back each worker opens its own.
//!
//! Takes  a group's interface and the worker whose socket is to be opened.
//! Gives  whether those of all workers before it are open, and a seat that is free again when it is dropped with the socket.
//! Never  waits: who comes too early comes again.

use std::sync::{Mutex, PoisonError};

use super::interface::Interface;

/// A group: network namespace, interface, the group's number.
type Group = (u64, u32, u16);

/// Seats that are taken, a bit for each worker, of which there are 64 at most.
static TAKEN: Mutex<Vec<(Group, u64)>> = Mutex::new(Vec::new());

/// A worker's place in a group.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Group,
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
        let bit = bit(worker);
        let mut all = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|(its, _)| *its == group) {
            Some((_, taken)) => *taken |= bit,
            None => all.push((group, bit)),
        }
        Self { group, bit }
    }
}

fn group(interface: &Interface, number: u16) -> Group {
    (interface.namespace(), interface.index(), number)
}

fn is_next(group: Group, worker: u32) -> bool {
    let before = bit(worker).wrapping_sub(1);
    let all = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = all
        .iter()
        .find(|(its, _)| *its == group)
        .map_or(0, |(_, taken)| *taken);
    taken & before == before
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
        let mut all = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, taken) in all.iter_mut().filter(|(group, _)| *group == self.group) {
            *taken &= !self.bit;
        }
        all.retain(|(_, taken)| *taken != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_seat_once_all_before_it_have_and_an_interface_made_anew_has_none_taken() {
        let (old, new) = ((1, 7, 9), (1, 8, 9));
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
