//! Vector files: what must happen, as a person writes it. `vectors/mod.rs` says what is in one.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::line::{Line, split};
use super::records::{Changes, Records};
use super::station::Port;

/// One vector.
#[derive(Clone, Debug)]
pub struct Vector {
    /// The folder's name: what must happen.
    pub name: String,
    /// The file, as errors name it.
    pub file: PathBuf,
    /// Rule IDs of the first lines.
    pub rules: Vec<String>,
    /// The world it happens in.
    pub setup: Setup,
    /// Tables to begin with.
    pub tables: Vec<Changes>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// Where the world of a vector is not as usual.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Flows a worker can hold.
    pub flows: Option<usize>,
    /// New flows a worker may open in a second.
    pub flows_per_second: Option<u32>,
    /// Source ports for SNAT, of all workers together.
    pub snat_ports: Option<std::ops::RangeInclusive<u16>>,
    /// Frames of a worker.
    pub frames: Option<usize>,
    /// Letters a worker's mailbox holds.
    pub letters: Option<usize>,
    /// Letters the steward's mailbox holds.
    pub steward: Option<usize>,
    /// Packets each NIC port's ring holds.
    pub ring: Option<usize>,
    /// Largest IP packet of the `pods` port.
    pub mtu: Option<usize>,
    /// CT-15's switch is off.
    pub no_midstream_pickup: bool,
    /// There is no host port.
    pub no_host: bool,
    /// The port at whose other side nobody is.
    pub no_peer: Option<Port>,
    /// There is no default route.
    pub no_default_route: bool,
    /// Next hops are not known beforehand: the steward's ARP finds them.
    pub resolve: bool,
    /// The process is killed on the way: flows are kept in files.
    pub restarts: bool,
    /// The ways it can hold, where not all, and why.
    pub only: Option<(Vec<String>, String)>,
}

/// An action and what must come of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Line of the action.
    pub at: usize,
    /// What is done.
    pub action: Action,
    /// What must come of it, each with its line.
    pub expected: Vec<(usize, Expected)>,
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Packets arrive, one after the other, before anything else happens.
    Arrive(Vec<Arrival>),
    /// An update is committed.
    Tables(Changes),
    /// Time passes: seconds.
    Wait(u32),
    /// The steward forgets this neighbour, and meets it again.
    Forget(Port, IpAddr),
    /// The process is killed, and another adopts its flows; control has not spoken to it.
    Restart,
    /// Control tells the process all that it told the one before.
    Control,
}

/// A packet that arrives.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its line.
    pub at: usize,
    /// On this NIC port.
    pub port: Port,
    /// On this worker's queue of it, where that matters.
    pub queue: Option<usize>,
    /// The packet.
    pub line: Line,
}

/// What must come of it.
#[derive(Clone, Debug)]
pub enum Expected {
    /// This packet leaves on this NIC port.
    Leave(Port, Line),
    /// The packet that arrived leaves on the host port, unchanged.
    Punt,
    /// No packet leaves and none is dropped.
    Nothing,
    /// A packet is dropped, and this counter says so.
    Drop(String),
    /// A variable's value is among these (or among none of these): values, or ranges of numbers.
    Among(String, bool, Vec<String>),
}

