use super::*;

#[test]
fn a_path_is_found_at_its_line_and_column() {
    let node = read("spec:\n  ports:\n  - port: 80\n  - {port: 81, nodePort: 80}\n")
        .unwrap()
        .unwrap();
    let spot = node.locate("spec.ports[1].nodePort");
    assert_eq!((spot.line, spot.column), (4, 26));
}

#[test]
fn a_missing_field_is_found_at_what_should_hold_it() {
    let node = read("spec:\n  type: NodePort\n").unwrap().unwrap();
    let spot = node.locate("spec.ports");
    assert_eq!((spot.line, spot.column), (1, 1));
}

#[test]
fn a_tab_in_the_indentation_is_named_at_its_place() {
    let error = read("spec:\n  a: 1\n\tports: 2\n").unwrap_err();
    assert_eq!((error.spot.line, error.spot.column), (3, 1));
    assert!(error.message.contains("indented with a tab"), "{}", error.message);
}

#[test]
fn a_line_that_fits_no_other_is_told_what_would_fit() {
    let error = read("ports:\n  - port: 80\n   targetPort: 80\n").unwrap_err();
    assert_eq!(error.spot.line, 3);
    assert!(error.message.contains("same column"), "{}", error.message);
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..10 {
        let list = vec![format!("*a{}", level - 1); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert!(read(&text).unwrap_err().message.contains("aliases expand"));
}

/// Each link is small and one level deep, the chain is not.
#[test]
fn a_chain_of_aliases_nests_no_deeper_than_what_is_written_out() {
    let chain = |links: usize| {
        let link = |n| format!("a{n}: &a{n} [*a{}]\n", n - 1);
        (1..links).fold(String::from("a0: &a0 [x]\n"), |text, n| text + &link(n))
    };
    assert!(read(&chain(MAX_DEPTH - 2)).is_ok());
    let error = read(&chain(MAX_DEPTH + 2)).unwrap_err();
    assert!(error.message.contains("levels of nesting"), "{}", error.message);
}

/// 60 levels that each have an anchor would be 60 copies of the list inside.
#[test]
fn copies_kept_for_aliases_count_as_values() {
    let list = vec!["x"; MAX_NODES / 40].join(",");
    let open: String = (0..60).map(|n| format!("&a{n} [")).collect();
    let text = format!("{open}{list}{}", "]".repeat(60));
    let error = read(&text).unwrap_err();
    assert!(
        error.message.contains("values in one document"),
        "{}",
        error.message
    );
}

#[test]
fn bottomless_nesting_is_refused() {
    assert!(read(&"[".repeat(100_000)).is_err());
}

#[test]
fn a_key_given_twice_is_refused_at_the_second() {
    let error = read("a: 1\nb: 2\na: 3\n").unwrap_err();
    assert_eq!((error.spot.line, error.spot.column), (3, 1));
}

#[test]
fn merged_keys_yield_to_written_ones() {
    let node = read("base: &b {x: 1, y: 2}\nuse: {<<: *b, x: 9}\n")
        .unwrap()
        .unwrap();
    let used = node.get("use").unwrap();
    assert_eq!(
        (used.get("x").unwrap().text(), used.get("y").unwrap().text()),
        (Some("9"), Some("2"))
    );
}
