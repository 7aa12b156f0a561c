//! What the steward does for interfaces of the kernel's: those that the kernel uses, too, and those whose counts would make a
//! worker wait.
//!
//! Takes  the tables, what the kernel is told of neighbours.
//! Gives  the programs of shared interfaces what is Services'; counts.
//! Never  receives what the programs leave to the kernel, but for copies of ARP and neighbour discovery.

use std::sync::Arc;

use super::{Post, Steward};
use crate::counters::CounterId;
use crate::index::NicPortIndex;
use crate::nic::overhear::Overhear;
use crate::nic::transmit_drops::TransmitDrops;
use crate::shared::SharedPorts;
use crate::tables::Tables;
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::verdict::DropReason;
use crate::worker::Shared;

/// Frames of neighbours that are read at once from one interface.
const OVERHEARD: usize = 256;

impl Steward {
    /// Says to the programs of interfaces that the kernel uses, too, what is Services'; and hears what it is told of neighbours
    /// there.
    pub fn share(&mut self, ports: SharedPorts, heard: Vec<(NicPortIndex, Overhear)>, shared: &Shared) {
        self.shared_ports = Some((ports, heard));
        let tables = Arc::clone(self.builder.tables());
        self.extend_shared(shared, &tables);
    }

    /// Reads these once a second.
    pub fn refresh(&mut self, transmit_drops: Vec<TransmitDrops>) {
        self.transmit_drops.0 = transmit_drops;
    }

    /// What is asked of interfaces once a second.
    pub(super) fn refresh_interfaces(&mut self, now: Tick) {
        let (drops, refreshed) = &mut self.transmit_drops;
        if now.since(*refreshed) < TICKS_PER_SECOND {
            return;
        }
        *refreshed = now;
        drops.iter().for_each(TransmitDrops::refresh);
        if let Some((_, heard)) = &mut self.shared_ports {
            heard.iter_mut().for_each(|(_, socket)| socket.follow());
        }
    }

    /// Before workers take new tables.
    pub(super) fn extend_shared(&mut self, shared: &Shared, tables: &Tables) {
        if let Some((ports, _)) = &mut self.shared_ports {
            ports.extend(self.builder.records(), tables, &shared.network);
            let missing = ports.missing();
            if missing > 0 {
                log::error!(
                    "{missing} frontends or endpoints found no room in the maps of shared interfaces and are left to the kernel: raise \
                     tables.frontends and tables.backends"
                );
            }
        }
    }

    pub(super) fn count_shared(&mut self, now: Tick) {
        let Some((ports, _)) = &mut self.shared_ports else {
            return;
        };
        let lost = ports.renew(now);
        let ([prefixes, used], [most_prefixes, most]) = (ports.used(), ports.limits());
        for (id, value) in [
            (CounterId::SHARED_PREFIXES_USED, prefixes as u64),
            (CounterId::SHARED_PREFIXES_LIMIT, most_prefixes.into()),
            (CounterId::SHARED_PORTS_USED, used as u64),
            (CounterId::SHARED_PORTS_LIMIT, most.into()),
            (CounterId::SHARED_MISSING, ports.missing() as u64),
        ] {
            self.counters.set(id, value);
        }
        self.count(DropReason::NoProcess, usize::try_from(lost).unwrap_or(usize::MAX));
    }

    /// ARP and neighbour discovery that came to the kernel.
    pub(super) fn overhear(&mut self, shared: &Shared, now: Tick) {
        let Some((_, heard)) = &self.shared_ports else {
            return;
        };
        for (port, socket) in heard {
            // Bounded: what comes while we read is read after the channel has had its turn.
            for _ in 0..OVERHEARD {
                let neighbours = &mut self.neighbours;
                let mut post = Post { shared };
                if !socket.read(|frame| neighbours.received(&shared.network, *port, frame, now, &mut post)) {
                    break;
                }
            }
        }
    }
}
