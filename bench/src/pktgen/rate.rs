//! How fast: packets a second, or a share of a line's rate, which is counted in bits on the wire.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What a frame takes on the wire beyond its bytes up to and without the FCS (IEEE 802.3): FCS 4, preamble and start
/// delimiter 8, inter-frame gap 12.
pub const WIRE_OVERHEAD: usize = 4 + 8 + 12;
/// Shortest Ethernet frame, FCS included.
pub const MIN_FRAME: usize = 64;

/// A line's speed in bits a second: `10G`, `25G`, `2.5G`, `100M`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line(pub f64);

impl Line {
    /// Frames a second that fill the line. `frame`: bytes of a frame with its FCS, as people name sizes: 64 to 9,216.
    ///
    /// 64 bytes at 10G are 14,880,952 a second, 128 bytes 8,445,945.
    pub fn packets(self, frame: f64) -> f64 {
        self.0 / ((frame + (WIRE_OVERHEAD - 4) as f64) * 8.0)
    }
}

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Packets a second.
    Packets(f64),
    /// A share of the line's rate, 0 to 1.
    Share(f64),
    /// As fast as the driver takes them.
    Max,
}

impl Rate {
    /// In packets a second of frames of on average `frame` bytes with FCS; `None` for `Max`.
    pub fn packets(self, line: Line, frame: f64) -> Option<f64> {
        match self {
            Self::Packets(packets) => Some(packets),
            Self::Share(share) => Some(share * line.packets(frame)),
            Self::Max => None,
        }
    }
}

/// What is no rate, and what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no {1}")]
pub struct BadRate(String, &'static str);

impl FromStr for Line {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        match scaled(text) {
            Some(bits) if bits >= 1e6 => Ok(Self(bits)),
            _ => Err(BadRate(
                text.to_owned(),
                "line speed: write bits a second, as 10G or 2.5G",
            )),
        }
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let bad = || {
            BadRate(
                text.to_owned(),
                "rate: write 250kpps, 1.5Mpps, 80% (of --line) or max",
            )
        };
        let word = text.trim();
        if word.eq_ignore_ascii_case("max") {
            return Ok(Self::Max);
        }
        if let Some(percent) = word.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
            let sound = percent > 0.0 && percent <= 100.0;
            return if sound {
                Ok(Self::Share(percent / 100.0))
            } else {
                Err(bad())
            };
        }
        let number = word.strip_suffix("pps").unwrap_or(word);
        match scaled(number) {
            Some(packets) if packets > 0.0 => Ok(Self::Packets(packets)),
            _ => Err(bad()),
        }
    }
}

/// A number with `k`, `M` or `G` behind it.
fn scaled(text: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, factor) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 1e3),
        'M' => (&text[..text.len() - 1], 1e6),
        'G' => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let number: f64 = digits.trim().parse().ok()?;
    number.is_finite().then_some(number * factor)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packets(packets) => write!(f, "{}", Pps(*packets)),
            Self::Share(share) => write!(f, "{:.3}% of the line", share * 100.0),
            Self::Max => f.write_str("max"),
        }
    }
}

/// Packets a second, for a person.
#[derive(Clone, Copy, Debug)]
pub struct Pps(pub f64);

impl fmt::Display for Pps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            packets if packets >= 1e6 => write!(f, "{:.3} Mpps", packets / 1e6),
            packets if packets >= 1e3 => write!(f, "{:.1} kpps", packets / 1e3),
            packets => write!(f, "{packets:.1} pps"),
        }
    }
}

macro_rules! from_text {
    ($($kind:ty),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(Line, Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_rates_count_preamble_gap_and_fcs() {
        let ten: Line = "10G".parse().unwrap();
        assert_eq!(ten.packets(64.0) as u64, 14_880_952);
        assert_eq!(ten.packets(128.0) as u64, 8_445_945);
        assert_eq!(ten.packets(1518.0) as u64, 812_743);
        assert_eq!("100G".parse::<Line>().unwrap().packets(64.0) as u64, 148_809_523);
        let half = "50%".parse::<Rate>().unwrap().packets(ten, 64.0).unwrap();
        assert_eq!(half as u64, 7_440_476);
    }

    #[test]
    fn rates_are_read_as_people_write_them_and_nonsense_is_refused_with_what_would_be_right() {
        assert_eq!("1.5Mpps".parse(), Ok(Rate::Packets(1.5e6)));
        assert_eq!("250k".parse(), Ok(Rate::Packets(250e3)));
        assert_eq!("max".parse(), Ok(Rate::Max));
        for bad in ["", "fast", "-1kpps", "0", "101%", "NaNpps", "0%", "inf"] {
            let error = bad.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("250kpps"), "{bad}: {error}");
        }
        assert!("10".parse::<Line>().is_err() && "x G".parse::<Line>().is_err());
    }
}
