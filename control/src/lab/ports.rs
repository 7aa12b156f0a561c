//! NIC ports of the lab's gateway beside its own: what [`FILE`] in the folder says.
//!
//! Takes YAML with `ports` and `routes` as the files of `configs/gateway` have them; gives them as the end of the
//! dataplane's file. Never judges a port: the dataplane does, and says what is wrong with it.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The file's name: none of a manifest's, since it is no object of a cluster.
pub(super) const FILE: &str = "ports.conf";

/// Ports, and routes to what is behind them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FurtherPorts {
    #[serde(default)]
    ports: Vec<Map<String, Value>>,
    #[serde(default)]
    routes: Vec<Map<String, Value>>,
}

impl FurtherPorts {
    /// Those of a folder; none where there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read, or is of another shape: with its line and column.
    pub(super) fn of(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|error| anyhow::anyhow!("{}:{error}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location();
            let place = place.map_or_else(String::new, |at| format!("{}:{}: ", at.line(), at.column()));
            let message = error.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default();
            // The parser tells the place, too, behind everything else.
            anyhow::anyhow!("{place}{}", message.split(" at line ").next().unwrap_or_default())
        })
    }

    /// The ports' names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.ports.iter().filter_map(|port| port.get("name")?.as_str())
    }
}

/// The rest of a list of ports, and what comes after it. JSON, which is YAML, too: a port a line.
impl fmt::Display for FurtherPorts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = |items: &Map<String, Value>| Value::Object(items.clone());
        for port in &self.ports {
            writeln!(out, "- {}", json(port))?;
        }
        if !self.routes.is_empty() {
            let routes: Value = self.routes.iter().map(json).collect();
            writeln!(out, "routes: {routes}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_ports_end_the_list_that_the_lab_begins() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/lab/memif");
        let mut further = FurtherPorts::of(Path::new(folder)).unwrap();
        assert_eq!(further.names().collect::<Vec<_>>(), ["testpmd"]);
        let routes = FurtherPorts::parse("routes: [{to: 10.0.0.0/8, via: 172.20.0.10}]").unwrap();
        further.routes = routes.routes;
        let whole = format!("ports:\n- {{name: client0, addresses: [\"fd00::1/64\"]}}\n{further}");
        let whole: Value = serde_saphyr::from_str(&whole).unwrap();
        assert_eq!(whole["ports"][0]["name"], "client0");
        assert_eq!(whole["ports"][1]["memif"]["role"], "server");
        assert_eq!(whole["ports"][1]["memif"]["mac"], "02:00:00:00:00:01");
        assert_eq!(whole["routes"][0]["via"], "172.20.0.10");
        assert_eq!(FurtherPorts::default().to_string(), "");
    }

    #[test]
    fn a_file_of_another_shape_is_refused_with_the_place() {
        for (text, told) in [
            ("ports:\n- {name: a}\nprots: []\n", "3:1: unknown field `prots`"),
            ("ports:\n- testpmd\n", "2:3: "),
            ("ports: {name: a}\n", "1:8: "),
            ("ports: [\n", "1:8: unclosed"),
        ] {
            let error = FurtherPorts::parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(told) && !error.contains('\n'),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_folder_without_the_file_has_none_and_one_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(FurtherPorts::of(folder.path()).unwrap().to_string(), "");
        fs::create_dir(folder.path().join(FILE)).unwrap();
        let error = FurtherPorts::of(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains(FILE), "{error}");
    }
}
