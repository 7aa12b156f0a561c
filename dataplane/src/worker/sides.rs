//! What a worker remembers of packets, a side for each family: flows, source ports, datagrams in pieces.
//!
//! Takes  its capacities; fragments that arrive; the time.
//! Gives  what `Lookup` works on; fragments their transport header; what was remembered for too long.
//! Never  decides on a packet that is whole.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::addr::{Address, V4, V6};
use crate::conntrack::persist::{Adopted, BootId, Shard};
use crate::conntrack::ports::{Destination, PortPool, PortPoolConfig};
use crate::conntrack::{Direction, FlowConfig, FlowFlags, Flows};
use crate::fragments::{FragmentConfig, Fragments, Passage, Transport};
use crate::index::{NicPortIndex, WorkerIndex};
use crate::lookup::{Family, Tracked};
use crate::network::Network;
use crate::next_hop::Recent;
use crate::parse::{Fragment, Packet};
use crate::reject::Answer;
use crate::steering::Steering;
use crate::tables::Picker;
use crate::tick::Tick;
use crate::verdict::Verdict;

/// Ticks in which all flows are looked at for expiry once: 2 s, the shortest timeout anybody would notice. Looking more
/// often costs a cache line a flow and finds nothing.
const SWEEP_TICKS: usize = 16;

/// Flows looked at in a tick at least: a small table is swept whole.
const SWEEP_MIN: usize = 2_048;

/// What a worker remembers of one family's packets.
pub struct Side<A: Address> {
    /// Its flows and source ports.
    pub tracked: Tracked<A>,
    /// Its datagrams in pieces.
    pub fragments: Fragments<A>,
    /// The tick whose share of the sweep is under way, and how many flows of it are left.
    sweep: (Tick, usize),
}

/// What a worker remembers of packets, a side for each family.
pub struct Sides {
    /// IPv4's.
    pub v4: Side<V4>,
    /// IPv6's.
    pub v6: Side<V6>,
}

/// What ended in a sweep.
pub(super) struct Expired {
    pub(super) flows: u64,
    pub(super) fragments: usize,
}

/// What a side has room for.
#[derive(Clone, Debug)]
pub struct SideConfig {
    /// Flows.
    pub flows: FlowConfig,
    /// Source ports.
    pub snat_ports: PortPoolConfig,
    /// Fragments.
    pub fragments: FragmentConfig,
}

/// Where a worker's flows outlive its process.
#[derive(Clone, Copy, Debug)]
pub struct FlowFiles<'a> {
    /// A folder on a tmpfs: a file is mapped memory.
    pub folder: &'a Path,
    /// Whose.
    pub worker: WorkerIndex,
    /// How many workers there are.
    pub workers: u8,
    /// This boot.
    pub boot: BootId,
}

impl Sides {
    /// With nothing remembered yet, both families alike. Errors: a capacity out of range; ENOMEM.
    pub fn new(config: &SideConfig) -> io::Result<Self> {
        Ok(Self {
            v4: Side::new(config)?,
            v6: Side::new(config)?,
        })
    }

    /// With the flows that a process before us left in the files of `folder` (CT-12), and their source ports. What was
    /// adopted, of both families. Errors: as `new`; WouldBlock while another process has the files; what the file system
    /// says.
    pub fn adopt(
        config: &SideConfig,
        files: &FlowFiles<'_>,
        network: &Network,
        now: Tick,
    ) -> io::Result<(Self, [Adopted; 2])> {
        let (v4, adopted_v4) = Side::adopt(config, files, "ipv4", network, now)?;
        let (v6, adopted_v6) = Side::adopt(config, files, "ipv6", network, now)?;
        Ok((Self { v4, v6 }, [adopted_v4, adopted_v6]))
    }

    /// Addresses that clients of the flows speak to and that are not our own: of frontends that there were.
    pub fn addressed<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = IpAddr> + 'a {
        let v4 = self.v4.addressed(network).map(IpAddr::from);
        v4.chain(self.v6.addressed(network).map(IpAddr::from))
    }

    /// Bytes of memory set aside; what is never used costs nothing.
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

impl<A: Family> Side<A> {
    fn new(config: &SideConfig) -> io::Result<Self> {
        Ok(Self {
            tracked: Tracked {
                flows: Flows::new(config.flows)?,
                recent: Recent::default(),
                snat_ports: PortPool::new(config.snat_ports.clone())?,
            },
            fragments: Fragments::new(config.fragments)?,
            sweep: (Tick(0), 0),
        })
    }

