#![allow(unsafe_code)]
//! Who is at the other end of a Unix socket, by the kernel's word (SO_PEERCRED, unix(7)).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A process as it was when it connected or began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// 0 if the process lives in a PID namespace that cannot be seen from here, as in another container.
    pub(super) pid: libc::pid_t,
    pub(super) uid: libc::uid_t,
}

impl Peer {
    /// The process that connected to us, or that listens where we connected. (A wrapper that takes the process ID for
    /// a non-zero number would be wrong across PID namespaces, hence the system call itself.)
    pub(super) fn of(socket: impl AsFd) -> io::Result<Self> {
        let mut found = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the descriptor is open (borrowed), and the kernel writes at most `length` bytes, the size of
        // `found`, which is three plain integers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            pid: found.pid,
            uid: found.uid,
        })
    }

    /// Root, or the user this process runs as: nobody else may change where packets go.
    pub(super) fn is_trusted(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(f, "a process of another PID namespace (user {})", self.uid),
            pid => write!(f, "process {pid} (user {})", self.uid),
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_knows_itself_at_the_other_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid as u32, std::process::id());
        assert!(peer.is_trusted());
        assert!(
            !Peer {
                pid: 1,
                uid: peer.uid.wrapping_add(1).max(1)
            }
            .is_trusted()
        );
    }
}
