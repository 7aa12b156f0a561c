//! Where a bench's packets come from: made by the thread that measures and laid ready in frames, or made by a thread on
//! another core and handed over by a ring.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use core_affinity::CoreId;
use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::nic::{BURST, Driver};

use super::packets::{self, Tuple};
use super::{Error, ROUND};
use crate::conveyor::{Conveyor, Loader};
use crate::gateway::{CLIENT_SIDE, POD_SIDE};
use crate::treadmill::{Handle, Packets, Treadmill};

/// Bursts that a ring holds: a round of packets, though a turn may give them in two pieces.
const BURSTS: usize = 2 * ROUND / BURST;

/// Both NIC ports, toward clients and toward pods.
pub(super) type Ports = [Box<dyn Driver>; 2];

/// The other side of both.
pub(super) enum Feed {
    /// The thread that measures.
    Here([Handle; 2]),
    /// A thread on another core.
    There(Filler),
}

/// The cores that this process may use. Asked once: a thread that has moved to one sees no other any more.
pub(super) fn cores() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// Packets to be made and put into a ring.
struct Order {
    replies: bool,
    packets: Vec<(Tuple, u8)>,
    size: usize,
    protocol: Protocol,
}

/// The other core's thread. It ends with this.
pub(super) struct Filler {
    loaders: [Loader; 2],
    orders: SyncSender<Order>,
    done: Receiver<bool>,
}

impl Feed {
    /// Prepared frames.
    pub(super) fn here() -> (Ports, Self) {
        let (client, client_handle) = Treadmill::new("client", CLIENT_SIDE);
        let (pods, pods_handle) = Treadmill::new("pods", POD_SIDE);
        (
            [Box::new(client), Box::new(pods)],
            Self::Here([client_handle, pods_handle]),
        )
    }

    /// From the first of `cores`, while this thread moves to the last. Errors: there is but one.
    pub(super) fn there() -> Result<(Ports, Self), Error> {
        let [theirs, .., ours] = *cores() else {
            return Err("packets from another core need two cores".into());
        };
        core_affinity::set_for_current(ours);
        let (client, client_loader) = Conveyor::new("client", CLIENT_SIDE, BURSTS);
        let (pods, pods_loader) = Conveyor::new("pods", POD_SIDE, BURSTS);
        let filler = Filler::start(theirs, [client_loader, pods_loader]);
        Ok(([Box::new(client), Box::new(pods)], Self::There(filler)))
    }

    /// Makes packets, toward clients' port or that of pods. Prepared frames then wait for the port's next `rx_burst`, which
    /// stages them and gives none.
    pub(super) fn load(
        &self,
        replies: bool,
        size: usize,
        protocol: Protocol,
        packets: impl Iterator<Item = (Tuple, u8)>,
    ) -> Result<(), Error> {
        match self {
            Self::Here(handles) => {
                handles[usize::from(replies)].load(|loaded| {
                    for (mark, packet) in packets.enumerate() {
                        write(loaded.add(size), replies, protocol, packet, mark);
                    }
                });
                Ok(())
            }
            Self::There(filler) => filler.order(Order {
                replies,
                packets: packets.collect(),
                size,
                protocol,
            }),
        }
    }

    /// Keep what leaves by the port toward clients (of replies) or toward pods, until `sent`.
    pub(super) fn keep_sent(&self, replies: bool, keep: bool) {
        if let Self::Here(handles) = self {
            handles[usize::from(!replies)].keep_sent(keep);
        }
    }

    /// What left since it was kept.
    pub(super) fn sent(&self, replies: bool) -> Packets {
        match self {
            Self::Here(handles) => handles[usize::from(!replies)].sent(),
            Self::There(filler) => filler.loaders[usize::from(!replies)].take(),
        }
    }
}

fn write(frame: &mut [u8], replies: bool, protocol: Protocol, (tuple, flags): (Tuple, u8), mark: usize) {
    let station: Mac = if replies { POD_SIDE } else { CLIENT_SIDE };
    packets::write(frame, (station, protocol), tuple, flags, mark as u32);
}

impl Filler {
    fn start(core: CoreId, loaders: [Loader; 2]) -> Self {
        let (orders, ordered) = sync_channel::<Order>(1);
        let (finished, done) = sync_channel(1);
        let rings = loaders.clone();
        thread::spawn(move || {
            core_affinity::set_for_current(core);
            // Ends when nobody can order or wait any more.
            while let Ok(order) = ordered.recv() {
                if finished.send(fill(&rings, &order)).is_err() {
                    break;
                }
            }
        });
        Self {
            loaders,
            orders,
            done,
        }
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        self.orders.send(order)?;
        if self.done.recv()? {
            Ok(())
        } else {
            Err("the ring has no room for a round of packets".into())
        }
    }
}

/// Whether there was room for all.
fn fill(rings: &[Loader; 2], order: &Order) -> bool {
    // What nobody took is wanted by nobody.
    rings.iter().for_each(Loader::forget);
    let mut mark = 0;
    order.packets.chunks(BURST).all(|burst| {
        rings[usize::from(order.replies)].load(|batch| {
            for &packet in burst {
                write(batch.add(order.size), order.replies, order.protocol, packet, mark);
                mark += 1;
            }
        })
    })
}
