//! The generator's two NIC ports, toward clients' and toward pods' side of a gateway: any driver of the dataplane. Both
//! share frame memory, so an answer is the packet itself, turned round.

use clap::ValueEnum;
use serde::Deserialize;
use sluice_dataplane::nic::memif::{MemifSpec, Role};
use sluice_dataplane::nic::open::{self, Attach, DEFAULT_RING_SIZE, DriverSpec, PortSpec, ZeroCopy};
use sluice_dataplane::nic::{self, Burst, FrameMemory, OpenError};

/// A NIC port, as a plan says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Which driver opens it. `memory`: both ports are rings to a gateway in this process.
    pub driver: Driver,
    /// Which interface.
    #[serde(default)]
    pub interface: String,
    /// Its receive queue (af_xdp).
    #[serde(default)]
    pub queue: u32,
    /// Slots per ring.
    #[serde(default = "ring_size")]
    pub ring_size: u32,
    /// The gateway's MAC address on this link; of use toward clients only, since pods answer to whence they were asked.
    #[serde(default)]
    pub gateway: Option<String>,
}

/// Drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Driver {
    /// AF_XDP sockets.
    AfXdp,
    /// AF_PACKET rings.
    AfPacket,
    /// A tap that is made.
    Tap,
    /// Shared memory with another process, whose socket is the interface: the generator is its client.
    Memif,
    /// A netmap port, by its name in netmap.
    Netmap,
    /// Rings in this process.
    Memory,
}

impl Driver {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af_xdp",
            Self::AfPacket => "af_packet",
            Self::Tap => "tap",
            Self::Memif => "memif",
            Self::Netmap => "netmap",
            Self::Memory => "memory",
        }
    }
}

impl Port {
    /// An interface with everything else as usual.
    pub fn on(driver: Driver, interface: &str) -> Self {
        Self {
            driver,
            interface: interface.to_owned(),
            queue: 0,
            ring_size: DEFAULT_RING_SIZE,
            gateway: None,
        }
    }

    /// As the dataplane's drivers want it; `None` for `memory`.
    pub fn spec(&self, name: &str) -> Option<PortSpec> {
        let driver = match self.driver {
            Driver::AfXdp => DriverSpec::AfXdp {
                attach: Attach::Auto,
                zero_copy: ZeroCopy::Auto,
                busy_poll: None,
                shared: None,
            },
            Driver::AfPacket => DriverSpec::AfPacket { fanout: None },
            Driver::Tap => DriverSpec::Tap {
                mtu: 1_500,
                queues: false,
            },
            Driver::Memif => DriverSpec::Memif(MemifSpec::new(&self.interface, Role::Client)),
            Driver::Netmap => DriverSpec::Netmap,
            Driver::Memory => return None,
        };
        Some(PortSpec {
            queue: self.queue,
            ring_size: self.ring_size,
            // The judge must see what a gateway wrote, not what a driver made good.
            complete_checksums: false,
            ..PortSpec::new(name, &self.interface, driver)
        })
    }
}

const fn ring_size() -> u32 {
    DEFAULT_RING_SIZE
}

/// A driver and what waits for room in its ring.
pub struct Side {
    /// The driver.
    pub driver: Box<dyn nic::Driver>,
    pub(super) out: Burst,
}

impl Side {
    fn new(driver: Box<dyn nic::Driver>) -> Self {
        Self {
            driver,
            out: Burst::new_const(),
        }
    }

    /// Gives the driver what waits; how many frames it took.
    #[inline]
    pub(super) fn flush(&mut self, memory: &mut FrameMemory) -> u64 {
        if self.out.is_empty() {
            return 0;
        }
        let before = self.out.len();
        self.driver.tx_burst(memory, &mut self.out);
        (before - self.out.len()) as u64
    }
}

/// Both, with their frames.
pub struct Ports {
    /// Frame memory of both.
    pub memory: FrameMemory,
    /// Where clients are.
    pub clients: Side,
    /// Where pods are.
    pub pods: Side,
}

impl Ports {
    /// Two drivers opened with `memory`.
    pub fn new(memory: FrameMemory, clients: Box<dyn nic::Driver>, pods: Box<dyn nic::Driver>) -> Self {
        Self {
            memory,
            clients: Side::new(clients),
            pods: Side::new(pods),
        }
    }

    /// Opens both with `frames` frames of 2,048 bytes. Errors: as the drivers say; no memory.
    pub fn open(clients: &PortSpec, pods: &PortSpec, frames: usize) -> Result<Self, OpenError> {
        let mut memory = FrameMemory::new(frames, 2_048).map_err(|error| OpenError {
            port: clients.port.clone(),
            interface: clients.interface.clone(),
            what: format!("no memory for {frames} frames"),
            advice: "lower --frames".to_owned(),
            source: Some(error),
        })?;
        let mut umem = None;
        let clients = open::open(clients, &mut memory, &mut umem)?;
        let pods = open::open(pods, &mut memory, &mut umem)?;
        Ok(Self::new(memory, clients, pods))
    }

    /// Frees what still waits to be sent.
    pub fn clear(&mut self) {
        for side in [&mut self.clients, &mut self.pods] {
            side.out.drain(..).for_each(|frame| self.memory.free(frame));
        }
    }
}
