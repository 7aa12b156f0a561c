//! Interfaces, addresses and routes, asked of the kernel one request at a time.
//!
//! Takes what should be; gives the kernel's answer as an error that names the wish. A socket belongs to the network
//! namespace of the thread that opened it. Never asynchronous, never a second attempt, no `ip` tool.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// The kernel itself, as a netlink peer.
const KERNEL: (u32, u32) = (0, 0);
/// rtnetlink.h `RTNLGRP_LINK`: the multicast group that tells of interfaces that come, change and go.
const GROUP_LINK: u32 = 1;
/// Ethernet's default, so that no path of the lab is narrower than another.
const MTU: u32 = 1500;

/// One end of a veth pair.
pub(super) struct VethEnd<'a> {
    /// Interface name.
    pub(super) name: &'a str,
    /// The network namespace it lands in.
    pub(super) namespace: BorrowedFd<'a>,
    /// Whether its TCP must hand over single segments: a superframe (up to 64 KiB) would not fit a gateway's frame.
    pub(super) single_segments: bool,
}

/// A conversation with the kernel about one network namespace.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    pub(super) fn open() -> anyhow::Result<Self> {
        Self::open_protocol(NETLINK_ROUTE)
    }

    fn open_protocol(protocol: isize) -> anyhow::Result<Self> {
        let mut socket = Socket::new(protocol).context("cannot open a netlink socket")?;
        socket.bind_auto().context("cannot bind a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a veth pair, each end in its namespace.
    pub(super) fn add_veth(&mut self, a: &VethEnd<'_>, b: &VethEnd<'_>) -> anyhow::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = veth_attributes(b);
        let mut link = LinkMessage::default();
        link.attributes = veth_attributes(a);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create(RouteNetlinkMessage::NewLink(link))
            .with_context(|| format!("cannot make the veth pair {}-{}", a.name, b.name))
    }

    /// Makes a bridge and brings it up.
    pub(super) fn add_bridge(&mut self, name: &str) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(MTU),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.create(RouteNetlinkMessage::NewLink(link))
            .with_context(|| format!("cannot make the bridge {name}"))
    }

    /// Brings an interface up, as a port of `bridge` if one is given.
    pub(super) fn set_up(&mut self, name: &str, bridge: Option<&str>) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        if let Some(bridge) = bridge {
            link.attributes
                .push(LinkAttribute::Controller(self.index(bridge)?));
        }
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("cannot bring {name} up"))
    }

    /// Removes an interface (of a veth pair: both ends). One that is gone already is no error.
    pub(super) fn delete_link(&mut self, name: &str) -> anyhow::Result<()> {
        let Ok(index) = self.index(name) else {
            return Ok(());
        };
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(link), 0)
            .with_context(|| format!("cannot remove {name}"))
    }

    /// Gives an interface an address, which is usable at once.
    pub(super) fn add_address(&mut self, name: &str, address: IpNet) -> anyhow::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        // Nobody else in the lab has it: IPv6 would ask for a second before it uses it (RFC 4862 §5.4).
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.prefix_len = address.prefix_len();
        message.header.index = self.index(name)?;
        message.attributes = vec![
            AddressAttribute::Local(address.addr()),
            AddressAttribute::Address(address.addr()),
        ];
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("cannot give {name} the address {address}"))
    }

    /// Adds a route: through `gateway`, or without one to everything on the link; `source` is what local processes use.
    pub(super) fn add_route(
        &mut self,
        destination: IpNet,
        name: &str,
        gateway: Option<IpAddr>,
        source: Option<IpAddr>,
    ) -> anyhow::Result<()> {
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: family(destination.addr()),
            destination_prefix_length: destination.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: if gateway.is_some() {
                RouteScope::Universe
            } else {
                RouteScope::Link
            },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        route.attributes.push(RouteAttribute::Oif(self.index(name)?));
        if destination.prefix_len() > 0 {
            route
                .attributes
                .push(RouteAttribute::Destination(route_address(destination.network())));
        }
        route
            .attributes
            .extend(gateway.map(|a| RouteAttribute::Gateway(route_address(a))));
        route
            .attributes
            .extend(source.map(|a| RouteAttribute::PrefSource(route_address(a))));
        self.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
            .with_context(|| format!("cannot add the route to {destination} on {name}"))
    }

    /// The index of an interface.
    pub(super) fn index(&mut self, name: &str) -> anyhow::Result<u32> {
        Ok(self.link(name)?.header.index)
    }

    /// What the kernel knows about an interface.
    pub(super) fn link(&mut self, name: &str) -> anyhow::Result<LinkMessage> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.exchange(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(link),
            Ok(_) => Err(anyhow!(
                "the kernel's answer about the interface {name} is not about an interface"
            )),
            Err(error) => Err(error).with_context(|| format!("no interface {name}")),
        }
    }

    /// From now on this socket also receives what happens to interfaces; see [`Self::next_link`].
    pub(super) fn watch_links(&mut self) -> anyhow::Result<()> {
        self.socket
            .add_membership(GROUP_LINK)
            .context("cannot watch interfaces")
    }

    /// Waits for the next interface that is made or changes: its name and index. Only on a socket that watches.
    pub(super) fn next_link(&mut self) -> anyhow::Result<(String, u32)> {
        loop {
            let (bytes, _) = match self.socket.recv_from_full() {
                Ok(received) => received,
                // More happened than the socket's buffer holds: what is missed is asked for by name.
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => continue,
                Err(error) => return Err(error).context("cannot watch interfaces"),
            };
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes) else {
                continue;
            };
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload {
                let name = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
                if let Some(name) = name {
                    return Ok((name, link.header.index));
                }
            }
        }
    }

    fn create(&mut self, message: RouteNetlinkMessage) -> anyhow::Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> anyhow::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Sends one request and reads its one answer: an object, an acknowledgement, or an error.
    fn exchange<M>(&mut self, message: M, flags: u16) -> anyhow::Result<Option<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug + Into<NetlinkPayload<M>>,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, message.into());
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let kernel = SocketAddr::new(KERNEL.0, KERNEL.1);
        self.socket
            .send_to(&bytes, &kernel, 0)
            .context("cannot send to the kernel")?;
        loop {
            let (bytes, _) = self
                .socket
                .recv_from_full()
                .context("no answer from the kernel")?;
            let answer = NetlinkMessage::<M>::deserialize(&bytes)
                .map_err(|error| anyhow!("cannot read the kernel's answer: {error}"))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::Error(error) => match error.code {
                    None => Ok(None),
                    Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg()).into()),
                },
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                _ => Ok(None),
            };
        }
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn veth_attributes(end: &VethEnd<'_>) -> Vec<LinkAttribute> {
    let mut attributes = vec![
        LinkAttribute::IfName(end.name.to_owned()),
        LinkAttribute::NetNsFd(end.namespace.as_raw_fd()),
        LinkAttribute::Mtu(MTU),
    ];
    if end.single_segments {
        attributes.push(LinkAttribute::GsoMaxSegs(1));
    }
    attributes
}

