//! Where objects come from. A source is a stream of batches of events; a batch is applied whole, so that one save of
//! one file is one update. Nothing past this file may know which source an object came from.

use crate::manifest::{Key, Object};
use crate::problem::Problem;

/// A folder of manifests.
pub mod files;

/// What a source says.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Everything there is follows, up to `ResetEnd`; what is not said again is gone.
    ResetBegin,
    /// This object is now thus.
    Apply(Box<Object>),
    /// This object is gone.
    Delete(Key),
    /// All has been said at least once: from here on the model is whole (SVC-6).
    ResetEnd,
    /// All that is wrong in the source now; replaces what was said before.
    Problems(Vec<Problem>),
}

/// Events that belong together.
pub type Batch = Vec<Event>;