    fn adopt(
        config: &SideConfig,
        files: &FlowFiles<'_>,
        family: &str,
        network: &Network,
        now: Tick,
    ) -> io::Result<(Self, Adopted)> {
        let path = files.folder.join(format!("worker-{}-{family}", files.worker.0));
        let shard = Shard {
            path: &path,
            worker: files.worker,
            workers: files.workers,
            boot: files.boot,
        };
        let mut side = Self::new(&SideConfig {
            flows: FlowConfig {
                capacity: 1,
                ..config.flows
            },
            ..config.clone()
        })?;
        let (flows, mut adopted) = Flows::open_file(&shard, config.flows, now)?;
        side.tracked.flows = flows;
        let Tracked {
            flows, snat_ports, ..
        } = &mut side.tracked;
        let mut homeless = Vec::new();
        for (index, flow) in flows
            .iter()
            .filter(|(_, flow)| flow.flags().contains(FlowFlags::SNAT))
        {
            let reply = flow.key(Direction::Reply);
            // An address or a port that is not ours any more, or a port that another flow has: its replies would go astray.
            if !network.is_own(reply.dst)
                || snat_ports
                    .reserve(Destination::of_reply(&reply), reply.dst_port)
                    .is_err()
            {
                homeless.push(index);
            }
        }
        for index in homeless {
            flows.close(index);
            adopted.kept -= 1;
            adopted.discarded += 1;
        }
        Ok((side, adopted))
    }

    fn addressed<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = A> + 'a {
        let flows = self.tracked.flows.iter();
        let addressed = flows
            .filter(|(_, flow)| !flow.flags().contains(FlowFlags::REMNANT))
            .map(|(_, flow)| flow.key(Direction::Original).dst);
        addressed.filter(|&address| !network.is_own(address))
    }

    fn bytes(&self) -> usize {
        self.tracked.flows.bytes() + self.tracked.snat_ports.bytes() + self.fragments.bytes()
    }

    pub(super) fn expire(&mut self, picker: &mut Picker, tick: Tick, most: usize) -> Expired {
        let Tracked {
            flows, snat_ports, ..
        } = &mut self.tracked;
        let mut expired = Expired {
            flows: 0,
            fragments: 0,
        };
        if self.sweep.0 != tick {
            self.sweep = (tick, (flows.usage().high_water / SWEEP_TICKS).max(SWEEP_MIN));
            expired.fragments = self.fragments.expire(tick);
        }
        let budget = self.sweep.1.min(most);
        self.sweep.1 -= budget;
        flows.expire(tick, budget, &mut |flow| {
            Tracked::ended(flow, snat_ports, picker);
            expired.flows += u64::from(!flow.flags().contains(FlowFlags::REMNANT));
        });
        snat_ports.expire(tick, budget);
        expired
    }
}

/// A fragment that arrives.
pub(super) struct Arrival<'a> {
    pub(super) port: NicPortIndex,
    pub(super) bytes: &'a [u8],
    pub(super) gathered: Option<Transport>,
    pub(super) tick: Tick,
}

impl Arrival<'_> {
    /// Gives `packet`, if it is a fragment, its transport header; a verdict if it goes no further here.
    pub(super) fn pass<A: Served>(
        &self,
        sides: &mut Sides,
        steering: &Steering,
        worker: WorkerIndex,
        packet: &mut Packet<A>,
    ) -> Option<Verdict> {
        if packet.fragment == Fragment::Whole {
            return None;
        }
        if let Some(transport) = self.gathered {
            transport.give(packet);
            return None;
        }
        let owner = steering.fragment_owner(&packet.key);
        if owner != worker {
            return Some(Verdict::Handover(owner));
        }
        match A::own(sides)
            .fragments
            .pass(packet, self.bytes, self.port, self.tick)
        {
            Passage::Known(transport) => transport.give(packet),
            Passage::Held => return Some(Verdict::Hold),
            Passage::Drop(reason) => return Some(Verdict::Drop(reason)),
        }
        None
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;

/// A family with a side.
pub(super) trait Served: Family + Answer {
    /// Routers may fragment its packets (RFC 791 §2.7; not so RFC 8200 §4.5).
    const FRAGMENTS: bool;

    fn own(sides: &mut Sides) -> &mut Side<Self>;
}

impl Served for V4 {
    const FRAGMENTS: bool = true;

    fn own(sides: &mut Sides) -> &mut Side<Self> {
        &mut sides.v4
    }
}

impl Served for V6 {
    const FRAGMENTS: bool = false;

    fn own(sides: &mut Sides) -> &mut Side<Self> {
        &mut sides.v6
    }
}
