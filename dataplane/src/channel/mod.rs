//! The channel between the control process and the dataplane: what each should know of the other, and no more.
//!
//! ```text
//! client (control)                                             server (dataplane's steward)
//!    │  encode     message, row, codec     decode, assemble       │   intake, outbox
//!    │  push       ring over cursor        pop, one copy          │   layout: words of the segment
//!    └──────────── segment (memfd) ───────────────────────────────┘
//!    └──────────── socket: hand-over, doorbell, liveness ─────────┘   endpoint, peer
//! ```
//!
//! **Life.** The dataplane makes the segment at start (`layout`) and listens on a Unix socket. To a process that
//! connects, is root or its own user, and is the only one, it hands the segment over; control checks magic, version and
//! layout hash, says `Hello` and `DumpRequest`, and reads what the dataplane has: `DumpRecord`s and a `DumpEnd`. Then
//! come transactions, one at a time: `Begin`, `Delete`s, `Put`s, `Commit`, answered by one `Ack` or `Nack`. After a
//! `Nack` what follows of that transaction is passed over in silence. Whichever side dies, the kernel closes its socket
//! after its last write to the segment; the other reads what was published whole, and forgets the rest.
//!
//! **Shared words.** Each has one writer. All are 64-bit and accessed atomically.
//!
//! ```text
//! header (5 words)          the dataplane, before it hands the segment over; read once, by control
//! ring to dataplane written control                    ring to control written   the dataplane
//! ring to dataplane read    the dataplane              ring to control read      control
//! slots                     the ring's writing side, while a slot is its own: not yet written, or read
//! counter pages             the page's worker; read by anyone, at any time
//! ```
//!
//! The dataplane also sets the four ring words to 0 before each hand-over, while nobody else uses them.
//!
//! **Orderings.** One ring needs two pairs, named by the side that releases (0) and the side that acquires (1):
//!
//! * *A: a message is whole before it is seen.* The writer fills slots, then stores `written` (A0, release). The reader
//!   loads `written` (A1, acquire), then copies those slots. So every slot below a count that the reader saw holds
//!   what was put there.
//! * *B: a slot is read before it is filled again.* The reader copies slots out, then stores `read` (B0, release). The
//!   writer loads `read` (B1, acquire), then fills those slots again. So no copy sees a later message.
//!
//! Nothing else is ordered, nor needs to be: the slots' words are relaxed between the pairs; each side keeps its own
//! count and never loads its own word; the header and the zeroed ring words are ordered by the hand-over itself, a
//! sendmsg(2) that a recvmsg(2) receives; counters stand each for itself. Sleep and wake go through the kernel: a bell
//! is rung after A0 or B0, and heard before A1 or B1 (see `socket`).
//!
//! **A hostile peer** can write any word at any time, since it has the segment mapped. Therefore: each slot is copied
//! once and only the copy is looked at; an index is believed only if it claims no more than the ring can hold and no
//! less than before; sizes come from the header once, before anything else is read; every byte of a message is checked
//! by `codec`; what a turn of the steward does is bounded. It can make the channel useless, which it could by hanging
//! up as well, and falsify counters, which nobody decides by.

// The atomics that `cursor` finds here; the model checker compiles the same file over its own.
use core::sync::atomic as sync;

mod cursor;
#[cfg(all(test, loom))]
mod cursor_loom;
pub mod digest;
pub mod codec;
pub mod record;
mod row;
pub mod message;
mod fingerprint;
mod intake;
pub(crate) mod layout;
mod peer;
mod socket;
pub(crate) mod endpoint;
mod ring;
mod outbox;
pub mod server;
pub mod client;

pub use cursor::CorruptIndex;
pub use endpoint::BindError;
pub use layout::{LayoutError, RING_SLOTS_MAX, RING_SLOTS_MIN, VERSION, WORKERS_MAX};
