//! What to send and where, as a file says it (`configs/pktgen/`) and as arguments change it.

use std::path::Path;

use serde::Deserialize;
use sluice_dataplane::addr::Mac;

use super::layout::Family;
use super::lives::Script;
use super::picks::{Picks, Weighted};
use super::ports::{Driver, Port};
use super::rate::{Line, Rate};
use super::schedule::{Phase, Schedule};
use super::search::Goal;
use super::template::{MAX_FRAME, Template};
use super::trial::{Kind, Tcp, Traffic};
use super::world::World;

/// Most flows: TCP's sequence numbers have 21 bits for the flow.
pub const MAX_FLOWS: u32 = 1 << 21;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// The NIC port where clients are.
    pub clients: Port,
    /// The NIC port where pods are.
    pub pods: Port,
    /// Who speaks with whom.
    pub world: World,
    /// Flows, 1 to 2,097,152.
    #[serde(default = "flows")]
    pub flows: u32,
    /// Which flow is next.
    #[serde(default)]
    pub pick: Pick,
    /// What is sent.
    pub traffic: Vec<Part>,
    /// Whether pods answer datagrams, so that both directions are translated.
    #[serde(default = "yes")]
    pub answer: bool,
    /// What percentages are of.
    #[serde(default = "line")]
    pub line: Line,
    /// How fast.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Or how fast in turn.
    #[serde(default)]
    pub phases: Vec<Ramp>,
    /// Seconds of a trial.
    #[serde(default = "seconds")]
    pub seconds: f64,
    /// How often.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Every flow is opened by a packet of its own before, at this many a second; 0: not.
    #[serde(default = "open_rate")]
    pub open_rate: f64,
    /// Search for the rate instead of sending at one.
    #[serde(default)]
    pub search: Option<Search>,
    /// Frames of 2,048 bytes for both ports.
    #[serde(default = "frames")]
    pub frames: usize,
    /// The CPU to stay on.
    #[serde(default)]
    pub core: Option<usize>,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
}

/// How the next flow is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pick {
    /// Any.
    #[default]
    Uniform,
    /// One after the other.
    InTurn,
    /// By Zipf's law with this exponent.
    Zipf(f64),
}

/// A part of the traffic: `udp` or `tcp`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// How much of it, beside the others.
    #[serde(default = "weight")]
    pub weight: f64,
    /// Datagrams in frames of this many bytes with FCS, 64 (IPv6: 84) to 1,518, or `imix`.
    #[serde(default)]
    pub udp: Option<Size>,
    /// Connections: each due arrival is a whole one.
    #[serde(default)]
    pub tcp: Option<Connections>,
}

/// How TCP connections look.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connections {
    /// Requests of each; 0 for handshake and close alone.
    pub requests: u8,
    /// Bytes of a request's frame with FCS, 88 (IPv6: 108) to 1,518.
    pub size: usize,
}

impl Part {
    /// Which it is; `None` if both or neither.
    const fn what(&self) -> Option<What> {
        match (self.udp, self.tcp) {
            (Some(size), None) => Some(What::Udp(size)),
            (None, Some(connections)) => Some(What::Tcp(connections)),
            _ => None,
        }
    }
}

/// Either.
enum What {
    Udp(Size),
    Tcp(Connections),
}

/// Size of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// All alike.
    Bytes(usize),
    /// A mix by name.
    Named(Mix),
}

/// Mixes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// 64, 570 and 1,518 bytes as 7 : 4 : 1, 353.8 on average: what operators quote. IPv6: 84 instead of 64.
    Imix,
}

/// The shortest is the shortest there can be.
const fn imix(family: Family) -> [(usize, f64); 3] {
    [(family.min_udp_frame(), 7.0), (570, 4.0), (1_518, 1.0)]
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ramp {
    /// Rate at its start.
    pub from: Rate,
    /// Rate at its end; as at its start if not said.
    #[serde(default)]
    pub to: Option<Rate>,
    /// How long.
    pub seconds: f64,
}

/// A search.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Search {
    /// Loss that passes, for each answer sought, in per cent: 0 is the NDR.
    pub ndr_percent: f64,
    /// The PDR's.
    pub pdr_percent: f64,
    /// How far apart the bounds may be, in per cent of the upper.
    pub precision_percent: f64,
    /// Most trials for each.
    pub trials: usize,
    /// The highest rate tried; what a flood brought through, if not said.
    pub highest: Option<Rate>,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            ndr_percent: 0.0,
            // What FD.io's CSIT reports.
            pdr_percent: 0.5,
            precision_percent: 1.0,
            trials: 24,
            highest: None,
        }
    }
}

