//! The kernel with the rules that a real kube-proxy 1.36.2 wrote (`rulesets/`, as `nft list ruleset` printed them), and
//! our dataplane with the same Service: live packets from every kind of source to every frontend come to the same end,
//! but where we differ on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::cluster::{Cluster, NODE, STATIONS, Station, has_nftables};
use crate::probe::{Probe, Seen, Watch, What};
use crate::sandbox::sandboxed;
use crate::variants::{FRONTENDS, SOURCES, VARIANTS, tables};

/// Half a minute on an idle machine; what has no processor to itself takes many times as long.
const LIMIT: Duration = Duration::from_secs(600);
/// Probes of a case to learn its verdict, sent up to three times each; as many as our limit of refusals to one client lets
/// through for all cases.
const FIRST: usize = 4;
/// Further ones where it is forwarded, until each has arrived on however busy a machine: one of four endpoints is missed in one of 25 million cases.
const MORE: usize = 60;

/// Cases that there are at least of every kind.
const LEAST: usize = 20;

/// Families that both gateways are asked in: 0 is IPv4, 1 IPv6.
const FAMILIES: &[usize] = &[0, 1];

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Forward,
    Reject,
    Drop,
    PassedOn,
    /// The node's own stack answers.
    Host,
}

/// What became of the packets of a case: to which endpoints they came, from which sources, and whether the answers came
/// from whom was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    verdicts: BTreeSet<Verdict>,
    endpoints: BTreeMap<&'static str, BTreeSet<String>>,
    answered: bool,
}