/// Where a vector file is wrong.
#[derive(Debug)]
pub struct Mistake {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

impl Vector {
    /// Reads `vectors/NAME/vector.txt`.
    pub fn load(folder: &Path) -> Result<Self, Mistake> {
        let name = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let path = folder.join("vector.txt");
        // As a person at the workspace's root would name it.
        let file: PathBuf = path.iter().skip_while(|part| *part != "dataplane").collect();
        let mistake = |line, what| Mistake {
            file: file.clone(),
            line,
            what,
        };
        let text = std::fs::read_to_string(&path).map_err(|error| mistake(0, error.to_string()))?;
        let common = folder.with_file_name("_common");
        let mut reader = Reader {
            common,
            records: Records::default(),
            vector: Self::empty(name, file.clone()),
        };
        let comment: Vec<_> = text.lines().take_while(|line| line.starts_with('#')).collect();
        reader.vector.rules = rules(&comment.join(" "));
        if comment.len() < 2 || reader.vector.rules.is_empty() {
            return Err(mistake(
                1,
                "begin with comment lines: what must happen, then the rule IDs".to_owned(),
            ));
        }
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                reader.line(i + 1, line).map_err(|what| mistake(i + 1, what))?;
            }
        }
        for step in &reader.vector.steps {
            if matches!(step.action, Action::Arrive(_)) && step.expected.is_empty() {
                return Err(mistake(
                    step.at,
                    "say what must come of it; `nothing` if nothing must".to_owned(),
                ));
            }
        }
        Ok(reader.vector)
    }

    fn empty(name: String, file: PathBuf) -> Self {
        Self {
            name,
            file,
            rules: Vec::new(),
            setup: Setup::default(),
            tables: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// Words like `VD-1`, `RFC` or `§3.3`.
fn rules(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || ",;:()".contains(c));
    let is_rule = |word: &&str| {
        let id = word.split_once('-').is_some_and(|(letters, digits)| {
            letters.len() >= 2
                && letters.chars().all(|c| c.is_ascii_uppercase())
                && digits.starts_with(|c: char| c.is_ascii_digit())
        });
        id || word.starts_with('§') || *word == "RFC"
    };
    words
        .filter(is_rule)
        .map(|word| word.trim_end_matches('.').to_owned())
        .collect()
}

struct Reader {
    common: PathBuf,
    records: Records,
    vector: Vector,
}

impl Reader {
    fn line(&mut self, at: usize, text: &str) -> Result<(), String> {
        let (word, rest) = split(text);
        let (second, after) = split(rest);
        if second == ">" {
            return self.arrive(at, word, after);
        }
        if second == "<" {
            let port = Port::named(word)?;
            let (times, line) = times(after)?;
            let line = Line::parse(line)?;
            return (0..times).try_for_each(|_| self.expect(at, Expected::Leave(port, line.clone())));
        }
        match word {
            "tables" => {
                let changes = self.records.transaction(rest)?;
                self.act(at, Action::Tables(changes))
            }
            "wait" => {
                let seconds = rest.strip_suffix('s').and_then(|n| n.parse().ok());
                self.act(at, Action::Wait(seconds.ok_or("write wait 31s")?))
            }
            "restart" if rest.is_empty() => {
                self.vector.setup.restarts = true;
                self.act(at, Action::Restart)
            }
            "forget" => {
                let (port, address) = split(rest);
                let address = address
                    .parse()
                    .map_err(|_| format!("\"{address}\" is no address"))?;
                self.act(at, Action::Forget(Port::named(port)?, address))
            }
            "control" if rest.is_empty() => self.act(at, Action::Control),
            "nothing" => self.expect(at, Expected::Nothing),
            "punt" => {
                let (times, _) = times(rest)?;
                (0..times).try_for_each(|_| self.expect(at, Expected::Punt))
            }
            "drop" => {
                let (times, reason) = times(rest)?;
                (0..times).try_for_each(|_| self.expect(at, Expected::Drop(reason.to_owned())))
            }
            _ if word.starts_with('$') => {
                let (not, set) = rest.strip_prefix("not ").map_or((false, rest), |set| (true, set));
                let set = set.strip_prefix("in {").and_then(|set| set.strip_suffix('}'));
                let set = set.ok_or("write $NAME in {…} or $NAME not in {…}")?;
                let set = set.split(',').map(|value| value.trim().to_owned()).collect();
                self.expect(at, Expected::Among(word[1..].to_owned(), !not, set))
            }
            _ if !self.vector.steps.is_empty() => Err(format!("\"{text}\" is no step")),
            "use" => {
                let path = self.common.join(rest).with_extension("txt");
                let text = std::fs::read_to_string(&path).map_err(|e| format!("_common/{rest}.txt: {e}"))?;
                let lines = text
                    .lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty() && !line.starts_with('#'));
                lines
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
                    .iter()
                    .try_for_each(|line| self.record(line))
            }
            "capacity" | "without" | "mtu" | "resolve" | "only" => self.setup(word, rest),
            _ => self.record(text),
        }
    }

    fn arrive(&mut self, at: usize, port: &str, text: &str) -> Result<(), String> {
        let (port, queue) = match port.split_once('/') {
            None => (port, None),
            Some((port, queue)) => (
                port,
                Some(queue.parse().map_err(|_| format!("\"{queue}\" is no queue"))?),
            ),
        };
        let (times, line) = times(text)?;
        let arrival = Arrival {
            at,
            port: Port::named(port)?,
            queue,
            line: Line::parse(line)?,
        };
        let arrivals = std::iter::repeat_n(arrival, times);
        match self.vector.steps.last_mut() {
            Some(Step {
                action: Action::Arrive(together),
                expected,
                ..
            }) if expected.is_empty() => {
                together.extend(arrivals);
            }
            _ => {
                let action = Action::Arrive(arrivals.collect());
                self.vector.steps.push(Step {
                    at,
                    action,
                    expected: Vec::new(),
                });
            }
        }
        Ok(())
    }

    fn act(&mut self, at: usize, action: Action) -> Result<(), String> {
        self.vector.steps.push(Step {
            at,
            action,
            expected: Vec::new(),
        });
        Ok(())
    }

    fn expect(&mut self, at: usize, expected: Expected) -> Result<(), String> {
        let step = self.vector.steps.last_mut().ok_or("nothing has happened yet")?;
        step.expected.push((at, expected));
        Ok(())
    }

    fn record(&mut self, text: &str) -> Result<(), String> {
        let record = self.records.put(text)?;
        self.vector.tables.push(Changes {
            deletes: Vec::new(),
            puts: vec![record],
        });
        Ok(())
    }

    fn setup(&mut self, word: &str, rest: &str) -> Result<(), String> {
        let setup = &mut self.vector.setup;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |text: &str| {
            text.parse()
                .map(Some)
                .map_err(|_| format!("\"{text}\" is no number"))
        };
        match (word, &words[..]) {
            ("capacity", ["flows", n]) => setup.flows = number(n)?,
            ("capacity", ["flows-per-second", n]) => setup.flows_per_second = number(n)?.map(|n| n as u32),
            ("capacity", ["frames", n]) => setup.frames = number(n)?,
            ("capacity", ["letters", n]) => setup.letters = number(n)?,
            ("capacity", ["steward", n]) => setup.steward = number(n)?,
            ("capacity", ["ring", n]) => setup.ring = number(n)?,
            ("capacity", ["snat-ports", range]) => {
                let bounds = range
                    .split_once('-')
                    .and_then(|(a, b)| Some(a.parse().ok()?..=b.parse().ok()?));
                setup.snat_ports = Some(bounds.ok_or("write capacity snat-ports FIRST-LAST")?);
            }
            ("mtu", [n]) => setup.mtu = number(n)?,
            ("without", ["midstream-pickup"]) => setup.no_midstream_pickup = true,
            ("without", ["host"]) => setup.no_host = true,
            ("without", ["peer", port]) => setup.no_peer = Some(Port::named(port)?),
            ("without", ["default-route"]) => setup.no_default_route = true,
            ("resolve", []) => setup.resolve = true,
            ("only", _) => {
                let (ways, reason) = rest.split_once(':').ok_or("write only WAY, WAY: REASON")?;
                let ways = ways.split(',').map(|way| way.trim().to_owned()).collect();
                setup.only = Some((ways, reason.trim().to_owned()));
            }
            _ => return Err(format!("\"{word} {rest}\" is no part of a vector's world")),
        }
        Ok(())
    }
}

