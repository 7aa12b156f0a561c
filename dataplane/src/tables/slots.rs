//! Which slot a backend has. A backend keeps its slot and generation for as long as it is there; when it leaves, the
//! slot's generation goes up in the same tables, so that every flow to it finds it gone with one read.

use super::Tables;
use super::backend::{Backend, SlotState};
use super::side::Keyed;
use crate::addr::{Port, V4, V6};
use crate::channel::record::BackendRecord;
use crate::index::BackendIndex;

/// Slots that are free, dense from 0. How many there may be is for `check` to say.
#[derive(Default)]
pub(super) struct Slots {
    /// Used before; the last one freed is the next one taken, so that the slots in use stay together.
    free: Vec<BackendIndex>,
    /// Slots from here on were never used.
    first_unused: u32,
}

impl Slots {
    /// A slot for a backend that has none.
    pub(super) fn take(&mut self) -> BackendIndex {
        self.free.pop().unwrap_or_else(|| {
            let slot = BackendIndex(self.first_unused);
            self.first_unused += 1;
            slot
        })
    }

    /// The backend of this slot is no more.
    pub(super) fn vacate(&mut self, next: &mut Tables, slot: BackendIndex) {
        let generation = generation(next, slot) + 1;
        empty::<V4>(next, slot);
        empty::<V6>(next, slot);
        next.states.set(slot.get(), SlotState::new(generation, false));
        next.losses += 1;
        // A slot whose generations are used up is never taken again, so no flow can mistake its occupant.
        if generation < SlotState::LAST_GENERATION {
            self.free.push(slot);
        }
    }
}

/// Only the family of its occupant has anything in a slot.
fn empty<A: Keyed>(next: &mut Tables, slot: BackendIndex) {
    if next.backend::<A>(slot).is_some() {
        A::side_mut(next).backends.set(slot.get(), None);
    }
}

/// Writes a backend into its slot, be it new there or changed.
pub(super) fn occupy<A: Keyed>(next: &mut Tables, slot: BackendIndex, address: A, record: &BackendRecord) {
    let generation = generation(next, slot);
    let keeps_flows = record.keeps_flows();
    next.states
        .set(slot.get(), SlotState::new(generation, keeps_flows));
    next.losses += u32::from(!keeps_flows);
    let backend = Backend {
        address,
        port: Port::new(record.port),
        local: record.local,
        service_port: record.service_port,
        generation,
    };
    A::side_mut(next).backends.set(slot.get(), Some(backend));
}

fn generation(tables: &Tables, slot: BackendIndex) -> u32 {
    tables
        .states
        .get(slot.get())
        .copied()
        .unwrap_or_default()
        .generation()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_used_up_its_generations_is_never_taken_again() {
        let (mut slots, mut tables) = (Slots::default(), Tables::empty());
        let slot = slots.take();
        tables
            .states
            .set(slot.get(), SlotState::new(SlotState::LAST_GENERATION - 2, true));
        slots.vacate(&mut tables, slot);
        assert_eq!(slots.take(), slot);
        slots.vacate(&mut tables, slot);
        assert_ne!(slots.take(), slot);
    }
}
