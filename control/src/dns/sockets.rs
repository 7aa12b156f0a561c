//! The sockets that questions come in by: inherited from whoever started the process and keeps them open over its
//! restarts, or made here.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// Questions that may wait while nobody reads, as at a restart: a second of a busy cluster's. The kernel gives less to
/// one without CAP_NET_ADMIN (`net.core.rmem_max`).
const RECEIVE_BUFFER: usize = 8 << 20;
/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;

/// All sockets of the server.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Those that the environment names (sd_listen_fds(3)); none if it names none.
    pub fn inherited() -> anyhow::Result<Self> {
        let mut fds = ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..fds.len() {
            if let Ok(Some(socket)) = fds.take_udp_socket(index) {
                sockets.udp.push(socket);
            } else if let Some(listener) = fds.take_tcp_listener(index)? {
                sockets.tcp.push(listener);
            }
        }
        Ok(sockets)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.udp.is_empty() && self.tcp.is_empty()
    }

    /// One of each kind at every address, whether the machine has the address already or only will have it.
    pub fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut sockets = Self::default();
        for address in addresses {
            let why = |kind| {
                format!(
                    "dns.listen: cannot listen at {address} by {kind}; port 53 needs root or CAP_NET_BIND_SERVICE"
                )
            };
            let udp = made(*address, SocketType::DGRAM).with_context(|| why("UDP"))?;
            let tcp = made(*address, SocketType::STREAM).with_context(|| why("TCP"))?;
            sockets.udp.push(udp.into());
            sockets.tcp.push(tcp.into());
        }
        Ok(sockets)
    }
}

fn made(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    } else {
        sockopt::set_ip_freebind(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of the process before linger, and must not keep this one from starting.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    } else {
        enlarge(socket.as_fd());
    }
    Ok(socket)
}

fn enlarge(socket: std::os::fd::BorrowedFd<'_>) {
    if sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err()
        && let Err(error) = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER)
    {
        log::debug!("dns: the receive buffer stays as it is: {error}");
    }
}
