//! The page.

use std::fmt::Write as _;

use serde_json::Value;

use super::claims::{Claim, claims};
use super::plot::{Bar, Curve, bars, curves, short};
use super::rows::{Rows, Spread};
use crate::nat::rows::TARGETS;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em}table{border-collapse:collapse;margin:1em 0}
td,th{padding:.25em .5em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
.missed{color:#a40000;font-weight:bold}.kept{color:#176117}.none{color:#777}svg{max-width:100%;height:auto}";

const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// Everything about some rows, as one HTML text. Errors: what a picture needs is not there.
pub fn page(title: &str, rows: &Rows) -> Result<String, Box<dyn std::error::Error>> {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>",
        escape(title)
    );
    let judged = claims(rows);
    list(
        &mut html,
        "Claims that are not kept",
        "missed",
        judged
            .iter()
            .filter(|claim| !claim.kept && claim.measured.is_some()),
    );
    list(
        &mut html,
        "Claims that are kept",
        "kept",
        judged.iter().filter(|claim| claim.kept),
    );
    list(
        &mut html,
        "Claims that were not measured here",
        "none",
        judged.iter().filter(|claim| claim.measured.is_none()),
    );
    machines(&mut html, rows);
    nat(&mut html, rows)?;
    compare(&mut html, rows)?;
    updates(&mut html, rows)?;
    pktgen(&mut html, rows);
    let _ = write!(html, "<p class=none>{} rows.</p></html>", rows.0.len());
    Ok(html)
}

fn list<'a>(html: &mut String, title: &str, class: &str, claims: impl Iterator<Item = &'a Claim>) {
    let items: String = claims
        .map(|claim| {
            let measured = claim.measured.as_deref().unwrap_or("not measured");
            format!(
                "<li>{}: <span class={class}>{}</span></li>",
                escape(&claim.what),
                escape(measured)
            )
        })
        .collect();
    if !items.is_empty() {
        let _ = write!(html, "<h2>{title}</h2><ul>{items}</ul>");
    }
}

fn machines(html: &mut String, rows: &Rows) {
    let mut machines: Vec<Value> = Vec::new();
    for machine in rows
        .0
        .iter()
        .map(|row| &row["machine"])
        .filter(|machine| machine.is_object())
    {
        let mut machine = machine.clone();
        // Each run's own: the machine is the same.
        if let Some(facts) = machine.as_object_mut() {
            facts.remove("load");
        }
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    for machine in machines {
        let facts = machine.as_object().into_iter().flatten();
        let cells: String = facts
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!(
                    "<tr><td>{}</td><td>{}</td></tr>",
                    escape(&name.replace('_', " ")),
                    escape(&text)
                )
            })
            .collect();
        let loads: Vec<f64> = rows
            .0
            .iter()
            .filter_map(|row| row["machine"]["load"].as_str()?.parse().ok())
            .collect();
        let load = Spread::of(loads).map_or_else(String::new, |load| {
            format!(
                "<tr><td>load while measured, min / median / max</td><td>{:.1} / {:.1} / {:.1}</td></tr>",
                load.min, load.median, load.max
            )
        });
        let _ = write!(html, "<h2>Machine</h2><table>{cells}{load}</table>");
    }
}

fn nat(html: &mut String, rows: &Rows) -> Result<(), Box<dyn std::error::Error>> {
    let target = |name: &str| {
        TARGETS
            .iter()
            .find(|target| target.name == name)
            .map(|target| target.target)
    };
    let number = |row: &Value, pointer: &str| row.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let mut drawn = Vec::new();
    let mut body = String::new();
    for row in rows.nat() {
        let name = row["workload"].as_str().unwrap_or_default();
        let spread = Spread {
            min: number(row, "/ns_per_packet/min"),
            median: number(row, "/ns_per_packet/p50"),
            max: number(row, "/ns_per_packet/max"),
        };
        let _ = write!(
            body,
            "<tr><td>{}</td>{}<td>{:.2}</td><td>{:.1}</td><td>{:.2}</td></tr>",
            escape(name),
            cells(spread),
            number(row, "/mpps"),
            number(row, "/floor_ns_per_packet/p50"),
            number(row, "/ratio_to_floor")
        );
        drawn.push(Bar {
            label: name.replace("established", "est").replace("services", "svc"),
            spread,
            target: target(name),
        });
    }
    if drawn.is_empty() {
        return Ok(());
    }
    let picture = bars("Cost of a packet in memory, one worker", "ns a packet", &drawn)?;
    let _ = write!(
        html,
        "<h2>In memory</h2>{picture}<table><tr><th>workload<th>min<th>median ns<th>max<th>Mpps<th>floor ns<th>ratio</tr>{body}</table>"
    );
    Ok(())
}

