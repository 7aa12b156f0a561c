//! Every file of every corpus, through its target: what fuzzing once found stays found, on any toolchain.
#![allow(clippy::unwrap_used, reason = "all of this file is test code")]

use std::fs;
use std::path::{Path, PathBuf};

use sluice_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(target: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn every_input_of_every_corpus_is_survived_whole_and_cut_and_with_flipped_bits() {
    for target in TARGETS {
        let files = files(target.name);
        assert!(!files.is_empty(), "{target:?} has no corpus");
        for file in files {
            let input = fs::read(&file).unwrap();
            println!("{target:?} {}", file.display());
            (target.run)(&input);
            let step = (input.len() / 8).max(1);
            for at in (0..input.len()).step_by(step) {
                (target.run)(&input[..at]);
                let mut flipped = input.clone();
                flipped[at] ^= 1 << (at % 8);
                (target.run)(&flipped);
            }
        }
    }
}

#[test]
fn every_corpus_has_a_target_and_all_of_them_are_small() {
    let mut bytes = 0;
    for folder in fs::read_dir(corpus()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(
            sluice_fuzz::target(&name).is_some(),
            "corpus/{name} is no target's"
        );
        bytes += files(&name)
            .iter()
            .map(|file| fs::metadata(file).unwrap().len())
            .sum::<u64>();
    }
    assert!(
        bytes < 1_000_000,
        "{bytes} bytes of corpora: minimise them (libFuzzer's -merge=1)"
    );
}
