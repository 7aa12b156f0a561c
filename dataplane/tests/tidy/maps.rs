//! The maps from what others learnt to the tests here, `CASES.md` and `PEERS.md`: every test they name exists, every case
//! has its row, and what is missing is said aloud.

use std::collections::BTreeMap;

use crate::root;

/// Upstream's cases that are proven here, and our own.
const CASES: &str = "
    A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 A12 A13 A14 A15 A16 A17 A19
    B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B13 B14 B15
    C1 C2 C3 C4 C5 C6 C8 C9 C10 C12 C14 C15 C16 C17 C19 C20 C21
    D1 D2 D3 D4 D5 D6 D7 D8 D9 D11 D13 D14 D15 D16 D17 D18 D19 D20 D21 D23 D24 D25 D28 D29 D30 D31 D32 D33 D34 D35 D36
    D37 D38 D39
    E2 E3 E4 E5 E6 E7 E8 E9 E13 E14
    F1 F2 F3 F4 F5 F6 F8
    G1 G2 G3 G4 G5 G6 G7 G8 G9 G10 G11 G12 G13 G14 G15 G16 G18 G19 G20 G21 G22 G23
    G24 G25 G27 G28 G29 G30 G31 G32 G33
    H1 H2 H4 H5 H6 H7 H8 H9 H10
    I1 I2 I3 I4 I5 I6 I7 I8 I9 I10 I11 I12 I13 I14 I15 I16 I17 I18 I19 I20 I22 I23 I24 I25 I26 I27 I28 I29 I30 I31 I32
    I33 I34 I35
    J1 J2 J3 J4 J5
    K1 K2 K3 K4 K5 K6 K7
    L1 L2 L3 L5 L6 L7 L8 L10 L11 L13 L14 L16 L17 L18 L19 L20 L21 L22 L23 L24 L25
    M1 M3 M4 M5 M6 M7
    N1 N2 N3
    O1 O2
    P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12 P13 P14 P15";

/// What stands before what no test proves: nobody wrote it yet, or there is nothing here that it could be about.
const LACKS: [&str; 2] = ["missing:", "cannot apply:"];

/// A row: what it is about, the tests it names, and what it says is missing, or cannot apply, and why.
struct Row {
    about: String,
    tests: Vec<String>,
    missing: Option<String>,
}

fn rows(map: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("dataplane/tests").join(map)).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[about, _, proof] = cells.as_slice() else {
            panic!("{map}: not three cells: {line}")
        };
        let lack = LACKS.iter().find_map(|lack| proof.split_once(lack));
        let (named, missing) = match lack {
            Some((named, reason)) => (named, Some(reason.trim().to_owned())),
            None => (proof, None),
        };
        Row {
            about: about.to_owned(),
            tests: named.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
            missing,
        }
    };
    let is_row = |line: &&str| line.starts_with("| ") && !line.ends_with("| tests |");
    text.lines().filter(is_row).map(row).collect()
}

/// Why there is no such test, if there is none.
fn wrong(test: &str) -> Option<String> {
    if let Some(folder) = test.strip_prefix("vectors/") {
        let file = root()
            .join("dataplane/tests/vectors")
            .join(folder)
            .join("vector.txt");
        return (!file.exists()).then(|| format!("there is no vector {folder}"));
    }
    let Some((file, function)) = test.split_once("::") else {
        return Some(format!("{test} is neither a vector nor path::function"));
    };
    let Ok(text) = std::fs::read_to_string(root().join(file)) else {
        return Some(format!("there is no file {file}"));
    };
    let named = format!("fn {function}");
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let found = text.split(&named).skip(1).any(ends);
    (!found).then(|| format!("{file} has no {function}"))
}

fn check(map: &str) -> Vec<Row> {
    let rows = rows(map);
    for Row {
        about,
        tests,
        missing,
    } in &rows
    {
        for test in tests {
            let wrong = wrong(test);
            assert!(wrong.is_none(), "{map}, {about}: {}", wrong.unwrap());
        }
        let said = missing.as_ref().is_some_and(|reason| !reason.is_empty());
        assert!(said || missing.is_none(), "{map}, {about}: missing, but why?");
        assert!(
            said || !tests.is_empty(),
            "{map}, {about}: no test, and not said to be missing"
        );
    }
    let lacks: Vec<_> = rows.iter().filter(|row| row.missing.is_some()).collect();
    let whole = lacks.iter().filter(|row| row.tests.is_empty()).count();
    println!(
        "{map}: {} rows, {} of them wholly missing, {} in part",
        rows.len(),
        whole,
        lacks.len() - whole
    );
    for row in lacks {
        println!("  {}: {}", row.about, row.missing.as_deref().unwrap_or_default());
    }
    rows
}

#[test]
fn every_case_has_its_row_and_every_test_it_names_exists() {
    let mut count = BTreeMap::<String, usize>::new();
    for row in check("CASES.md") {
        *count.entry(row.about).or_default() += 1;
    }
    for case in CASES.split_whitespace() {
        assert_eq!(count.remove(case), Some(1), "rows of {case}");
    }
    assert!(count.is_empty(), "no such cases: {count:?}");
}

#[test]
fn every_failure_of_a_peer_names_tests_that_exist() {
    let rows = check("PEERS.md");
    assert!(rows.len() > 50, "the map of failures is made of rows");
}
