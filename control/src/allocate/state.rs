//! The state file: holdings as JSON. Written whole or not at all (temporary file, fsync, rename); one that cannot be
//! understood is set aside with a warning, never trusted and never a reason not to start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::{Allocator, Holding};
use crate::model::ServiceName;

/// A state of 10,000 Services has 2 MiB.
const MAX_BYTES: u64 = 64 << 20;
/// 2: several cluster IPs, families and their policy. 3: health-check node ports,
/// load-balancer addresses.
const VERSION: u32 = 3;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    /// By `namespace/name`.
    services: BTreeMap<String, Holding>,
}

/// What `path` holds now, for somebody who only looks; nothing if it cannot be read.
pub fn peek(path: &Path) -> BTreeMap<ServiceName, Holding> {
    let bytes = fs::read(path).unwrap_or_default();
    parse(&bytes).unwrap_or_default()
}

/// Reads the holdings in `path`; none if there is no file, or no good one.
pub fn load(path: &Path) -> io::Result<BTreeMap<ServiceName, Holding>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        file => file?.take(MAX_BYTES).read_to_end(&mut bytes)?,
    };
    match parse(&bytes) {
        Ok(holdings) => Ok(holdings),
        Err(reason) => {
            let aside = aside(path);
            fs::rename(path, &aside)?;
            log::warn!(
                "{}: not a state file of this version ({reason}); set aside as {}. Addresses and node ports are \
                 allocated anew: most come out the same.",
                path.display(),
                aside.display()
            );
            Ok(BTreeMap::new())
        }
    }
}

/// Cluster IPs as a list, or as the one of the first version.
pub(super) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ips {
        One(IpAddr),
        Several(Vec<IpAddr>),
    }
    Ok(match Ips::deserialize(deserializer)? {
        Ips::One(ip) => vec![ip],
        Ips::Several(ips) => ips,
    })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<ServiceName, Holding>, String> {
    let state: State = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    // Earlier versions say less, and nothing else: an upgrade keeps every address.
    if !(1..=VERSION).contains(&state.version) {
        return Err(format!("version {}, not {VERSION}", state.version));
    }
    let named = |(name, holding): (String, Holding)| {
        let (namespace, service) = name
            .split_once('/')
            .ok_or_else(|| format!("`{name}` names no Service"))?;
        Ok((
            ServiceName {
                namespace: namespace.into(),
                name: service.into(),
            },
            holding,
        ))
    };
    state.services.into_iter().map(named).collect()
}

/// A name beside `path` that is free.
fn aside(path: &Path) -> PathBuf {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".corrupt-{n}"));
        PathBuf::from(name)
    };
    // The last one may be overwritten: a thousand corrupt states are no more telling than the newest.
    (1..1000)
        .map(numbered)
        .find(|path| !path.exists())
        .unwrap_or_else(|| numbered(1000))
}

impl Allocator {
    /// Writes the holdings to `path` if they changed since they were last written.
    pub fn save(&mut self, path: &Path) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let services = self
            .holdings
            .iter()
            .map(|(name, holding)| (name.to_string(), holding.clone()))
            .collect();
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(folder)?;
        let state = State {
            version: VERSION,
            services,
        };
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(&state)?)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()?;
        self.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Wanted;
    use super::*;
    use crate::allocate::tests::allocator;
    use crate::model::defaults;
    use crate::model::tests::service;

    fn name() -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: "web".into(),
        }
    }

    #[test]
    fn holdings_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/state.json");
        let mut first = allocator(&["10.96.0.0/16", "fd00:96::/112"]);
        let given = |allocator: &mut Allocator, text: &str| {
            let mut object = service(text);
            defaults::apply(&mut object, allocator.families(), allocator.held(&name()));
            let mut spec = object.spec.unwrap();
            allocator
                .allocate(&name(), &mut spec, &Wanted::default())
                .unwrap();
            (spec.cluster_ips, spec.ip_family_policy)
        };
        let text = "{clusterIP: 10.96.7.7, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}";
        let before = given(&mut first, text);
        first.save(&path).unwrap();

        let mut second = Allocator::new(first.ranges.clone(), load(&path).unwrap());
        assert_eq!(given(&mut second, "{ports: [{port: 80}]}"), before);
        assert_eq!(before.0.unwrap().len(), 2);
    }

    #[test]
    fn the_state_of_an_earlier_version_keeps_its_addresses() {
        let text = r#"{"version":1,"services":{"shop/web":{"created":"2026-01-01T00:00:00Z","clusterIp":"10.96.7.7"}}}"#;
        let holdings = parse(text.as_bytes()).unwrap();
        assert_eq!(
            holdings[&name()].cluster_ips,
            ["10.96.7.7".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn a_corrupt_state_is_set_aside_and_never_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in [
            "",
            "{",
            "\0\u{1}",
            r#"{"version":9,"services":{}}"#,
            r#"{"version":2,"services":{"x":{}}}"#,
        ] {
            fs::write(&path, text).unwrap();
            assert!(load(&path).unwrap().is_empty());
            assert!(!path.exists());
        }
        assert!(dir.path().join("state.json.corrupt-5").exists());
    }

    #[test]
    fn what_is_outside_the_ranges_now_is_let_go() {
        let holdings = parse(
            br#"{"version":1,"services":{"shop/web":{"created":"2026-01-01T00:00:00Z","clusterIp":"10.1.0.5","nodePorts":{"":99}}}}"#,
        )
        .unwrap();
        let allocator = Allocator::new(allocator(&["10.96.0.0/16"]).ranges, holdings);
        let holding = &allocator.holdings[&name()];
        assert!(holding.cluster_ips.is_empty() && holding.node_ports.is_empty() && allocator.changed);
    }
}