impl Search {
    /// Its two goals by name.
    pub fn goals(self) -> [(&'static str, Goal); 2] {
        [("NDR", self.ndr_percent), ("PDR", self.pdr_percent)].map(|(name, percent)| {
            (
                name,
                Goal {
                    loss: percent / 100.0,
                    precision: self.precision_percent / 100.0,
                    trials: self.trials,
                },
            )
        })
    }
}

/// Why a plan was refused: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    /// It is not what a plan looks like.
    #[error("{0}: {1}")]
    Parse(String, String),
    /// It cannot be done.
    #[error("{0}")]
    Bad(String),
}

impl Plan {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| PlanError::Read(name.clone(), error))?;
        let plan = Self::parse(&text).map_err(|error| PlanError::Parse(name.clone(), error.to_string()))?;
        plan.check()
            .map_err(|error| PlanError::Parse(name, error.to_string()))?;
        Ok(plan)
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        serde_saphyr::from_str(text).map_err(|error| PlanError::Bad(error.to_string()))
    }

    /// What of it cannot be.
    pub fn check(&self) -> Result<(), PlanError> {
        let bad = |what: &str| Err(PlanError::Bad(what.to_owned()));
        if self.flows == 0 || self.flows > MAX_FLOWS {
            return bad("flows: write 1 to 2097152");
        }
        if let Err(what) = self.world.check(self.flows as usize) {
            return bad(&format!("world: {what}"));
        }
        if self.traffic.is_empty() {
            return bad("traffic: say what to send, as - udp: 64");
        }
        if self.repeats == 0 || !(self.seconds > 0.0 && self.seconds <= 86_400.0) {
            return bad("repeats must be at least 1, seconds above 0 and at most 86400");
        }
        if (self.clients.driver == Driver::Memory) != (self.pods.driver == Driver::Memory) {
            return bad("driver memory: both ports or none, it is one gateway that is between");
        }
        let modes = usize::from(self.rate.is_some())
            + usize::from(!self.phases.is_empty())
            + usize::from(self.search.is_some());
        if modes != 1 {
            return bad("say one of rate, phases and search");
        }
        if self
            .phases
            .iter()
            .any(|ramp| ramp.from == Rate::Max || ramp.to == Some(Rate::Max) || ramp.seconds <= 0.0)
        {
            return bad("phases: rates must be numbers and seconds above 0");
        }
        let family = self.world.family();
        let (udp, tcp) = (family.min_udp_frame(), family.min_tcp_frame());
        let mut scripts = 0;
        for part in &self.traffic {
            if part.weight.is_nan() || part.weight <= 0.0 {
                return bad("traffic: a weight must be above 0");
            }
            let Some(what) = part.what() else {
                return bad("traffic: each part is udp or tcp");
            };
            match what {
                What::Udp(Size::Bytes(size)) if !(udp..=MAX_FRAME).contains(&size) => {
                    return bad(&format!(
                        "traffic: udp: write {udp} to 1518 bytes (with FCS), or imix"
                    ));
                }
                What::Udp(_) => {}
                What::Tcp(Connections { requests, size }) => {
                    scripts += 1;
                    if !(tcp..=MAX_FRAME).contains(&size) {
                        return bad(&format!(
                            "traffic: tcp: write a size of {tcp} to 1518 bytes (with FCS)"
                        ));
                    }
                    if !script(family, requests, size).fits() {
                        return bad("traffic: tcp: all requests of a connection may have 2046 bytes of data");
                    }
                }
            }
        }
        if scripts > 1 {
            return bad("traffic: one kind of TCP connections at a time");
        }
        self.gateway().map(drop)
    }

    fn gateway(&self) -> Result<Mac, PlanError> {
        let bad = || {
            PlanError::Bad(
                "clients.gateway: write the gateway's MAC address on that link, as 02:00:00:00:00:01"
                    .to_owned(),
            )
        };
        if self.clients.driver == Driver::Memory {
            return Ok(crate::gateway::CLIENT_SIDE);
        }
        let text = self.clients.gateway.as_deref().ok_or_else(bad)?;
        let mut mac = [0; 6];
        let mut words = text.split(':');
        for byte in &mut mac {
            *byte = words
                .next()
                .and_then(|word| u8::from_str_radix(word, 16).ok())
                .ok_or_else(bad)?;
        }
        if words.next().is_some() {
            Err(bad())
        } else {
            Ok(Mac(mac))
        }
    }

    /// Bytes of an average frame with FCS, connections counted by their requests.
    pub fn mean_size(&self) -> f64 {
        let (mut bytes, mut weights) = (0.0, 0.0);
        for part in &self.traffic {
            let size = match (part.udp, part.tcp) {
                (Some(Size::Bytes(size)), _) | (None, Some(Connections { size, .. })) => size as f64,
                (None, None) => continue,
                (Some(Size::Named(Mix::Imix)), _) => {
                    let mix = imix(self.world.family());
                    mix.iter().map(|(size, share)| *size as f64 * share).sum::<f64>() / 12.0
                }
            };
            bytes += size * part.weight;
            weights += part.weight;
        }
        bytes / weights
    }

    /// Flows that a gateway has to remember: those of UDP and those of TCP.
    pub fn tracked(&self) -> usize {
        let tcp = self.traffic.iter().any(|part| part.tcp.is_some());
        let udp = self.traffic.iter().any(|part| part.udp.is_some());
        self.flows as usize * (usize::from(tcp) + usize::from(udp))
    }

    /// A rate in packets a second; `None` for the highest.
    pub fn packets(&self, rate: Rate) -> Option<f64> {
        rate.packets(self.line, self.mean_size())
    }

    /// When packets are due, from `now` on, as `rate` or `phases` say.
    pub fn schedule(&self, now: u64) -> Schedule {
        if let Some(rate) = self.rate {
            return Schedule::even(self.packets(rate), now, (self.seconds * 1e9) as u64);
        }
        let phases = self.phases.iter().filter_map(|ramp| {
            let from = self.packets(ramp.from)?;
            Some(Phase {
                from,
                to: ramp.to.and_then(|to| self.packets(to)).unwrap_or(from),
                length: ramp.seconds * 1e9,
            })
        });
        Schedule::phases(phases.collect(), now)
    }

    /// What is sent, from a station with this MAC address.
    pub fn traffic(&self, from: Mac) -> Result<Traffic, PlanError> {
        self.check()?;
        let to = self.gateway()?;
        let (mut weights, mut kinds) = (Vec::new(), Vec::new());
        let family = self.world.family();
        let (mut requests, mut request_size) = (0, family.min_tcp_frame());
        for part in &self.traffic {
            match part.what() {
                None => {}
                Some(What::Udp(Size::Bytes(size))) => {
                    weights.push(part.weight);
                    kinds.push(Kind::Udp(Template::udp(family, from, to, size)));
                }
                Some(What::Udp(Size::Named(Mix::Imix))) => {
                    for (size, share) in imix(family) {
                        weights.push(part.weight * share / 12.0);
                        kinds.push(Kind::Udp(Template::udp(family, from, to, size)));
                    }
                }
                Some(What::Tcp(connections)) => {
                    (requests, request_size) = (connections.requests, connections.size);
                    weights.push(part.weight);
                    kinds.push(Kind::Life);
                }
            }
        }
        Ok(Traffic {
            world: self.world.clone(),
            flows: self.flows,
            picks: match self.pick {
                Pick::Uniform => Picks::Uniform,
                Pick::InTurn => Picks::InTurn(0),
                Pick::Zipf(s) => Picks::zipf(self.flows as usize, s),
            },
            mix: (Weighted::new(&weights), kinds),
            tcp: Tcp {
                script: script(family, requests, request_size),
                empty: Template::tcp(family, from, to, None),
                request: Template::tcp(family, from, to, Some(request_size)),
                // As long as a first SYN's timer (RFC 6298 §2): what takes longer would be sent again.
                patience: 1_000_000_000,
            },
            answer: self.answer,
            seed: self.seed,
        })
    }
}

fn script(family: Family, requests: u8, size: usize) -> Script {
    let template = Template::tcp(family, Mac::default(), Mac::default(), Some(size));
    Script {
        requests,
        bytes: template.tcp_payload() as u32,
    }
}

const fn flows() -> u32 {
    1_000
}

const fn yes() -> bool {
    true
}

const fn line() -> Line {
    Line(10e9)
}

const fn seconds() -> f64 {
    5.0
}

const fn one() -> usize {
    1
}

const fn open_rate() -> f64 {
    100_000.0
}

const fn frames() -> usize {
    16_384
}

const fn weight() -> f64 {
    1.0
}

#[cfg(test)]
mod tests;
