//! What ethtool tells of an interface (linux/ethtool.h, by ioctl): its driver, queues, features, receive-side scaling; and
//! sets the last two. Never interprets what it reads.

use std::io;

use super::interface::Interface;
use super::rss::Rss;
use super::sys::{ETHTOOL_WORDS, Ethtool};

/// Bytes of a feature's name (ETH_GSTRING_LEN).
const NAME: usize = 32;
/// Words of `struct ethtool_rxfh` before the indirection table.
const RSS_HEADER: usize = 6;
/// TCP_V4_FLOW and TCP_V6_FLOW.
const TCP_FLOWS: [u32; 2] = [1, 5];
/// UDP_V4_FLOW and UDP_V6_FLOW.
const UDP_FLOWS: [u32; 2] = [2, 6];
/// RXH_IP_SRC, RXH_IP_DST, RXH_L4_B_0_1, RXH_L4_B_2_3.
const ADDRESSES: u32 = 1 << 4 | 1 << 5;
const PORTS: u32 = 1 << 6 | 1 << 7;
/// Addresses and ports.
pub(crate) const ALL: u32 = ADDRESSES | PORTS;

/// One feature of an interface, as the kernel calls it: `rx-gro`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// The kernel's name.
    pub(crate) name: String,
    /// Its place among all.
    place: usize,
    /// Asked for, whether or not it is in effect.
    pub(crate) requested: bool,
    /// In effect.
    pub(crate) active: bool,
}

/// What drives an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hardware {
    /// The kernel's driver: `ice`, `veth`.
    pub(crate) driver: String,
    /// Where it is: `0000:3b:00.0` of PCI; empty for virtual ones.
    pub(crate) bus: String,
}

/// The features of an interface, in the kernel's order.
pub(crate) fn features(interface: &Interface) -> io::Result<Vec<Feature>> {
    let mut words = answer(interface, Ethtool::FeatureNames, &[])?;
    let count = words[2] as usize;
    let names: Vec<u8> = bytemuck::cast_slice(&words[3..]).to_vec();
    words = answer(interface, Ethtool::Features, &[count.div_ceil(32) as u32])?;
    let bit = |place: usize, row: usize| {
        let word = words.get(2 + 4 * (place / 32) + row);
        word.is_some_and(|word| word >> (place % 32) & 1 != 0)
    };
    let feature = |(place, name): (usize, &[u8])| Feature {
        name: until_zero(name),
        place,
        requested: bit(place, 1),
        active: bit(place, 2),
    };
    Ok(names
        .chunks_exact(NAME)
        .take(count)
        .enumerate()
        .map(feature)
        .collect())
}

/// Asks for these features to be on or off. What the interface cannot do stays as it is. Errors: EPERM.
pub(crate) fn set_features(interface: &Interface, changes: &[(&Feature, bool)]) -> io::Result<()> {
    // As many blocks as the kernel has.
    let blocks = answer(interface, Ethtool::FeatureNames, &[])?[2].div_ceil(32);
    let mut request = vec![0; 1 + 2 * blocks as usize];
    request[0] = blocks;
    for (feature, on) in changes {
        let at = 1 + 2 * (feature.place / 32);
        if let Some([valid, requested]) = request.get_mut(at..at + 2) {
            let bit = 1 << (feature.place % 32);
            *valid |= bit;
            *requested |= if *on { bit } else { 0 };
        }
    }
    answer(interface, Ethtool::SetFeatures, &request).map(drop)
}

/// Its driver and place.
pub(crate) fn hardware(interface: &Interface) -> io::Result<Hardware> {
    let words = answer(interface, Ethtool::Driver, &[])?;
    let bytes: &[u8] = bytemuck::cast_slice(&words[..]);
    // struct ethtool_drvinfo: command, then driver, version and firmware version of 32 bytes each, and the bus.
    Ok(Hardware {
        driver: until_zero(&bytes[4..36]),
        bus: until_zero(&bytes[100..132]),
    })
}

/// Receive queues in use. Errors: the driver has no word for it.
pub(crate) fn receive_queues(interface: &Interface) -> io::Result<u32> {
    // struct ethtool_channels: command; most rx, tx, other, combined; then the same in use.
    let words = answer(interface, Ethtool::Channels, &[])?;
    Ok(words[5] + words[8])
}

