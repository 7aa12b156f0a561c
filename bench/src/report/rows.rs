//! JSON lines to rows. A file that is none is refused with its name and line.

use std::path::Path;

use serde_json::Value;

/// All rows of some files, in order.
#[derive(Clone, Debug, Default)]
pub struct Rows(pub Vec<Value>);

/// Least, middle and greatest of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some values; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self {
            min: *values.first()?,
            median: *values.get(values.len() / 2)?,
            max: *values.last()?,
        })
    }
}

impl Rows {
    /// Reads files. Errors: a file that cannot be read; a line that is no JSON object.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, String> {
        let mut rows = Self::default();
        for path in paths.iter().map(AsRef::as_ref) {
            let name = path.display();
            let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
            rows.take(&name.to_string(), &text)?;
        }
        Ok(rows)
    }

    /// Adds the lines of a text.
    pub fn take(&mut self, name: &str, text: &str) -> Result<(), String> {
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            match serde_json::from_str::<Value>(line) {
                Ok(row) if row.is_object() => self.0.push(row),
                Ok(_) => return Err(format!("{name}:{}: a row is a JSON object", number + 1)),
                Err(error) => return Err(format!("{name}:{}: {error}", number + 1)),
            }
        }
        Ok(())
    }

    /// Those of a kind (`compare`, `compare-update`, `pktgen`, `search`).
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |row| row["kind"] == kind)
    }

    /// `nat`'s, which name their workload.
    pub fn nat(&self) -> impl Iterator<Item = &Value> {
        self.0
            .iter()
            .filter(|row| row["workload"].is_string() && row["ns_per_packet"].is_object())
    }

    /// Different values of a field of rows of a kind, in the order they come.
    pub fn values(&self, kind: &str, pointer: &str) -> Vec<Value> {
        let mut values: Vec<Value> = Vec::new();
        for value in self.of_kind(kind).filter_map(|row| row.pointer(pointer)) {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        values
    }

    /// Numbers at a place of rows.
    pub fn numbers<'a>(rows: impl Iterator<Item = &'a Value>, pointer: &str) -> Vec<f64> {
        rows.filter_map(|row| row.pointer(pointer)?.as_f64()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_row_is_named() {
        let mut rows = Rows::default();
        assert_eq!(rows.take("a.jsonl", "{\"kind\":\"compare\"}\n\n"), Ok(()));
        assert_eq!(rows.of_kind("compare").count(), 1);
        let error = rows.take("a.jsonl", "{}\nnonsense").unwrap_err();
        assert!(error.starts_with("a.jsonl:2: "), "{error}");
        assert!(rows.take("a.jsonl", "3").unwrap_err().contains("JSON object"));
        assert!(
            Rows::read(&["/no/such/file"])
                .unwrap_err()
                .contains("/no/such/file")
        );
    }

    #[test]
    fn a_spread_is_of_the_sorted_values() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
