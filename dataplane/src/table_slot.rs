//! How a worker comes by newer tables without a lock, and how the old ones come back to be freed by the steward.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::tables::Tables;

/// How the steward hands tables to one worker, and gets the old ones back: a worker never frees any.
#[derive(Debug)]
pub struct TableSlot {
    newest: ArrayQueue<Arc<Tables>>,
    retired: ArrayQueue<Arc<Tables>>,
    taken: AtomicU64,
}

impl TableSlot {
    /// Empty.
    pub fn new() -> Self {
        // One retired table for every one published, plus the first: `publish` collects before it offers.
        Self {
            newest: ArrayQueue::new(1),
            retired: ArrayQueue::new(4),
            taken: AtomicU64::new(0),
        }
    }

    /// Steward: offers tables; what the worker has retired, and an offer it never took, are freed here.
    pub fn publish(&self, tables: Arc<Tables>) {
        drop(self.newest.force_push(tables));
        while self.retired.pop().is_some() {}
    }

    /// Generation the worker has taken.
    pub fn taken(&self) -> u64 {
        // Acquire pairs with the Release in `take`: whoever sees the generation sees the worker's use of it begin.
        self.taken.load(Ordering::Acquire)
    }

    /// Worker: swaps `current` for the newest tables, if there are newer ones.
    pub(crate) fn take(&self, current: &mut Arc<Tables>) -> bool {
        if self.newest.is_empty() {
            return false;
        }
        let Some(tables) = self.newest.pop() else {
            return false;
        };
        let old = std::mem::replace(current, tables);
        // Never full (see `new`); if it were, freeing here would be slow but not wrong.
        drop(self.retired.push(old));
        self.taken.store(current.generation.0, Ordering::Release);
        true
    }
}

impl Default for TableSlot {
    fn default() -> Self {
        Self::new()
    }
}
