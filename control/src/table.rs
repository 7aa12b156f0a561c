//! Objects as rows for a terminal, as kubectl prints them (GET-1 to GET-6).

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// Services and their endpoints.
mod services;
/// What runs: pods, what keeps them, where they are.
mod workloads;

/// Cells a list shows before "+ N more...".
const SHOWN: usize = 3;

/// A kind that has a table.
pub trait Rows {
    /// Its columns; the last `WIDE` of them are shown only if asked for.
    const COLUMNS: &'static [&'static str];
    /// How many of the columns are for the wide form.
    const WIDE: usize;
    /// Its kind, as in `service/web`.
    const KIND: &'static str;
    /// Its plural, as in "services "web" not found".
    const PLURAL: &'static str;
    /// Fields that it can be chosen by, beside its name and namespace.
    const FIELDS: &'static [&'static str] = &[];
    /// Whether it lives in a namespace.
    const NAMESPACED: bool = true;

    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// One cell per column.
    fn row(&self, now: Timestamp) -> Vec<String>;
}

/// What a table shows of its items. It remembers how wide its columns were, so that rows that come later stand under those
/// before.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The columns of the wide form, too.
    pub wide: bool,
    /// The namespace first.
    pub namespaces: bool,
    /// Headings.
    pub headers: bool,
    /// Labels as further columns.
    pub labels: Vec<String>,
    /// All labels, in one further column.
    pub all_labels: bool,
    /// Names as `kind/name`: there are tables of other kinds beside it.
    pub kinds: bool,
    /// Of the columns so far.
    pub widths: Vec<usize>,
}

impl Table {
    /// Rows of `items`.
    pub fn rows<T: Rows>(&mut self, items: &[&T], now: Timestamp) -> String {
        let columns = T::COLUMNS.len() - if self.wide { 0 } else { T::WIDE };
        let mut rows: Vec<Vec<String>> = Vec::new();
        if self.headers {
            let mut heads: Vec<String> = T::COLUMNS[..columns]
                .iter()
                .map(|&name| name.to_owned())
                .collect();
            heads.extend(self.labels.iter().map(|key| {
                let name = key.rsplit('/').next().unwrap_or(key);
                name.to_uppercase()
            }));
            heads.extend(self.all_labels.then(|| "LABELS".to_owned()));
            rows.push(heads);
        }
        for item in items {
            let mut row = item.row(now);
            row.truncate(columns);
            if let Some(name) = row.first_mut().filter(|_| self.kinds) {
                *name = format!("{}/{name}", T::KIND);
            }
            let labels = item.metadata().labels.as_ref();
            let label = |key: &String| {
                labels
                    .and_then(|labels| labels.get(key))
                    .cloned()
                    .unwrap_or_default()
            };
            row.extend(self.labels.iter().map(label));
            row.extend(self.all_labels.then(|| or(pairs(labels), "<none>")));
            rows.push(row);
        }
        if self.namespaces && T::NAMESPACED {
            let names = self.headers.then(|| "NAMESPACE".to_owned()).into_iter();
            let names = names.chain(
                items
                    .iter()
                    .map(|item| item.metadata().namespace.clone().unwrap_or_default()),
            );
            rows.iter_mut()
                .zip(names)
                .for_each(|(row, name)| row.insert(0, name));
        }
        aligned(&rows, &mut self.widths)
    }
}

/// Rows whose columns stand three apart, and are at least as wide as `widths`, which learns how wide they are.
pub fn aligned(rows: &[Vec<String>], widths: &mut Vec<usize>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    widths.resize(columns, 0);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths.iter()).enumerate() {
            // The last column is not padded.
            let pad = if column + 1 == columns { 0 } else { width + 3 };
            let _ = write!(out, "{cell:pad$}");
        }
        out.push('\n');
    }
    out
}

/// GET-5.
pub fn age(created: Option<&Time>, now: Timestamp) -> String {
    let Some(Time(created)) = created else {
        return "<unknown>".into();
    };
    let seconds = now.as_second() - created.as_second();
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    let pair = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => pair(minutes, 'm', s % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

fn or(text: String, absent: &str) -> String {
    if text.is_empty() { absent.into() } else { text }
}

/// `key=value,…`.
fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    let pairs = map.into_iter().flatten();
    let pairs = pairs.map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// The first few, and how many more.
pub(crate) fn few(mut items: Vec<String>, absent: &str, count: usize) -> String {
    items.truncate(SHOWN);
    let text = or(items.join(","), absent);
    if count > SHOWN {
        format!("{text} + {} more...", count - SHOWN)
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_5_ages_are_said_as_kubectl_says_them() {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let of = |seconds: i64| {
            age(
                Some(&Time(Timestamp::from_second(2_000_000_000 - seconds).unwrap())),
                now,
            )
        };
        for (seconds, said) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_460, "3h11m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
            (-1, "0s"),
            (-2, "<invalid>"),
        ] {
            assert_eq!(of(seconds), said, "{seconds}");
        }
        assert_eq!(age(None, now), "<unknown>");
    }
}
