//! SCTP packets (RFC 9260 §3) to text and back: chunk names, their flags and bodies, and the CRC32c over all of it.

use super::counting;
use crate::support::line::Line;

/// Chunks by name, with their usual bodies: the fixed fields, and what cannot be left out.
const CHUNKS: &[(&str, u8, &[u8])] = &[
    ("DATA", 0, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("INIT", 1, INIT),
    ("INIT-ACK", 2, INIT),
    ("SACK", 3, &[0, 0, 0, 1, 0, 0, 255, 255, 0, 0, 0, 0]),
    ("HEARTBEAT", 4, &[0, 1, 0, 8, 1, 2, 3, 4]),
    ("HEARTBEAT-ACK", 5, &[0, 1, 0, 8, 1, 2, 3, 4]),
    ("ABORT", 6, &[]),
    ("SHUTDOWN", 7, &[0, 0, 0, 1]),
    ("SHUTDOWN-ACK", 8, &[]),
    ("ERROR", 9, &[0, 1, 0, 8, 0, 0, 0, 0]),
    ("COOKIE-ECHO", 10, b"cook"),
    ("COOKIE-ACK", 11, &[]),
    ("SHUTDOWN-COMPLETE", 14, &[]),
];

/// Tag 1, a window of 64 KiB, one stream each way, first TSN 1.
const INIT: &[u8] = &[0, 0, 0, 1, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 1];

/// A usual verification tag: 0 for an INIT, else 1, which is every INIT's usual tag.
pub fn usual_tag(chunks: &str) -> u32 {
    u32::from(!chunks.starts_with("INIT") || chunks.starts_with("INIT-ACK"))
}

/// The chunks of `INIT`, `COOKIE-ECHO+DATA`, `ABORT:1`, `type-192=0102`; `data` is the last DATA chunk's.
pub fn build_chunks(text: &str, data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for chunk in text.split('+') {
        let (chunk, body) = chunk
            .split_once('=')
            .map_or((chunk, None), |(c, body)| (c, Some(body)));
        let (name, flags) = chunk.split_once(':').unwrap_or((chunk, "0"));
        let flags: u8 = flags
            .parse()
            .map_err(|_| format!("\"{flags}\" are no chunk flags"))?;
        let known = CHUNKS.iter().find(|(known, ..)| *known == name);
        let kind = known
            .map(|(_, kind, _)| *kind)
            .or_else(|| name.strip_prefix("type-").and_then(|number| number.parse().ok()));
        let kind = kind.ok_or_else(|| format!("\"{name}\" is no SCTP chunk"))?;
        let mut body = match body {
            Some(digits) => super::build::hex(digits)?,
            None => known.map_or(&[][..], |(.., body)| *body).to_vec(),
        };
        if kind == 0 {
            body.extend_from_slice(data);
        }
        bytes.extend([kind, flags]);
        bytes.extend((4 + body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Ok(bytes)
}

/// The chunks as text, and what the last one, if DATA, carries. `None`: they contradict themselves.
pub fn dissect_chunks(mut bytes: &[u8], line: &mut Line) -> Option<String> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (&[kind, flags, a, b], rest) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([a, b])).checked_sub(4)?;
        let padded = length.next_multiple_of(4);
        let body = rest.get(..length)?;
        if rest.get(length..padded)?.iter().any(|&padding| padding != 0) {
            return None;
        }
        bytes = &rest[padded..];
        let known = CHUNKS.iter().find(|(_, known, _)| *known == kind);
        let (mut text, usual) = match known {
            Some((name, _, usual)) => ((*name).to_owned(), *usual),
            None => (format!("type-{kind}"), &[][..]),
        };
        if flags != 0 {
            text.push_str(&format!(":{flags}"));
        }
        match body.strip_prefix(usual) {
            Some(data) if kind == 0 && bytes.is_empty() => super::dissect::print_payload(line, data),
            Some([]) => {}
            _ if kind == 0 => return None,
            _ => text.push_str(&format!("={}", super::dissect::digits(body))),
        }
        chunks.push(text);
    }
    (!chunks.is_empty()).then(|| chunks.join("+"))
}

/// CRC32c as RFC 9260 appendix A has it, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc))
    })
}

#[test]
fn the_crc_is_the_one_of_the_rfcs_examples() {
    // RFC 3720 §B.4.
    assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(crc32c(&counting(32)).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
}
