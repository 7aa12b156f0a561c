//! libFuzzer's entry: `SLUICE_FUZZ_TARGET=parse sluice-fuzz dataplane/fuzz/corpus/parse`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sluice_fuzz::{TARGETS, Target, target};

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("SLUICE_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| {
            eprintln!("SLUICE_FUZZ_TARGET is \"{name}\": give one of {TARGETS:?}");
            std::process::exit(2)
        })
    })
}

fuzz_target!(init: { chosen(); }, |data: &[u8]| (chosen().run)(data));
