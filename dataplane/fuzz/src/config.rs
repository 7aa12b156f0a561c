//! Any text as the dataplane's config: read, or refused in words.

use std::path::Path;

use sluice_dataplane::config::Config;

pub(crate) fn run(data: &[u8]) {
    if let Err(error) = Config::parse(&String::from_utf8_lossy(data), Path::new("config.yaml")) {
        assert!(!error.to_string().is_empty());
    }
}