/// `x3 TEXT`: three times.
fn times(text: &str) -> Result<(usize, &str), String> {
    let (word, rest) = split(text);
    match word.strip_prefix('x').and_then(|n| n.parse().ok()) {
        Some(times) => Ok((times, rest)),
        None => Ok((1, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("dataplane/name");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("vector.txt"), text).unwrap();
        Vector::load(&folder).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_in_a_vector_is_told_with_its_file_and_line() {
        for (text, message) in [
            ("client > udp", "1: begin with comment lines"),
            ("# What.\n# VD-1\nuse nowhere\n", "3: _common/nowhere.txt"),
            (
                "# What.\n# VD-1\nwan > udp 1.1.1.1:1 > 2.2.2.2:2\n",
                "3: \"wan\" is no NIC port",
            ),
            (
                "# What.\n# VD-1\nclient > udp 1.1.1.1:1 > 2.2.2.2:2\nwait 1s",
                "3: say what must come of it",
            ),
            (
                "# What.\n# VD-1\npods < udp 1.1.1.1:1 > 2.2.2.2:2\n",
                "3: nothing has happened yet",
            ),
            (
                "# What.\n# VD-1\nservice a tcp blue\n",
                "3: \"blue\" says nothing about a service",
            ),
            (
                "# What.\n# VD-1\nwait 1s\nservice a tcp\n",
                "4: \"service a tcp\" is no step",
            ),
        ] {
            let told = mistake(text);
            assert!(
                told.starts_with(&format!("dataplane/name/vector.txt:{message}")),
                "{told}"
            );
        }
    }
}