/// Makes an interface of the calling thread's namespace finish its own checksums.
///
/// On a veth the kernel leaves a pseudo-header sum for a NIC that never comes: a gateway that reads raw frames would
/// carry it on as a wrong checksum. This is `ethtool -K NAME tx off`, which also ends segmentation offload
/// (linux/ethtool_netlink.h, `ETHTOOL_MSG_FEATURES_SET`).
pub(super) fn disable_checksum_offload(name: &str) -> anyhow::Result<()> {
    let mut netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
    let family = netlink
        .ethtool_family()
        .context("the kernel has no ethtool netlink (Linux 5.6 or newer)")?;
    let features = ["tx-checksum-ip-generic", "tx-checksum-sctp"];
    let bits = features.iter().map(|feature| {
        // ETHTOOL_A_BITSET_BITS_BIT { ETHTOOL_A_BITSET_BIT_NAME }; without a VALUE flag the bit is cleared.
        nest(1, &[DefaultNla::new(2, c_string(feature))])
    });
    let request = Generic {
        family,
        command: 12, // ETHTOOL_MSG_FEATURES_SET
        version: 1,
        attributes: vec![
            // ETHTOOL_A_FEATURES_HEADER { DEV_NAME, FLAGS = OMIT_REPLY }
            nest(
                1,
                &[
                    DefaultNla::new(2, c_string(name)),
                    DefaultNla::new(3, 2_u32.to_ne_bytes().to_vec()),
                ],
            ),
            // ETHTOOL_A_FEATURES_WANTED { ETHTOOL_A_BITSET_BITS }
            nest(3, &[nest(3, &bits.collect::<Vec<_>>())]),
        ],
    };
    netlink
        .exchange(request, NLM_F_REQUEST | NLM_F_ACK)
        .map(drop)
        .with_context(|| format!("cannot turn checksum offload of {name} off"))
}

impl Netlink {
    fn ethtool_family(&mut self) -> anyhow::Result<u16> {
        let request = Generic {
            family: 16, // linux/genetlink.h GENL_ID_CTRL
            command: 3, // CTRL_CMD_GETFAMILY
            version: 1,
            attributes: vec![DefaultNla::new(2, c_string("ethtool"))], // CTRL_ATTR_FAMILY_NAME
        };
        let answer = self.exchange(request, NLM_F_REQUEST)?.context("no answer")?;
        let id = answer.attributes.iter().find_map(|attribute| {
            // CTRL_ATTR_FAMILY_ID
            (netlink_packet_core::Nla::kind(attribute) == 1).then(|| {
                let mut value = [0; 2];
                netlink_packet_core::Nla::emit_value(attribute, &mut value);
                u16::from_ne_bytes(value)
            })
        });
        id.context("the answer names no family")
    }
}

fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn nest(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// A generic netlink message (linux/genetlink.h `struct genlmsghdr`, then attributes).
#[derive(Debug)]
struct Generic {
    family: u16,
    command: u8,
    version: u8,
    attributes: Vec<DefaultNla>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.command, self.version, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[4..]);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = netlink_packet_core::DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        use netlink_packet_core::{NlasIterator, Parseable};
        let [command, version, _, _, attributes @ ..] = payload else {
            return Err("a generic netlink message shorter than its header".into());
        };
        let attributes = NlasIterator::new(attributes)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            family: header.message_type,
            command: *command,
            version: *version,
            attributes,
        })
    }
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}
