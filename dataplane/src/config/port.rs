//! A NIC port as the config describes it, and the options of each driver.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::addr::Mac;
use crate::nic::memif;
use crate::nic::open::{Attach, BusyPoll, Faces, Offloads, ZeroCopy};

/// A NIC port.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicPort {
    /// Its name in logs and counters.
    pub name: String,
    /// Which driver opens it.
    pub driver: DriverKind,
    /// The interface it opens; the name of the tap it makes; the name a memif peer is told; the name of a netmap port; of
    /// pcap files only a name.
    pub interface: String,
    /// memif: whom it meets, and where.
    #[serde(default)]
    pub memif: Option<Memif>,
    /// pcap: which files.
    #[serde(default)]
    pub pcap: Option<Pcap>,
    /// Its VLAN (802.1Q): several NIC ports may have one interface, each its own VLAN, and one none.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Our addresses on it. It has an IPv6 link-local one even if none is given, made of its MAC address.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// What it is to the gateway.
    #[serde(default)]
    pub role: Role,
    /// af_xdp: whether the kernel keeps using the interface.
    #[serde(default)]
    pub mode: Mode,
    /// af_xdp: how the program is attached.
    #[serde(default)]
    pub attach: Attach,
    /// af_xdp: whether frame memory is shared with the NIC.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// af_xdp: whether the worker's calls poll the NIC; none: its interrupts do the work.
    #[serde(default)]
    pub busy_poll: Option<BusyPoll>,
    /// Descriptors per ring; a power of two. 1,024 is what drivers commonly default to and holds a millisecond at
    /// 1 Mpps, longer than a worker is ever away.
    #[serde(default = "ring_size")]
    pub ring_size: u32,
    /// Complete the partial TCP and UDP checksums that virtual peers (veth) leave to hardware.
    #[serde(default = "yes")]
    pub complete_checksums: bool,
    /// What becomes of what its interface does to packets by itself and the driver cannot live with: merging them (GRO, LRO),
    /// taking out VLAN tags, leaving the host's own packets unfinished.
    #[serde(default)]
    pub offloads: Offloads,
    /// af_xdp, af_packet, netmap: who is beyond it. With several workers its packets are shared out to the owners of their
    /// flows, who else are given them by one another: by the NIC, whose RSS is set for that, or the packet sockets.
    #[serde(default)]
    pub faces: Faces,
}

/// Drivers this binary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// AF_XDP sockets.
    AfXdp,
    /// AF_PACKET rings.
    AfPacket,
    /// Shared memory with another process.
    Memif,
    /// Rings of netmap; the interface is a name in netmap's grammar: `eth0`, `netmap:eth0^`, `vale0:p`, `netmap:x{1`.
    Netmap,
    /// Files of packets. It has one queue.
    Pcap,
    /// A tap that it makes: the host port, or a link whose other end is moved, bridged or given to a virtual machine.
    Tap,
}

/// A pcap port's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pcap {
    /// Packets to receive: a pcap or pcapng file, which is followed while it grows, or a folder of such, watched for more.
    #[serde(default)]
    pub read: Option<PathBuf>,
    /// Where packets that are sent go; made anew at start. pcapng if its name ends so.
    #[serde(default)]
    pub write: Option<PathBuf>,
    /// How fast.
    #[serde(default)]
    pub pace: Pace,
    /// The station the port is: that of the gateway whose traffic was recorded.
    #[serde(default)]
    pub mac: Option<Station>,
    /// The station that all neighbours are behind: files answer neither ARP nor neighbour discovery.
    #[serde(default)]
    pub peer_mac: Option<Station>,
}

/// How fast a recording is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// As fast as the worker goes. What is sent has no time, only an order.
    #[default]
    Full,
    /// As it was recorded. What is sent has the time it was sent at.
    Recorded,
}

/// A memif port's options. It has a queue pair for each worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memif {
    /// The socket's path; or `@` and a name in the abstract namespace, which whoever shares the network namespace can use.
    pub socket: String,
    /// Which end of it we are.
    pub role: MemifRole,
    /// Number of the interface at that socket: that of the peer's.
    #[serde(default)]
    pub id: u32,
    /// What a client must know, at most 23 bytes; none: whoever may use the socket is let in.
    #[serde(default)]
    pub secret: String,
    /// Client: bytes of a buffer, a multiple of 64 from 256 to 65,536; longer packets take several. 2,048, the default of
    /// VPP and DPDK, holds a packet of Ethernet's MTU.
    #[serde(default = "buffer_size")]
    pub buffer_size: u32,
    /// Client: frames themselves are lent to the server, which receives and sends where they are, instead of copies in
    /// buffers. It can then write to every frame of every port at any time: only for a peer as trusted as this process.
    #[serde(default)]
    pub zero_copy: bool,
    /// Whether a sleeping worker is woken.
    #[serde(default)]
    pub mode: MemifMode,
    /// Largest IP packet, in bytes: the protocol has no word for it.
    #[serde(default = "ethernet_mtu")]
    pub mtu: usize,
    /// Our own address there; none: one made of the interface's name and our role, the same after every start.
    #[serde(default)]
    pub mac: Option<Station>,
    /// The one station at the other side, if it answers neither ARP nor neighbour discovery, as packet generators do not.
    #[serde(default)]
    pub peer_mac: Option<Station>,
}

/// A station's address as text: six bytes in hexadecimal with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Station(pub Mac);

impl TryFrom<String> for Station {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: Result<Vec<u8>, _> = bytes.collect();
        match bytes.ok().and_then(|bytes| bytes.try_into().ok()).map(Mac) {
            Some(mac) if !mac.is_group() => Ok(Self(mac)),
            _ => Err(format!(
                "\"{text}\" is no station's address; write for example \"02:00:00:00:00:01\""
            )),
        }
    }
}

/// Which end of a memif socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemifRole {
    /// Listens, and uses the client's memory.
    #[serde(alias = "master")]
    Server,
    /// Connects, and brings the memory.
    #[default]
    #[serde(alias = "slave")]
    Client,
}

/// How a memif port learns of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemifMode {
    /// The peer wakes a worker that sleeps; one that works is not interrupted.
    #[default]
    Interrupt,
    /// The worker looks when it is awake: with `idle: sleep`, ten times a second.
    Polling,
}

/// What a NIC port is to the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A link to others.
    #[default]
    Link,
    /// The node's own network stack is behind it: a tap, or one end of a veth pair whose other end the kernel has.
    Host,
}

/// Whose an interface is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The dataplane's alone.
    #[default]
    Exclusive,
    /// The kernel's, with its addresses and ARP; the dataplane takes what is Services'.
    Shared,
}

const fn ring_size() -> u32 {
    1_024
}

const fn buffer_size() -> u32 {
    memif::BUFFER_SIZE
}

const fn ethernet_mtu() -> usize {
    1_500
}

const fn yes() -> bool {
    true
}
