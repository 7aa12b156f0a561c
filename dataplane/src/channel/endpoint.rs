//! A socket file that the dataplane listens at.
//!
//! Takes  a path and a type of socket.     Gives  a listener there, after clearing away what a dead process left; removes it when dropped.
//! Never  takes a path away from a living process, never removes a file that is not a socket.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::peer::Peer;

/// Why the dataplane's end of the channel could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another dataplane listens there.
    #[error("{path} is in use: {holder} listens there; stop it, or give this dataplane another socket path")]
    Busy {
        /// The socket's path.
        path: PathBuf,
        /// Who listens.
        holder: String,
    },
    /// Something else is there.
    #[error("{0} exists and is not a socket; remove it, or give this dataplane another socket path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen at {path}: {error}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// No shared memory.
    #[error("cannot create the channel's shared memory: {0}")]
    Segment(io::Error),
    /// `ServerOptions` out of bounds.
    #[error("the channel's sizes are out of bounds: {0}")]
    Options(String),
}

const NEW: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Peers that wait to be let in: more than ever come at once, and each is let in at once.
const BACKLOG: i32 = 128;

/// A listener and its file.
#[derive(Debug)]
pub(crate) struct Endpoint {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: someone else's file at the path is not ours to remove.
    file: (u64, u64),
}

impl Endpoint {
    pub(crate) fn bind(path: &Path, kind: SocketType) -> Result<Self, BindError> {
        Self::bind_locked(path, kind).map_err(|refused| match refused {
            Refused::Because(error) => error,
            Refused::Io(error) => BindError::Io {
                path: path.to_owned(),
                error,
            },
        })
    }

    fn bind_locked(path: &Path, kind: SocketType) -> Result<Self, Refused> {
        // Two dataplanes that start at once and both find a dead socket must not remove each other's live one: they
        // take turns by the folder's lock, which the kernel drops with the descriptor.
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let folder = fs::File::open(folder)?;
        flock(&folder, FlockOperation::LockExclusive)?;

        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(Refused::Because(BindError::NotASocket(path.to_owned())));
            }
            Ok(_) => match holder(path, kind)? {
                Some(holder) => {
                    return Err(Refused::Because(BindError::Busy {
                        path: path.to_owned(),
                        holder,
                    }));
                }
                None => {
                    log::info!(
                        "removing {}, left behind by a process that is gone",
                        path.display()
                    );
                    fs::remove_file(path)?;
                }
            },
        }
        let listener = socket_with(AddressFamily::UNIX, kind, NEW, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&listener, BACKLOG)?;
        // For the file system's rules; who connects is checked by the kernel's word anyway.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let file = fs::symlink_metadata(path)?;
        Ok(Self {
            listener: listener.into(),
            path: path.to_owned(),
            file: (file.dev(), file.ino()),
        })
    }

    pub(crate) const fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// An error on the way, or one that says more.
enum Refused {
    Because(BindError),
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// Who listens at a socket file; `None` if nobody does.
fn holder(path: &Path, kind: SocketType) -> io::Result<Option<String>> {
    let probe = socket_with(AddressFamily::UNIX, kind, NEW, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(Some(match Peer::of(&probe) {
            Ok(peer) => match fs::read_to_string(format!("/proc/{}/comm", peer.pid)) {
                Ok(name) => format!("{peer}, {},", name.trim_end()),
                Err(_) => peer.to_string(),
            },
            Err(_) => "a process".into(),
        })),
        // It listens, but its queue is full.
        Err(Errno::AGAIN) => Ok(Some("a process that does not accept connections now".into())),
        Err(Errno::CONNREFUSED) => Ok(None),
        Err(Errno::PROTOTYPE) => Ok(Some("a process that talks another way".into())),
        Err(error) => Err(error.into()),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|f| (f.dev(), f.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_any_other_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("channel.sock");
        drop(UnixListener::bind(&path).unwrap()); // std leaves the file
        assert!(path.exists());
        let first = Endpoint::bind(&path, SocketType::STREAM).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let error = Endpoint::bind(&path, SocketType::STREAM).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        assert!(path.exists());

        drop(first);
        assert!(!path.exists());
        fs::write(&path, "notes").unwrap();
        assert!(matches!(
            Endpoint::bind(&path, SocketType::STREAM),
            Err(BindError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }

    #[test]
    fn a_file_that_replaced_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("channel.sock");
        let ours = Endpoint::bind(&path, SocketType::STREAM).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