/// Groups of comparable rows: the same services, flows and frames.
fn groups(rows: &Rows) -> Vec<[u64; 3]> {
    let mut groups = Vec::new();
    for row in rows.of_kind("compare") {
        let group = ["services", "flows", "frame"].map(|name| row[name].as_u64().unwrap_or(0));
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn compare(html: &mut String, rows: &Rows) -> Result<(), Box<dyn std::error::Error>> {
    for [services, flows, frame] in groups(rows) {
        let mut names: Vec<&str> = Vec::new();
        let these = || {
            rows.of_kind("compare").filter(move |row| {
                row["services"] == services && row["flows"] == flows && row["frame"] == frame
            })
        };
        for name in these().filter_map(|row| row["row"]["gateway"].as_str()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let spread = |name: &str, pointer: &str| {
            Spread::of(Rows::numbers(
                these().filter(|row| row["row"]["gateway"] == name),
                pointer,
            ))
        };
        let (mut drawn, mut lines, mut body) = (Vec::new(), Vec::new(), String::new());
        for name in &names {
            let Some(per_core) = spread(name, "/row/mpps_per_gateway_core") else {
                continue;
            };
            drawn.push(Bar {
                label: (*name).to_owned(),
                spread: per_core,
                target: None,
            });
            let median = |pointer: &str| spread(name, pointer).map_or(0.0, |spread| spread.median);
            let latency: Vec<f64> = PERCENTILES
                .iter()
                .map(|percentile| median(&format!("/row/paced/back/latency_ns/{percentile}")) / 1e3)
                .collect();
            let _ = write!(
                body,
                "<tr><td>{}</td>{}{}{}<td>{:.0}</td><td>{}</td><td>{}</td><td>{:.3}</td></tr>",
                escape(name),
                cells(per_core),
                spread(name, "/row/gateway_ns_per_packet").map_or_else(String::new, cells),
                spread(name, "/row/mpps").map_or_else(String::new, cells),
                median("/row/gateway_busy") * 100.0,
                short(latency[0]),
                short(latency[2]),
                median("/row/paced/back/loss") * 100.0
            );
            lines.push(Curve {
                label: (*name).to_owned(),
                values: latency,
            });
        }
        let of = format!("{services} services, {flows} flows, {frame}-byte frames");
        let picture = bars(
            &format!("Packets per gateway core: {of}"),
            "Mpps per gateway core",
            &drawn,
        )?;
        let rate = these().find_map(|row| row["rate"].as_f64()).unwrap_or_default();
        let latency = curves(
            &format!("Time there and back at {} packets a second", short(rate)),
            "microseconds",
            &PERCENTILES,
            &lines,
        )
        .unwrap_or_default();
        let _ = write!(
            html,
            "<h2>Gateways: {of}</h2>{picture}<table><tr><th rowspan=2>gateway<th colspan=3>Mpps per gateway core<th colspan=3>gateway ns a packet<th colspan=3>Mpps out in a flood<th>busy<th>p50<th>p99<th>lost</tr><tr>{}<th>%<th>µs<th>µs<th>%</tr>{body}</table>{latency}",
            "<th>min<th>median<th>max".repeat(3)
        );
    }
    Ok(())
}

fn updates(html: &mut String, rows: &Rows) -> Result<(), Box<dyn std::error::Error>> {
    let mut body = String::new();
    let mut counts: Vec<u64> = Vec::new();
    for row in rows.of_kind("compare-update") {
        let count = row["services"].as_u64().unwrap_or(0);
        if !counts.contains(&count) {
            counts.push(count);
        }
    }
    let mut pictures = String::new();
    for services in counts {
        let mut drawn = Vec::new();
        for row in rows
            .of_kind("compare-update")
            .filter(|row| row["services"] == services)
        {
            let changes: Vec<f64> = row["change_seconds"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|seconds| Some(seconds.as_f64()? * 1e3))
                .collect();
            let Some(change) = Spread::of(changes) else {
                continue;
            };
            let name = row["gateway"].as_str().unwrap_or_default();
            let _ = write!(
                body,
                "<tr><td>{}</td><td>{services}</td><td>{:.3}</td>{}</tr>",
                escape(name),
                row["load_seconds"].as_f64().unwrap_or(0.0),
                cells(change)
            );
            drawn.push(Curve {
                label: name.to_owned(),
                values: vec![change.min, change.median, change.max],
            });
        }
        if !drawn.is_empty() {
            let title = format!("One endpoint changed among {services} services, until in force");
            pictures += &curves(&title, "milliseconds", &["min", "median", "max"], &drawn)?;
        }
    }
    if !body.is_empty() {
        let _ = write!(
            html,
            "<h2>Updates</h2><table><tr><th>gateway<th>services<th>all loaded, s<th>one changed, ms: min<th>median<th>max</tr>{body}</table>{pictures}"
        );
    }
    Ok(())
}

fn pktgen(html: &mut String, rows: &Rows) {
    let mut body = String::new();
    for row in rows.of_kind("pktgen") {
        let figures = &row["row"];
        let latency = &figures["forward"]["latency_ns"];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{}</td><td>{}</td></tr>",
            escape(row["driver"].as_str().unwrap_or_default()),
            row["flows"],
            number(&row["frame"]),
            short(number(&figures["sent_pps"])),
            short(number(&figures["received_pps"])),
            number(&figures["forward"]["loss"]) * 100.0,
            short(number(&latency["p50"]) / 1e3),
            short(number(&latency["p99"]) / 1e3),
        );
    }
    if !body.is_empty() {
        let _ = write!(
            html,
            "<h2>Generator</h2><table><tr><th>driver<th>flows<th>bytes<th>sent pps<th>came out pps<th>lost %<th>p50 µs<th>p99 µs</tr>{body}</table>"
        );
    }
    let found: String = rows
        .of_kind("search")
        .map(|row| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(row["goal"].as_str().unwrap_or_default()),
                short(row["pps"].as_f64().unwrap_or(0.0)),
                short(row["above_pps"].as_f64().unwrap_or(0.0)),
                escape(row["why"].as_str().unwrap_or_default())
            )
        })
        .collect();
    if !found.is_empty() {
        let _ = write!(
            html,
            "<h2>Rates found</h2><table><tr><th>goal<th>passed, pps<th>failed, pps<th>why no better</tr>{found}</table>"
        );
    }
}