/// Variant, family, source, frontend.
type Case = (&'static str, usize, &'static str, &'static str);

#[test]
fn live_packets_come_to_the_same_end_as_with_kube_proxys_rules() {
    sandboxed(
        "kernel::live_packets_come_to_the_same_end_as_with_kube_proxys_rules",
        LIMIT,
        || {
            if !has_nftables() {
                eprintln!("skipped: 1 (kernel: nft is not installed, or this kernel has no nftables)");
                return;
            }
            let cluster = Cluster::new();
            let (mut kernel, mut ours) = (BTreeMap::new(), BTreeMap::new());
            let mut asked = Asked::default();
            let watch = Watch::start(cluster.stations.iter().copied().chain([cluster.kernel()]));
            for (variant, rules, _) in VARIANTS {
                cluster.load(rules);
                kernel.extend(asked.outcomes(variant, &watch, &cluster.stations, cluster.kernel()));
            }
            let watch = Watch::start(cluster.stations.iter().copied().chain([cluster.sluice()]));
            for (variant, _, says) in VARIANTS {
                let _gateway = cluster.start(&tables(says));
                ours.extend(asked.outcomes(variant, &watch, &cluster.stations, cluster.sluice()));
            }
            assert_tells(&kernel);
            compare(&kernel, &ours);
        },
    );
}

/// The kernel's cases alone are as different as they must be: nothing that was sent came to nothing unseen.
fn assert_tells(kernel: &BTreeMap<Case, Outcome>) {
    let with = |verdict| {
        let has = |outcome: &&Outcome| outcome.verdicts.contains(&verdict);
        kernel.values().filter(has).count()
    };
    let all = [
        Verdict::Forward,
        Verdict::Reject,
        Verdict::Drop,
        Verdict::PassedOn,
        Verdict::Host,
    ];
    let counts = all.map(|verdict| (verdict, with(verdict)));
    eprintln!("kernel: {counts:?}");
    for (verdict, count) in counts {
        assert!(count >= LEAST, "{verdict:?} in {count} cases only");
    }
    let endpoints = |outcome: &&Outcome| outcome.answered && outcome.endpoints.len() == 4;
    assert!(
        kernel.values().filter(endpoints).count() >= LEAST,
        "all four endpoints answer"
    );
}

fn compare(kernel: &BTreeMap<Case, Outcome>, ours: &BTreeMap<Case, Outcome>) {
    let (mut same, mut purpose, mut differ) = (0, BTreeMap::new(), Vec::new());
    for (case, theirs) in kernel {
        let ours = &ours[case];
        if ours == theirs || (case.0.contains("affinity") && ours.alike() == theirs.alike()) {
            same += 1;
        } else if let Some(reason) = on_purpose(case, theirs, ours) {
            *purpose.entry(reason).or_insert(0) += 1;
        } else {
            differ.push(format!("{case:?}:\n  kernel {theirs}\n  ours   {ours}"));
        }
    }
    eprintln!(
        "kernel: {} cases, {same} the same; different on purpose: {purpose:?}",
        kernel.len()
    );
    assert!(
        differ.is_empty(),
        "{} cases differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
}

/// Where we differ on purpose (semantics §14), and why.
fn on_purpose(
    (variant, _, source, frontend): &Case,
    theirs: &Outcome,
    ours: &Outcome,
) -> Option<&'static str> {
    let once = ours.verdicts == BTreeSet::from([Verdict::Forward]) && ours.endpoints.len() == 1;
    if variant.contains("affinity") && once && ours.verdicts == theirs.verdicts && ours.answered {
        return Some(
            "AFF-4: kube-proxy's memories of several frontends coexist, and a client comes to two endpoints",
        );
    }
    if *source == "node" && *frontend == "node port" && ours.verdicts == BTreeSet::from([Verdict::Host]) {
        return Some("the node's kernel keeps what is for its own addresses (README, limits)");
    }
    // A remote pod that reaches itself: kube-proxy sends it its own address, which it throws away.
    let others = |outcome: &Outcome| {
        let mut outcome = outcome.clone();
        let own = outcome.endpoints.remove("r1");
        outcome.answered = true;
        (outcome, own)
    };
    let ((theirs, their_own), (ours, our_own)) = (others(theirs), others(ours));
    let kept = |own: &Option<BTreeSet<String>>| own.as_ref().is_some_and(|seen| seen.contains("kept"));
    let hairpin = *source == "hairpin-remote"
        && theirs == ours
        && kept(&their_own)
        && our_own.is_some()
        && !kept(&our_own);
    hairpin.then_some("TP-5: we translate every pod that reaches itself")
}

/// Who asks uses no port twice: what a gateway remembers of an earlier variant would answer.
#[derive(Default)]
struct Asked {
    ports: BTreeMap<(&'static str, usize), u16>,
}

impl Asked {
    fn outcomes(
        &mut self,
        variant: &'static str,
        watch: &Watch,
        stations: &[Station],
        node: Station,
    ) -> BTreeMap<Case, Outcome> {
        let mut cases = BTreeMap::new();
        for &family in FAMILIES {
            for (source, name) in SOURCES {
                let station = stations
                    .iter()
                    .find(|station| station.host.0 == name)
                    .copied()
                    .unwrap_or(node);
                for (frontend, addresses, port) in FRONTENDS {
                    if let Ok(at) = addresses[family]
                        .parse::<IpAddr>()
                        .map(|address| SocketAddr::new(address, port))
                        && at.is_ipv4() == (family == 0)
                    {
                        cases.insert((variant, family, source, frontend), (station, at));
                    }
                }
            }
        }
        let mut outcomes: BTreeMap<Case, Outcome> = self.ask(&cases, (FIRST, 3), watch);
        cases.retain(|case, _| outcomes[case].verdicts.contains(&Verdict::Forward));
        for (case, more) in self.ask(&cases, (MORE, 20), watch) {
            let outcome = outcomes.entry(case).or_default();
            outcome.verdicts.extend(more.verdicts);
            for (endpoint, sources) in more.endpoints {
                outcome.endpoints.entry(endpoint).or_default().extend(sources);
            }
            outcome.answered &= more.answered;
        }
        outcomes
    }

    /// Asks in turns, so that a limit of refusals leaves some for each.
    fn ask(
        &mut self,
        cases: &BTreeMap<Case, (Station, SocketAddr)>,
        (times, sends): (usize, usize),
        watch: &Watch,
    ) -> BTreeMap<Case, Outcome> {
        let mut probes = Vec::new();
        for _ in 0..times {
            for (case, (station, to)) in cases {
                let port = self.ports.entry((station.host.0, case.1)).or_insert(10_000);
                *port += 1;
                let from = SocketAddr::new(station.addresses[case.1].parse().unwrap(), *port);
                // Far enough apart for the number after each.
                let number = 0x5117_0000 + 16 * probes.len() as u32;
                probes.push((
                    *case,
                    Probe {
                        number,
                        station: *station,
                        from,
                        to: *to,
                    },
                ));
            }
        }
        let sent: Vec<Probe> = probes.iter().map(|(_, probe)| *probe).collect();
        let seen = watch.send(&sent, sends);
        let mut outcomes: BTreeMap<Case, Outcome> = BTreeMap::new();
        for (case, probe) in &probes {
            let nothing = Vec::new();
            let outcome = outcomes.entry(*case).or_insert_with(|| Outcome {
                answered: true,
                ..Outcome::default()
            });
            outcome.add(probe, seen.get(&probe.number).unwrap_or(&nothing));
        }
        for outcome in outcomes.values_mut() {
            // RJ-3: what a limit suppressed was refused all the same.
            if outcome.verdicts.contains(&Verdict::Reject) {
                outcome.verdicts.remove(&Verdict::Drop);
            }
        }
        outcomes
    }
}

impl Outcome {
    /// What two that remember clients have in common, each its own endpoint.
    fn alike(&self) -> (&BTreeSet<Verdict>, usize) {
        (&self.verdicts, self.endpoints.len())
    }

    fn add(&mut self, probe: &Probe, seen: &[Seen]) {
        let own = |seen: &&Seen| seen.at == probe.station.host.0;
        let answer = |what: What| {
            seen.iter()
                .filter(own)
                .any(|seen| seen.what == what && seen.from == probe.to)
        };
        let mut forwarded = false;
        for Seen { at, from, to, what } in seen {
            let endpoint = STATIONS
                .iter()
                .any(|(name, addresses)| name == at && addresses.iter().any(|a| a.parse() == Ok(to.ip())));
            if matches!(what, What::Syn(_)) && endpoint && to.port() == crate::exchange::PORT {
                forwarded = true;
                let source = if from.ip() == probe.from.ip() {
                    "kept".to_owned()
                } else {
                    from.ip().to_string()
                };
                self.endpoints.entry(at).or_default().insert(source);
            }
        }
        if forwarded {
            self.verdicts.insert(Verdict::Forward);
            // The node's own stack takes an answer before anybody can see it translated.
            self.answered &=
                NODE.iter().any(|node| node.parse() == Ok(probe.from.ip())) || answer(What::Accepted);
        } else if seen.iter().filter(own).any(|seen| seen.what == What::Unreachable) {
            self.verdicts.insert(Verdict::Reject);
        } else if answer(What::Reset) {
            self.verdicts.insert(Verdict::Host);
        } else if seen.iter().any(|seen| passed_on(probe, seen)) {
            self.verdicts.insert(Verdict::PassedOn);
        } else {
            self.verdicts.insert(Verdict::Drop);
        }
    }
}

/// Whether the probe came, as it was, to where everything goes that the gateway does not know; the client's own are not
/// taken for ones that came back.
fn passed_on(probe: &Probe, seen: &Seen) -> bool {
    let own = probe.station.host.0 == "client";
    seen.at == "client" && matches!(seen.what, What::Syn(hops) if !own || hops < 64)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = if self.answered { "" } else { ", not answered" };
        write!(f, "{:?} {:?}{answered}", self.verdicts, self.endpoints)
    }
}
