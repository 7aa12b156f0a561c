//! Neighbour discovery (RFC 4861 §4.3, §4.4) to text and back: who has an address, and which station that is.

use std::net::{IpAddr, Ipv6Addr};

use super::{Side, solicited_node};
use crate::support::line::Line;
use crate::support::station::{Mac, Port, mac_name, mac_named, station};

/// Neighbour solicitation and advertisement.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Flags of an advertisement, from the highest bit: from a router, solicited, override.
const FLAGS: [char; 3] = ['R', 'S', 'O'];
const USUAL_FLAGS: &str = "SO";

/// An ICMPv6 message: its type, its bytes from the fifth on, and between whom.
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
    pub from: Ipv6Addr,
    pub to: Ipv6Addr,
    /// The station it usually comes from.
    pub station: Mac,
}

/// `nd who-has TARGET tell SENDER` or `nd TARGET is-at MAC tell ASKER`.
pub fn build(line: &Line, port: Port, side: Side) -> Result<Message, String> {
    let words: Vec<&str> = line.head.iter().map(String::as_str).collect();
    let (target, told, is_at) = match words[..] {
        ["nd", "who-has", target, "tell", told] => (address(target)?, address(told)?, None),
        ["nd", target, "is-at", mac, "tell", told] => {
            (address(target)?, address(told)?, Some(mac_named(mac)?))
        }
        _ => {
            return Err(
                "write: nd who-has TARGET tell SENDER, or: nd TARGET is-at MAC tell ASKER".to_owned(),
            );
        }
    };
    let (from, to) = if is_at.is_some() {
        (target, told)
    } else {
        (told, solicited_node(target))
    };
    let named = |modifier, usual| line.get(modifier).map_or(Ok(usual), address);
    let (from, to) = (named("src", from)?, named("dst", to)?);
    let usual = usual_station(from, port, side);
    let sender = line.get("from").map_or(Ok(usual), mac_named)?;
    let mut body = vec![0; 4];
    if is_at.is_some() {
        let flags = line.get("flags").unwrap_or(USUAL_FLAGS);
        body[0] = (0..3)
            .filter(|&i| flags.contains(FLAGS[i]))
            .map(|i| 0x80 >> i)
            .sum();
    }
    body.extend(target.octets());
    // The link-layer address of the source, or of the target; the unspecified address has none (§4.3).
    let option = match (is_at, line.get("sha")) {
        (Some(mac), _) => Some((2, mac)),
        (None, Some("none")) => None,
        (None, Some(mac)) => Some((1, mac_named(mac)?)),
        (None, None) => (!from.is_unspecified()).then_some((1, sender)),
    };
    if let Some((kind, mac)) = option {
        body.extend([kind, 1]);
        body.extend(mac);
    }
    let kind = if is_at.is_some() {
        ADVERTISEMENT
    } else {
        SOLICITATION
    };
    Ok(Message {
        kind,
        body,
        from,
        to,
        station: usual,
    })
}

/// The station that a message from `from` usually comes from.
pub fn usual_station(from: Ipv6Addr, port: Port, side: Side) -> Mac {
    match side {
        Side::In => station(from),
        Side::Out => port.mac(),
    }
}

/// The line of a message with this type and these bytes from the fifth on, in a frame from `sender`. `None`: it is not as
/// simple, and shows as any other ICMPv6 message.
pub fn dissect(kind: u8, body: &[u8], from: Ipv6Addr, to: Ipv6Addr, sender: Mac) -> Option<Line> {
    let (&[flags, 0, 0, 0], rest) = body.split_first_chunk()? else {
        return None;
    };
    let (target, options) = rest.split_first_chunk::<16>()?;
    let target = Ipv6Addr::from(*target);
    let mac = match (kind, options) {
        (SOLICITATION, []) => None,
        (SOLICITATION, &[1, 1, a, b, c, d, e, f]) | (ADVERTISEMENT, &[2, 1, a, b, c, d, e, f]) => {
            Some([a, b, c, d, e, f])
        }
        _ => return None,
    };
    let mut line = Line::default();
    let (head, usual) = match (kind, mac) {
        (SOLICITATION, mac) if flags == 0 => {
            match mac {
                Some(mac) if mac != sender || from.is_unspecified() => line.set("sha", mac_name(mac)),
                None if !from.is_unspecified() => line.set("sha", "none"),
                _ => {}
            }
            (
                format!("nd who-has {target} tell {from}"),
                (from, solicited_node(target)),
            )
        }
        (ADVERTISEMENT, Some(mac)) if flags & 0x1f == 0 => {
            let set: String = (0..3)
                .filter(|i| flags & 0x80 >> i != 0)
                .map(|i| FLAGS[i])
                .collect();
            if set != USUAL_FLAGS {
                line.set("flags", if set.is_empty() { "-" } else { &set });
            }
            (
                format!("nd {target} is-at {} tell {to}", mac_name(mac)),
                (target, to),
            )
        }
        _ => return None,
    };
    if from != usual.0 {
        line.set("src", from);
    }
    if to != usual.1 {
        line.set("dst", to);
    }
    line.head = head.split(' ').map(str::to_owned).collect();
    Some(line)
}

fn address(text: &str) -> Result<Ipv6Addr, String> {
    match text.parse() {
        Ok(IpAddr::V6(address)) => Ok(address),
        _ => Err(format!("\"{text}\" is no IPv6 address")),
    }
}