fn cells(spread: Spread) -> String {
    let Spread { min, median, max } = spread;
    format!(
        "<td>{}</td><td><b>{}</b></td><td>{}</td>",
        short(min),
        short(median),
        short(max)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_with_what_is_missed_and_has_every_gateway() {
        let mut rows = Rows::default();
        let row = |gateway: &str, per_core: f64| {
            format!(
                r#"{{"kind":"compare","services":10,"flows":5,"frame":64,"rate":1000,"machine":{{"cpu":"a <b>","load":"3.0"}},
                "row":{{"gateway":"{gateway}","repeat":0,"mpps_per_gateway_core":{per_core},"mpps":1,"gateway_ns_per_packet":1000,
                "gateway_busy":0.5,"paced":{{"back":{{"loss":0,"latency_ns":{{"p50":1000,"p90":1,"p99":1,"p99.9":1,"p99.99":1,"max":9}}}}}}}}}}"#
            )
            .replace('\n', " ")
        };
        rows.take(
            "test",
            &format!("{}\n{}", row("nftables", 1.0), row("af_xdp", 1.2)),
        )
        .unwrap();
        rows.take(
            "test",
            r#"{"kind":"compare-update","gateway":"nftables","services":10,"load_seconds":1,"change_seconds":[0.1,0.2]}"#,
        )
        .unwrap();
        let html = page("Results", &rows).unwrap();
        let missed = html.find("Claims that are not kept").unwrap();
        assert!(missed < html.find("Machine").unwrap() && html.contains("1.20 (1.20–1.20)"));
        assert!(html.contains("a &lt;b&gt;") && html.matches("<svg").count() == 3);
        assert!(
            !html.contains("http-equiv") && !html.contains("src="),
            "nothing from elsewhere"
        );
        assert!(
            page("Nothing", &Rows::default())
                .unwrap()
                .contains("not measured")
        );
    }
}
