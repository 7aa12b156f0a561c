use super::*;

fn read_text(text: &str) -> Contents {
    read(&Arc::new(SourceText {
        path: "f.yaml".into(),
        text: text.into(),
    }))
}

#[test]
fn a_broken_document_hides_no_other() {
    let contents = read_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\nkind: [\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: b}\n",
    );
    let names: Vec<_> = contents.objects.iter().map(|o| o.key.to_string()).collect();
    assert_eq!(names, ["Service default/a", "Service default/b"]);
    assert_eq!(contents.problems.len(), 1);
    let line = contents.problems[0].spot.as_ref().unwrap().line;
    assert!((5..=6).contains(&line), "{line}");
}

#[test]
fn a_problem_in_a_later_document_has_the_line_of_the_file() {
    let contents = read_text(
        "# first\n---\n# second\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  typ: x\n",
    );
    assert_eq!(
        contents.problems[0].to_string(),
        "f.yaml:9:3: Service a: spec.typ: is not a known field; did you mean `type`?"
    );
}

#[test]
fn val_2_a_namespace_is_a_dns_label_and_an_object_in_another_is_refused_alone() {
    for (namespace, wrong) in [
        ("x".repeat(64), "must be no more than 63 characters"),
        ("no dot.s".into(), "must be lower-case letters"),
        ("\u{fffd}".into(), "must be lower-case letters"),
    ] {
        for kind in ["Service", "Pod"] {
            let contents = read_text(&format!(
                "apiVersion: v1\nkind: {kind}\nmetadata:\n  name: a\n  namespace: {namespace}\n---\n\
                     apiVersion: v1\nkind: {kind}\nmetadata: {{name: b, namespace: {}}}\n",
                "y".repeat(63),
            ));
            assert_eq!(contents.objects.len(), 1, "{namespace}");
            assert_eq!(contents.objects[0].key.name, "b");
            let said = contents.problems[0].to_string();
            let begins =
                format!("f.yaml:5:14: {kind} a: metadata.namespace: Invalid value: \"{namespace}\": {wrong}");
            assert!(said.starts_with(&begins), "{said}");
        }
    }
}

#[test]
fn the_line_concerned_is_shown_with_the_place_marked() {
    let contents = read_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  typ: x\n");
    let shown = contents.problems[0].with_source(false);
    assert!(
        shown.starts_with("f.yaml:5:3: Service a: spec.typ: ") && shown.contains("5 |   typ: x\n  |   ^^^"),
        "{shown}"
    );
}

#[test]
fn every_item_of_a_list_is_an_object() {
    let contents = read_text(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}}\n\
             - {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: 1}\n",
    );
    assert_eq!(contents.objects[0].key.to_string(), "Pod x/a");
    assert_eq!(contents.problems[0].field, "spec");
    assert_eq!(contents.problems[0].spot.as_ref().unwrap().line, 5);
}

#[test]
fn other_kinds_are_noted_and_a_slip_in_a_known_kind_is_an_error() {
    let contents = read_text("apiVersion: v1\nkind: Secret\n---\napiVersion: v1\nkind: service\n");
    assert_eq!(contents.problems[0].severity, Severity::Note);
    assert_eq!(
        contents.problems[1].message,
        "is not known; did you mean `Service`?"
    );
}

#[test]
fn an_empty_file_and_one_of_comments_hold_nothing() {
    for text in [
        "",
        "# nothing\n",
        "---\n",
        "\u{feff}# mark\n",
        "%YAML 1.1\n---\n# x\n",
    ] {
        let contents = read_text(text);
        assert!(
            contents.objects.is_empty() && contents.problems.is_empty(),
            "{text:?}: {:?}",
            contents.problems
        );
    }
}
