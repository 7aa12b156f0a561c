//! Takes  an IPv4 packet and what the next link takes.   Gives  its fragments, one after the other (RFC 791 §2.7, §3.2).
//! Never  allocates; never fragments what says not to, or anything of IPv6, whose senders do so themselves.

use super::ipv4::{HEADER_LEN, field, flag};
use super::{Ipv4, array, checksum, put};
use crate::verdict::DropReason;

/// The longest header: options included.
const HEADER_MAX: usize = 60;

/// Bit of an option's type: every fragment has it, not only the first (RFC 791 §3.1).
const COPIED: u8 = 0x80;

/// The option that ends the list, and the one that is only padding: both are a byte long.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;

/// A packet on its way to be fragmented.
#[derive(Debug)]
pub struct Fragments<'a> {
    header: [u8; HEADER_MAX],
    header_len: usize,
    payload: &'a [u8],
    /// Where the rest of the payload starts in the whole packet's, in bytes.
    offset: usize,
    /// The packet itself was a fragment, and not the last.
    more: bool,
    mtu: usize,
}

impl<'a> Fragments<'a> {
    /// For a packet of any length (bytes after its total length are the frame's padding) and a link that takes packets of
    /// `mtu` bytes. Errors: `TooBig` if the packet may not be fragmented, or not into pieces so small; what `Ipv4::new`
    /// refuses.
    pub fn of(packet: &'a [u8], mtu: usize) -> Result<Self, DropReason> {
        let ip = Ipv4::new(packet)?;
        let header_len = ip.header_len();
        if ip.dont_fragment() || mtu < header_len + 8 {
            return Err(DropReason::TooBig);
        }
        let mut header = [0; HEADER_MAX];
        header[..header_len].copy_from_slice(&packet[..header_len]);
        Ok(Self {
            header,
            header_len,
            payload: &packet[header_len..usize::from(ip.total_len())],
            offset: ip.fragment_offset(),
            more: ip.more_fragments(),
            mtu,
        })
    }

    /// Writes the next fragment to the start of `out`, and gives its length; `None` after the last. Errors: `NoFrame` if
    /// `out` is shorter than it; then it is still the next.
    pub fn next(&mut self, out: &mut [u8]) -> Option<Result<usize, DropReason>> {
        if self.header_len == 0 {
            return None;
        }
        let room = self.mtu - self.header_len;
        // All but the last piece are multiples of eight bytes, for that is how offsets count.
        let len = if self.payload.len() <= room {
            self.payload.len()
        } else {
            room & !7
        };
        let total = self.header_len + len;
        let Some(out) = out.get_mut(..total) else {
            return Some(Err(DropReason::NoFrame));
        };
        let (piece, rest) = self.payload.split_at(len);
        let more = self.more || !rest.is_empty();
        // Thirteen bits: a packet's payload ends before 65,536 even as a fragment's, or its sender is broken; then so are
        // its fragments.
        let position = (self.offset / 8) as u16 & flag::OFFSET | if more { flag::MORE } else { 0 };
        let (header, body) = out.split_at_mut(self.header_len);
        header.copy_from_slice(&self.header[..self.header_len]);
        put(header, field::TOTAL_LEN, (total as u16).to_be_bytes());
        put(header, field::FRAGMENT, position.to_be_bytes());
        // By difference: a wrong checksum stays wrong.
        let changed = checksum::delta(&self.header[..HEADER_LEN], &header[..HEADER_LEN]);
        let before = u16::from_be_bytes(array(&self.header, super::ipv4::CHECKSUM));
        put(
            header,
            super::ipv4::CHECKSUM,
            checksum::apply(before, changed).to_be_bytes(),
        );
        body.copy_from_slice(piece);

        self.payload = rest;
        self.offset += len;
        if rest.is_empty() {
            self.header_len = 0;
        } else {
            self.keep_copied_options();
        }
        Some(Ok(total))
    }

    /// Leaves of the header's options those that later fragments have.
    fn keep_copied_options(&mut self) {
        let before = self.header;
        let mut options = &before[HEADER_LEN..self.header_len];
        let mut end = HEADER_LEN;
        while let Some((&kind, after)) = options.split_first() {
            let len = match kind {
                END => break,
                NO_OPERATION => 1,
                // One that is broken ends the list.
                _ => match after.first() {
                    Some(&len) if (2..=options.len()).contains(&usize::from(len)) => usize::from(len),
                    _ => break,
                },
            };
            let (option, rest) = options.split_at(len);
            if kind & COPIED != 0 {
                self.header[end..end + len].copy_from_slice(option);
                end += len;
            }
            options = rest;
        }
        let header_len = end.next_multiple_of(4);
        self.header[end..].fill(END);
        self.header[field::VERSION_IHL] = 0x40 | (header_len / 4) as u8;
        let changed = checksum::delta(&before, &self.header);
        let old = u16::from_be_bytes(array(&before, super::ipv4::CHECKSUM));
        put(
            &mut self.header,
            super::ipv4::CHECKSUM,
            checksum::apply(old, changed).to_be_bytes(),
        );
        self.header_len = header_len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Protocol;

    /// A packet that may be fragmented, with these options.
    fn packet(options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + payload.len()];
        let mut ip = Ipv4::blank(&mut bytes, Protocol::UDP).unwrap();
        ip.set_ttl(64);
        ip.payload_mut().copy_from_slice(payload);
        bytes.splice(20..20, options.iter().copied());
        bytes[0] += (options.len() / 4) as u8;
        let total = bytes.len() as u16;
        bytes[2..8].copy_from_slice(&[(total >> 8) as u8, total as u8, 0x12, 0x34, 0, 0]);
        Ipv4::partial(&mut bytes).unwrap().fill_checksum();
        bytes
    }

    fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let mut fragments = Fragments::of(packet, mtu).unwrap();
        let mut all = Vec::new();
        loop {
            let mut out = vec![0x55; mtu];
            let Some(len) = fragments.next(&mut out) else {
                return all;
            };
            out.truncate(len.unwrap());
            all.push(out);
        }
    }

    /// What a receiver makes of them (RFC 815, the obvious way), and whether the last says it is.
    fn put_together(fragments: &[Vec<u8>]) -> (Vec<u8>, bool) {
        let mut whole = Vec::new();
        let mut more = true;
        for fragment in fragments {
            let ip = Ipv4::new(fragment).unwrap();
            assert!(ip.checksum_ok() && ip.ident() == 0x1234 && more);
            assert_eq!(ip.fragment_offset(), whole.len());
            whole.extend(ip.payload());
            more = ip.more_fragments();
        }
        (whole, more)
    }

    proptest! {
        #[test]
        fn fragments_fit_and_make_the_packet_again_even_when_fragmented_twice(
            payload in vec(any::<u8>(), 0..3000), options in 0usize..=10, mtu in 68usize..1600, again in 68usize..700,
        ) {
            // RFC 791 §3.2. Record route: not copied.
            let mut list = vec![7, (4 * options) as u8, 4];
            list.resize(4 * options, 0);
            let packet = packet(&list[..4 * options], &payload);
            let once = fragments(&packet, mtu);
            prop_assert!(once.iter().all(|fragment| fragment.len() <= mtu));
            prop_assert_eq!(put_together(&once), (payload.clone(), false));
            let twice: Vec<_> = once.iter().flat_map(|fragment| fragments(fragment, again)).collect();
            prop_assert!(twice.iter().all(|fragment| fragment.len() <= again));
            prop_assert_eq!(put_together(&twice), (payload, false));
        }

        #[test]
        fn no_bytes_panic_and_every_fragment_is_a_packet(
            mut bytes in vec(any::<u8>(), 20..200), mtu in 0usize..100, sound in any::<bool>(),
        ) {
            if sound {
                bytes[0] = 0x40 | (5 + bytes[0] % 11);
                (bytes[2], bytes[3], bytes[6]) = (0, bytes[3].min(bytes.len() as u8), bytes[6] & !0x40);
            }
            if let Ok(mut fragments) = Fragments::of(&bytes, mtu) {
                let mut out = vec![0; 200];
                while let Some(len) = fragments.next(&mut out) {
                    let len = len.unwrap();
                    prop_assert!(len <= mtu);
                    prop_assert!(Ipv4::new(&out[..len]).is_ok());
                }
            }
        }
    }

    #[test]
    fn later_fragments_have_only_the_options_that_are_copied() {
        // No operation, record route (not copied), router alert (copied; RFC 2113), end.
        let packet = packet(&[1, 7, 3, 4, 0x94, 4, 0, 0, 0, 0, 0, 0], &[7; 40]);
        let all = fragments(&packet, 60);
        let options: Vec<_> = all
            .iter()
            .map(|fragment| Ipv4::new(fragment).unwrap().options().to_vec())
            .collect();
        assert_eq!(
            options,
            [vec![1, 7, 3, 4, 0x94, 4, 0, 0, 0, 0, 0, 0], vec![0x94, 4, 0, 0]]
        );
    }

    #[test]
    fn a_wrong_header_checksum_is_not_made_right() {
        let mut wrong = packet(&[], &[7; 40]);
        wrong[10] ^= 1;
        for fragment in fragments(&wrong, 44) {
            assert!(!Ipv4::new(&fragment).unwrap().checksum_ok());
        }
    }

    #[test]
    fn what_may_not_be_fragmented_or_not_so_small_is_too_big() {
        let mut packet = packet(&[], &[7; 40]);
        assert_eq!(Fragments::of(&packet, 27).unwrap_err(), DropReason::TooBig);
        let mut fragments = Fragments::of(&packet, 28).unwrap();
        assert_eq!(fragments.next(&mut [0; 27]), Some(Err(DropReason::NoFrame)));
        assert_eq!(fragments.next(&mut [0; 28]), Some(Ok(28)));
        packet[6] = 0x40;
        assert_eq!(Fragments::of(&packet, 28).unwrap_err(), DropReason::TooBig);
    }
}
