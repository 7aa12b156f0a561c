//! Questions to the kernel by netlink(7): a request, and its answer or answers.
//!
//! Takes  a message's type and its body; for generic netlink a family, too.
//! Gives  the bodies of the answers, and what an attribute in them holds.
//! Never  changes anything, waits, or trusts a length that the bytes do not have.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::GENERIC;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// linux/netlink.h.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// Room for one answer, or one part of a dump: the kernel fills at most 32 KiB (netlink_dump, net/netlink/af_netlink.c).
const ANSWER: usize = 1 << 15;

/// linux/genetlink.h: the family of families, its question for one by name, and the attributes of both.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`: command, version, reserved.
const GENERIC_HEADER: usize = 4;

/// A socket for questions about the network namespace that it was made in.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// To rtnetlink(7).
    pub(crate) fn route() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?))
    }

    /// To generic netlink.
    fn generic() -> io::Result<Self> {
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(GENERIC),
        )?))
    }

    /// The body of the one answer. Errors: the kernel's own.
    pub(crate) fn ask(&self, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut answers = Vec::new();
        self.send(kind, REQUEST, body)?;
        self.receive(&mut answers)?;
        let first = answers.into_iter().next();
        first.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The bodies of all answers to a question for everything there is. What changes meanwhile may be missing.
    pub(crate) fn dump(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        self.send(kind, REQUEST | DUMP, body)?;
        while !self.receive(&mut answers)? {}
        Ok(answers)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = (HEADER + body.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Whether it was the last part of a dump. The kernel answers before `send` returns, so there is nothing to wait for.
    fn receive(&self, answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
        let mut bytes = vec![0; ANSWER];
        let (read, _) = rustix::net::recv(&self.0, &mut bytes, RecvFlags::DONTWAIT)?;
        bytes.truncate(read);
        messages(&bytes, answers)
    }
}

/// Sorts out what came at once. Errors: the kernel's own; a message that is cut short.
fn messages(mut bytes: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    while !bytes.is_empty() {
        let header: [u8; 6] = *bytes.first_chunk().ok_or_else(broken)?;
        let [a, b, c, d, kind @ ..] = header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = bytes.get(HEADER..length).ok_or_else(broken)?;
        match u16::from_ne_bytes(kind) {
            DONE => return Ok(true),
            ERROR => {
                let code: [u8; 4] = *body.first_chunk().ok_or_else(broken)?;
                return Err(io::Error::from_raw_os_error(
                    i32::from_ne_bytes(code).saturating_neg(),
                ));
            }
            _ => answers.push(body.to_vec()),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// What a family of generic netlink answers to a command: the attributes. Errors: NotFound if this kernel has no such family.
pub(crate) fn ask_family(name: &str, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let netlink = Netlink::generic()?;
    let ask = |family, command, attributes: &[u8]| {
        let body = [&[command, 1, 0, 0], attributes].concat();
        netlink.ask(family, &body).map(|mut answer| {
            answer.drain(..GENERIC_HEADER.min(answer.len()));
            answer
        })
    };
    let named = attribute(FAMILY_NAME, &[name.as_bytes(), b"\0"].concat());
    let family = ask(CONTROL, GET_FAMILY, &named)?;
    let id = find(&family, FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
    ask(id.ok_or(io::ErrorKind::NotFound)?, command, attributes)
}

/// An attribute: length, kind, value, padded to a multiple of four bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of that kind.
pub(crate) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    // The highest two bits say how the value is made.
    const KIND: u16 = 0x3fff;
    loop {
        let [a, b, c, d] = *attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & KIND == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// The value of an attribute that is a number of 32 bits.
pub(crate) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(find(attributes, kind)?.try_into().ok()?))
}

/// The value of an attribute that is a name.
pub(crate) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let name = find(attributes, kind)?;
    Some(String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_what_is_cut_short_is_not() {
        let bytes = [attribute(3, b"eth0\0"), attribute(0x8012, &[1, 2, 3, 4])].concat();
        assert_eq!(find(&bytes, 3), Some(&b"eth0\0"[..]));
        assert_eq!(text(&bytes, 3).as_deref(), Some("eth0"));
        assert_eq!(number(&bytes, 0x12), Some(u32::from_ne_bytes([1, 2, 3, 4])));
        assert_eq!(number(&bytes, 3), None, "five bytes are no number");
        assert_eq!(find(&bytes, 5), None);
        for end in 0..bytes.len() {
            assert_eq!(find(&bytes[..end], 0x12), None);
        }
        assert_eq!(find(&[0; 64], 3), None, "an attribute without a header");
    }

    #[test]
    fn messages_end_where_they_say_and_errors_are_the_kernels() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes
        };
        let mut answers = Vec::new();
        let two = [message(16, b"left"), message(16, b"right...")].concat();
        assert!(!messages(&two, &mut answers).unwrap());
        assert_eq!(answers, [&b"left"[..], b"right..."]);
        assert!(messages(&message(DONE, &[0; 4]), &mut answers).unwrap());
        let refused = messages(&message(ERROR, &(-libc::ENODEV).to_ne_bytes()), &mut answers);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENODEV));
        for end in 1..two.len() - 8 {
            if end != 20 {
                assert!(messages(&two[..end], &mut Vec::new()).is_err(), "{end}");
            }
        }
    }
}
