//! What we promise, and whether the rows keep it. A claim without rows is neither: it was not measured.

use serde_json::Value;

use super::rows::{Rows, Spread};
use crate::compare::promises::{Figure, PROMISES, Promise};
use crate::nat::rows::{TARGETS, Target};

/// An established packet costs at most so many times the least that any NAT must do with it.
const FLOOR: f64 = 1.8;

/// A promise and what became of it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is promised.
    pub what: String,
    /// What was measured; `None` if nothing was.
    pub measured: Option<String>,
    /// Whether that is good enough.
    pub kept: bool,
}

impl Claim {
    fn new(what: String, measured: Option<(String, bool)>) -> Self {
        let kept = measured.as_ref().is_some_and(|(_, kept)| *kept);
        Self {
            what,
            measured: measured.map(|(text, _)| text),
            kept,
        }
    }
}

/// All claims, judged.
pub fn claims(rows: &Rows) -> Vec<Claim> {
    // As a gateway is without further options; of several runs the last.
    let usual =
        |row: &&Value| row["files"] != true && (row["pages"].is_null() || row["pages"] == "transparent");
    let nat = |name: &str| {
        let runs = rows.nat().filter(usual);
        runs.filter(|row| row["workload"] == name).last()
    };
    let number = |row: &Value, pointer: &str| row.pointer(pointer).and_then(Value::as_f64);
    let mut claims = Vec::new();
    for Target { name, target, .. } in TARGETS {
        let row = nat(name);
        let measured = row.and_then(|row| number(row, "/ns_per_packet/p50"));
        claims.push(Claim::new(
            format!("nat {name}: at most {target:.0} ns a packet"),
            measured.map(|ns| (format!("{ns:.1} ns"), ns <= target)),
        ));
        if !name.starts_with("established") {
            continue;
        }
        let ratio = row.and_then(|row| number(row, "/ratio_to_floor"));
        claims.push(Claim::new(
            format!("nat {name}: at most {FLOOR} times its floor"),
            ratio.map(|ratio| (format!("{ratio:.2} times"), ratio <= FLOOR)),
        ));
    }
    claims.extend(PROMISES.map(|promise| {
        Claim::new(
            format!("compare, most services: {promise}, in Mpps per gateway core"),
            at_most_services(rows, promise).map(|measured| {
                let Spread { min, median, max } = measured;
                let text = format!("{median:.2} ({min:.2}–{max:.2})");
                (text, promise.kept(measured))
            }),
        )
    }));
    claims
}

/// With the most services that all it needs was measured with.
fn at_most_services(rows: &Rows, promise: Promise) -> Option<Spread> {
    let mut counts: Vec<u64> = rows
        .values("compare", "/services")
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    counts.sort_unstable();
    let measured = |services: u64| {
        let figures: Vec<Figure<'_>> = rows
            .of_kind("compare")
            .filter(|row| row["services"] == services)
            .filter_map(|row| {
                Some(Figure {
                    gateway: row["row"]["gateway"].as_str()?,
                    turn: row["row"]["repeat"].as_u64()?,
                    mpps: row["row"]["mpps_per_gateway_core"].as_f64()?,
                })
            })
            .collect();
        promise.measured(&figures)
    };
    counts.into_iter().rev().find_map(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &str) -> Vec<Claim> {
        let mut rows = Rows::default();
        rows.take("test", lines).unwrap();
        claims(&rows)
    }

    #[test]
    fn a_claim_is_kept_missed_or_not_measured() {
        let claims = judged(
            r#"{"workload":"established-1k","ns_per_packet":{"min":20,"p50":24.9,"max":30},"ratio_to_floor":2.0}
               {"workload":"established-100k","pages":"transparent","ns_per_packet":{"min":20,"p50":40,"max":50}}
               {"workload":"established-100k","pages":"small","ns_per_packet":{"min":20,"p50":80,"max":90}}
               {"workload":"established-100k","files":true,"ns_per_packet":{"min":20,"p50":30,"max":50}}"#,
        );
        let of = |what: &str| claims.iter().find(|claim| claim.what.contains(what)).unwrap();
        assert!(of("established-1k: at most 25 ns").kept);
        assert!(!of("established-1k: at most 1.8 times").kept);
        let missed = of("established-100k: at most 32");
        assert_eq!(
            (missed.kept, missed.measured.as_deref()),
            (false, Some("40.0 ns"))
        );
        assert_eq!(of("established-10M: at most 70").measured, None);
    }

    #[test]
    fn the_kernel_is_compared_with_at_the_most_services_turn_by_turn() {
        let row = |services: u32, turn: u32, gateway: &str, per_core: f64| {
            format!(
                r#"{{"kind":"compare","services":{services},"row":{{"gateway":"{gateway}","repeat":{turn},"mpps_per_gateway_core":{per_core}}}}}"#
            )
        };
        let lines = [
            row(1, 0, "af_xdp", 9.0),
            row(1, 0, "nftables", 1.0),
            row(10_000, 0, "nftables", 0.5),
            row(10_000, 0, "af_xdp", 0.8),
        ];
        let claims = judged(&lines.join("\n"));
        let claim = claims
            .iter()
            .find(|claim| claim.what.contains("nftables"))
            .unwrap();
        assert_eq!(
            (claim.measured.as_deref(), claim.kept),
            (Some("1.60 (1.60–1.60)"), true)
        );
    }
}
