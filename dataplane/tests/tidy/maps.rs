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

/// Threads that tell of others' failures, by project: one in a row of the map each.
const THREADS: &str = "
    amzn-drivers 343
    Azure/AKS 5788
    bpf-examples 128
    calico-vpp 151 330 461
    cilium 6730 8740 12815 12968 18414 19908 20418 22782 23551 23604 24177 27730 27763 27922 28726 29667 31069
        31643 32472 33074 33844 34380 35621 36572 37725 38727 39987 42870 46584 46993 47755
    csit 3882
    dpvs 72 74 93 156 212 225 446 580 650 679 738 751 1003
    FDio/vpp 645 2422 2742 2957 3095 3258 3290 3299 3333 3693 3731
    katran 159 206
    kpng 473
    kubernetes 19029 42473 48370 59368 74383 74839 93143 101607 102631 117924 118814 122740 125467 136786 137986
        139629
    loxilb 52 139 242 1078
    metallb 584 598 733 805 1147
    netmap 118 161 365 553 776 932
    trex-core 1150
    xdp-tutorial 160 357";

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
    (!runs(file, &text, function)).then(|| format!("{file} has no test {function} that runs"))
}

/// Whether a function is a test: by its attributes, or by the list or the macro that makes tests of it.
fn runs(file: &str, text: &str, function: &str) -> bool {
    let Some((before, _)) = [format!("fn {function}("), format!("fn {function}<")]
        .iter()
        .find_map(|named| text.split_once(named))
    else {
        return false;
    };
    let (above, _) = before.rsplit_once('\n').unwrap_or_default();
    let above = above.lines().rev().map(str::trim);
    let attributes: Vec<_> = above
        .take_while(|line| line.starts_with(['#', '/', ')']))
        .collect();
    if attributes.iter().any(|line| line.starts_with("#[ignore")) {
        return false;
    }
    let is_listed = |text: &str, from: &str| {
        let mut lists = text.split(from).skip(1).filter_map(|list| list.split_once("\n}"));
        lists.any(|(list, _)| {
            let mut words = list.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == function)
        })
    };
    let of_every_driver = || {
        let suite = std::fs::read_to_string(root().join("dataplane/tests/nic/conformance/mod.rs")).unwrap();
        file == "dataplane/tests/nic/conformance/cases.rs" && is_listed(&suite, "macro_rules! ")
    };
    attributes.contains(&"#[test]")
        || is_listed(text, "in_every_lab! {")
        || is_listed(text, "both_families! {")
        || of_every_driver()
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
    let named = |row: &Row| {
        row.about
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let named: Vec<_> = rows.iter().flat_map(named).collect();
    let mut project = "";
    for word in THREADS.split_whitespace() {
        if word.parse::<u32>().is_err() {
            project = word;
            continue;
        }
        let thread = format!("{project}#{word}");
        assert_eq!(
            named.iter().filter(|name| **name == thread).count(),
            1,
            "rows of {thread}"
        );
    }
}