/// How the interface shares received packets out to its queues. Errors: the driver has no word for it.
pub(crate) fn rss(interface: &Interface) -> io::Result<Rss> {
    // struct ethtool_rxfh: command, context, entries of the table, bytes of the key, function and transformation, reserved.
    let sizes = answer(interface, Ethtool::Rss, &[0, 0, 0])?;
    let (entries, key) = (sizes[2], sizes[3]);
    let words = answer(interface, Ethtool::Rss, &[0, entries, key])?;
    let [function, transformation, ..] = words[4].to_ne_bytes();
    let table = words.get(RSS_HEADER..RSS_HEADER + entries as usize);
    let bytes: &[u8] = bytemuck::cast_slice(words.get(RSS_HEADER + entries as usize..).unwrap_or_default());
    // Where the driver does not say, it is what all do.
    let hashes_ports = |flow| hash_fields(interface, flow).map_or(true, |fields| fields & ALL == ALL);
    Ok(Rss {
        function,
        transformation,
        hashes_ports: TCP_FLOWS.map(hashes_ports),
        hashes_udp_ports: UDP_FLOWS.map(hashes_ports),
        key: bytes.get(..key as usize).unwrap_or_default().to_vec(),
        table: table.unwrap_or_default().to_vec(),
    })
}

/// Sets function, key and table. Errors: EOPNOTSUPP, EINVAL, EPERM.
pub(crate) fn set_rss(interface: &Interface, rss: &Rss) -> io::Result<()> {
    answer(interface, Ethtool::SetRss, &rss_request(rss)).map(drop)
}

/// struct ethtool_rxfh behind its command.
fn rss_request(rss: &Rss) -> Vec<u32> {
    let how = u32::from_ne_bytes([rss.function, rss.transformation, 0, 0]);
    let mut request = vec![0, rss.table.len() as u32, rss.key.len() as u32, how, 0];
    request.extend(&rss.table);
    let mut key = rss.key.clone();
    key.resize(key.len().next_multiple_of(4), 0);
    request.extend(key.as_chunks::<4>().0.iter().copied().map(u32::from_ne_bytes));
    request
}

/// What of TCP's and UDP's packets is hashed, which the driver tells of: flow type and fields.
pub(crate) fn all_hash_fields(interface: &Interface) -> Vec<(u32, u32)> {
    let flows = TCP_FLOWS.into_iter().chain(UDP_FLOWS);
    flows
        .filter_map(|flow| Some((flow, hash_fields(interface, flow).ok()?)))
        .collect()
}

/// Sets what is hashed of a type of flow; `None`: `ALL`. Errors: EOPNOTSUPP, EINVAL, EPERM.
pub(crate) fn set_hash_fields(interface: &Interface, flow: u32, fields: Option<u32>) -> io::Result<()> {
    let [first, second] = halves(u64::from(fields.unwrap_or(ALL)));
    answer(interface, Ethtool::SetHashFields, &[flow, first, second]).map(drop)
}

fn hash_fields(interface: &Interface, flow: u32) -> io::Result<u32> {
    // struct ethtool_rxnfc: command, flow type, fields of 64 bits.
    let words = answer(interface, Ethtool::HashFields, &[flow])?;
    let fields: u64 = bytemuck::pod_read_unaligned(bytemuck::bytes_of(&[words[2], words[3]]));
    Ok(fields as u32)
}

/// A word of 64 bits as two that follow each other in memory.
const fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// `rest` are the words behind the command.
fn answer(interface: &Interface, question: Ethtool, rest: &[u32]) -> io::Result<Box<[u32; ETHTOOL_WORDS]>> {
    let mut words = Box::new([0; ETHTOOL_WORDS]);
    let room = words
        .get_mut(1..1 + rest.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(rest);
    interface.ethtool(question, &mut words)?;
    Ok(words)
}

fn until_zero(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_set_rss_is_laid_out_as_what_is_read() {
        let rss = Rss {
            function: 4,
            transformation: 1,
            hashes_ports: [true; 2],
            hashes_udp_ports: [true; 2],
            key: vec![1, 2, 3, 4, 5],
            table: (0..2_048).collect(),
        };
        // The command is put before it.
        let words = [vec![0], rss_request(&rss)].concat();
        assert_eq!(words[1..4], [0, 2_048, 5], "context, entries, bytes of the key");
        assert_eq!(
            words[4].to_ne_bytes(),
            [4, 1, 0, 0],
            "function and transformation"
        );
        assert_eq!(words[RSS_HEADER..RSS_HEADER + 2_048], rss.table);
        let key = words[RSS_HEADER + 2_048..].iter();
        let key: Vec<u8> = key.flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(key, [1, 2, 3, 4, 5, 0, 0, 0]);
        assert!(words.len() < ETHTOOL_WORDS);
    }
}
