//! What is promised of gateways in Mpps per gateway core, and what became of it: turn by turn, since what disturbs one
//! gateway in a turn disturbs the others, too.

use std::fmt;

use crate::report::rows::Spread;

/// A promise about one of our drivers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// The driver, as its rows name it.
    pub ours: &'static str,
    /// Whose figure its own is divided by; `None`: it is the figure itself that is promised.
    pub theirs: Option<&'static str>,
    /// The least.
    pub least: f64,
}

/// All.
pub const PROMISES: [Promise; 3] = [
    Promise {
        ours: "af_xdp",
        theirs: Some("nftables"),
        least: 1.5,
    },
    Promise {
        ours: "af_xdp",
        theirs: Some("af_packet"),
        least: 1.3,
    },
    Promise {
        ours: "memif",
        theirs: None,
        least: 8.0,
    },
];

/// A gateway's figure in a turn.
#[derive(Clone, Copy, Debug)]
pub struct Figure<'a> {
    /// Which gateway.
    pub gateway: &'a str,
    /// Which turn.
    pub turn: u64,
    /// Mpps per gateway core.
    pub mpps: f64,
}

impl Promise {
    /// What was measured, of the turns that have all it needs; `None` if none has.
    pub fn measured(&self, figures: &[Figure<'_>]) -> Option<Spread> {
        let of = |gateway: &'static str| figures.iter().filter(move |figure| figure.gateway == gateway);
        let values = of(self.ours).filter_map(|ours| match self.theirs {
            None => Some(ours.mpps),
            Some(theirs) => {
                let theirs = of(theirs).find(|figure| figure.turn == ours.turn)?;
                Some(ours.mpps / theirs.mpps)
            }
        });
        Spread::of(values.collect())
    }

    /// Whether that is enough, by the median.
    pub fn kept(&self, measured: Spread) -> bool {
        measured.median >= self.least
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.theirs {
            Some(theirs) => write!(f, "{} ÷ {theirs}: at least {}", self.ours, self.least),
            None => write!(f, "{}: at least {} Mpps", self.ours, self.least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_the_same_turn_and_judged_by_the_median() {
        let figure = |gateway, turn, mpps| Figure { gateway, turn, mpps };
        let figures = [
            figure("af_xdp", 0, 3.0),
            figure("nftables", 0, 1.0),
            figure("nftables", 1, 2.0),
            figure("af_xdp", 1, 3.0),
            figure("af_xdp", 2, 1.0),
            figure("nftables", 2, 2.0),
            figure("af_xdp", 3, 100.0),
        ];
        let [kernel, packet, memif] = PROMISES;
        let measured = kernel.measured(&figures).unwrap();
        assert_eq!((measured.min, measured.median, measured.max), (0.5, 1.5, 3.0));
        assert!(kernel.kept(measured));
        assert_eq!(packet.measured(&figures), None);
        let alone = memif.measured(&[figure("memif", 0, 7.9)]).unwrap();
        assert!(!memif.kept(alone));
    }
}
