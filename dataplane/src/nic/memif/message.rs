//! The control messages of memif 2.0, each 128 bytes on a SEQPACKET socket in the host's byte order: to bytes and back.
//!
//! Layout and numbers are those of FD.io's `memif.h` (VPP, src/plugins/memif) and DPDK's (drivers/net/memif), which agree;
//! the client was once called slave and the server master. Every field is taken as it comes: what it may be is the
//! handshake's business.

use std::fmt;

/// Bytes of a message.
pub const MESSAGE: usize = 128;
/// The only version there is, 2.0: `MEMIF_VERSION`.
pub const VERSION: u16 = 2 << 8;
/// Bytes of a secret: `MEMIF_SECRET_SIZE`.
pub const SECRET: usize = 24;
/// Frames with Ethernet headers: `MEMIF_INTERFACE_MODE_ETHERNET`.
pub const ETHERNET: u8 = 0;

/// `MEMIF_MSG_ADD_RING_FLAG_C2S` (S2M).
const CLIENT_TO_SERVER: u16 = 1;
/// Bytes of a program's or interface's name, and of the reason for a disconnect.
const NAME: usize = 32;
const REASON: usize = 96;

/// A name or a reason: bytes up to the first zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>(pub [u8; N]);

impl<const N: usize> Text<N> {
    /// As much of `text` as fits with a zero behind it.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; N];
        let text = &text.as_bytes()[..text.floor_char_boundary(N - 1)];
        bytes[..text.len()].copy_from_slice(text);
        Self(bytes)
    }

    /// The bytes before the first zero.
    pub fn bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// For a person: what is not printable is escaped, since a peer may send anything.
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().escape_ascii().fmt(f)
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Which way a ring's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The server receives from it.
    ToServer,
    /// The client receives from it.
    ToClient,
}

/// Where a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Which way.
    pub way: Way,
    /// Number of the queue, from 0 for each way.
    pub index: u16,
    /// Region it is in.
    pub region: u16,
    /// Byte in the region it begins at.
    pub offset: u32,
    /// Logarithm of the number of descriptors.
    pub log2_size: u8,
    /// Bytes of private data before each packet.
    pub private_header: u16,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Server and client: the last message was taken.
    Ack,
    /// Server, first: what it can do.
    Hello {
        /// Its program.
        name: Text<NAME>,
        /// Versions it speaks, from and to.
        versions: (u16, u16),
        /// Highest index of a region.
        max_region: u16,
        /// Highest index of a ring to the client.
        max_to_client: u16,
        /// Highest index of a ring to the server.
        max_to_server: u16,
        /// Logarithm of the most descriptors.
        max_log2_size: u8,
    },
    /// Client: which interface it wants.
    Init {
        /// Version it speaks.
        version: u16,
        /// Number of the interface at this socket.
        id: u32,
        /// What is in the buffers; `ETHERNET` here.
        mode: u8,
        /// What the server wants to hear, or zeros.
        secret: Text<SECRET>,
        /// Its program.
        name: Text<NAME>,
    },
    /// Client: a region of shared memory, whose file comes along.
    AddRegion {
        /// Its number.
        index: u16,
        /// Its bytes.
        size: u64,
    },
    /// Client: a ring, whose interrupt (an eventfd) comes along.
    AddRing(RingPlace),
    /// Client: that was all.
    Connect {
        /// Its interface's name.
        name: Text<NAME>,
    },
    /// Server: packets may flow.
    Connected {
        /// Its interface's name.
        name: Text<NAME>,
    },
    /// Server and client: the end.
    Disconnect {
        /// Without meaning so far.
        code: u32,
        /// Why.
        reason: Text<REASON>,
    },
}

/// Bytes read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes; zeros behind the end, which no message reaches.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((taken, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *taken
    }

    fn u8(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn text<const N: usize>(&mut self) -> Text<N> {
        Text(self.take())
    }
}

impl Message {
    /// Reads a message; `None` for a type that there is not.
    pub fn decode(bytes: &[u8; MESSAGE]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let f = &mut fields;
        Some(match f.u16() {
            1 => Self::Ack,
            2 => Self::Hello {
                name: f.text(),
                versions: (f.u16(), f.u16()),
                max_region: f.u16(),
                max_to_client: f.u16(),
                max_to_server: f.u16(),
                max_log2_size: f.u8(),
            },
            3 => Self::Init {
                version: f.u16(),
                id: f.u32(),
                mode: f.u8(),
                secret: f.text(),
                name: f.text(),
            },
            4 => Self::AddRegion {
                index: f.u16(),
                size: f.u64(),
            },
            5 => Self::AddRing(RingPlace {
                way: if f.u16() & CLIENT_TO_SERVER != 0 {
                    Way::ToServer
                } else {
                    Way::ToClient
                },
                index: f.u16(),
                region: f.u16(),
                offset: f.u32(),
                log2_size: f.u8(),
                private_header: f.u16(),
            }),
            6 => Self::Connect { name: f.text() },
            7 => Self::Connected { name: f.text() },
            8 => Self::Disconnect {
                code: f.u32(),
                reason: f.text(),
            },
            _ => return None,
        })
    }

    /// The message's bytes, zeros behind it.
    pub fn encode(&self) -> [u8; MESSAGE] {
        let (kind, body): (u16, Vec<u8>) = match self {
            Self::Ack => (1, Vec::new()),
            Self::Hello {
                name,
                versions,
                max_region,
                max_to_client,
                max_to_server,
                max_log2_size,
            } => {
                let numbers = [
                    versions.0,
                    versions.1,
                    *max_region,
                    *max_to_client,
                    *max_to_server,
                ];
                let numbers = numbers.map(u16::to_ne_bytes).concat();
                (2, [&name.0[..], &numbers, &[*max_log2_size]].concat())
            }
            Self::Init {
                version,
                id,
                mode,
                secret,
                name,
            } => (
                3,
                [
                    &version.to_ne_bytes()[..],
                    &id.to_ne_bytes(),
                    &[*mode],
                    &secret.0,
                    &name.0,
                ]
                .concat(),
            ),
            Self::AddRegion { index, size } => (4, [&index.to_ne_bytes()[..], &size.to_ne_bytes()].concat()),
            Self::AddRing(place) => {
                let flags = match place.way {
                    Way::ToServer => CLIENT_TO_SERVER,
                    Way::ToClient => 0,
                };
                let numbers = [flags, place.index, place.region].map(u16::to_ne_bytes).concat();
                let private = place.private_header.to_ne_bytes();
                (
                    5,
                    [
                        &numbers[..],
                        &place.offset.to_ne_bytes(),
                        &[place.log2_size],
                        &private,
                    ]
                    .concat(),
                )
            }
            Self::Connect { name } => (6, name.0.to_vec()),
            Self::Connected { name } => (7, name.0.to_vec()),
            Self::Disconnect { code, reason } => (8, [&code.to_ne_bytes()[..], &reason.0].concat()),
        };
        let mut bytes = [0; MESSAGE];
        bytes[..2].copy_from_slice(&kind.to_ne_bytes());
        bytes[2..2 + body.len()].copy_from_slice(&body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `memif.h` has them: a packed structure behind a type of two bytes.
    #[test]
    fn fields_are_where_the_header_has_them() {
        let init = Message::Init {
            version: VERSION,
            id: 0x0102_0304,
            mode: 5,
            secret: Text::new("secret"),
            name: Text::new("name"),
        };
        let bytes = init.encode();
        assert_eq!(bytes[..2], 3u16.to_ne_bytes());
        assert_eq!(bytes[2..4], 0x200u16.to_ne_bytes());
        assert_eq!(bytes[4..8], 0x0102_0304u32.to_ne_bytes());
        assert_eq!(
            (bytes[8], &bytes[9..16], &bytes[33..38]),
            (5, &b"secret\0"[..], &b"name\0"[..])
        );
        let ring = Message::AddRing(RingPlace {
            way: Way::ToServer,
            index: 1,
            region: 2,
            offset: 0x0304_0506,
            log2_size: 10,
            private_header: 7,
        });
        let bytes = ring.encode();
        assert_eq!(bytes[2..8], [1u16, 1, 2].map(u16::to_ne_bytes).concat());
        assert_eq!(bytes[8..12], 0x0304_0506u32.to_ne_bytes());
        assert_eq!((bytes[12], &bytes[13..15]), (10, &7u16.to_ne_bytes()[..]));
        let hello = Message::Hello {
            name: Text::new("us"),
            versions: (1, 2),
            max_region: 3,
            max_to_client: 4,
            max_to_server: 5,
            max_log2_size: 6,
        };
        let bytes = hello.encode();
        assert_eq!(bytes[34..44], [1u16, 2, 3, 4, 5].map(u16::to_ne_bytes).concat());
        assert_eq!(bytes[44..], [[6].as_slice(), &[0; 83]].concat());
        for message in [init, ring, hello] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_type_that_there_is_not_is_no_message_and_a_text_without_an_end_is_cut() {
        let mut bytes = [0xff; MESSAGE];
        assert_eq!(Message::decode(&bytes), None);
        bytes[..2].copy_from_slice(&8u16.to_ne_bytes());
        let Some(Message::Disconnect { code, reason }) = Message::decode(&bytes) else {
            panic!("a disconnect")
        };
        assert_eq!((code, reason.bytes().len()), (u32::MAX, REASON));
        assert!(reason.to_string().starts_with("\\xff\\xff"));
        assert_eq!(Text::<4>::new("größe").to_string(), "gr");
    }
}
