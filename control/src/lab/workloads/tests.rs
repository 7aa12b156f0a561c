use super::*;

fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let folder = Folder::new(directory.path().to_owned());
    (directory, folder)
}

const SET: &str = "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: echo}\nspec:\n  replicas: 2\n  \
                       template: {metadata: {labels: {app: echo}}}\n";

#[test]
fn other_kinds_in_the_folder_are_passed_over() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\nkind: Unheard\n---\n";
    let (_directory, mut folder) =
        folder(&[("a.yaml", &format!("{service}{SET}")), ("notes.txt", "kind: Pod")]);
    let (workloads, complaints) = folder.read();
    assert_eq!(complaints, Vec::<String>::new());
    assert!(workloads.pods.is_empty());
    let (key, set) = workloads.sets.first_key_value().unwrap();
    assert_eq!((key.to_string().as_str(), set.replicas), ("default/echo", 2));
    assert_eq!(set.template.labels["app"], "echo");
}

#[test]
fn a_file_that_breaks_keeps_what_it_said_last() {
    let (directory, mut folder) = folder(&[("a.yaml", SET)]);
    let before = folder.read().0;
    fs::write(directory.path().join("a.yaml"), "kind: [").unwrap();
    let (after, complaints) = folder.read();
    assert_eq!(after, before);
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].contains("a.yaml"), "{complaints:?}");
}

#[test]
fn a_changed_deployment_is_another_set_of_the_same_deployment() {
    let text = |image: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{}}\n  template:\n    \
                 spec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    };
    let (directory, mut folder) = folder(&[("a.yaml", &text("one"))]);
    let (one, complaints) = folder.read();
    assert_eq!(complaints, Vec::<String>::new());
    fs::write(directory.path().join("a.yaml"), text("two")).unwrap();
    let two = folder.read().0;
    let ((key, set), (other, _)) = (
        one.sets.first_key_value().unwrap(),
        two.sets.first_key_value().unwrap(),
    );
    assert_eq!(set.deployment.as_deref(), Some("web"));
    assert_ne!(key, other);
    assert_eq!(
        set.template.labels["pod-template-hash"],
        key.name.trim_start_matches("web-")
    );
}

#[test]
fn pods_of_stateful_sets_know_their_service_and_a_changed_template_is_another_revision() {
    let text = |image: &str| {
        format!(
            "kind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  serviceName: db\n  replicas: 3\n  selector: {{}}\n  template:\n    \
                 spec: {{containers: [{{name: c, image: {image}}}]}}\n---\nkind: DaemonSet\nmetadata: {{name: agent}}\nspec:\n  \
                 selector: {{}}\n  template: {{spec: {{containers: []}}}}\n"
        )
    };
    let (directory, mut folder) = folder(&[("a.yaml", &text("one"))]);
    let (one, complaints) = folder.read();
    assert_eq!(complaints, Vec::<String>::new());
    fs::write(directory.path().join("a.yaml"), text("two")).unwrap();
    let two = folder.read().0;
    let sets = |workloads: &Workloads| workloads.sets.values().cloned().collect::<Vec<_>>();
    let [agent, db] = &sets(&one)[..] else {
        panic!("{one:?}")
    };
    assert_eq!((agent.kind, agent.replicas), (SetKind::Daemon, 1));
    assert_eq!((db.kind, db.replicas), (SetKind::Stateful { parallel: false }, 3));
    assert_eq!(db.template.spec.subdomain.as_deref(), Some("db"));
    let revisions = |workloads: &Workloads| {
        sets(workloads)
            .iter()
            .map(|set| set.template.labels[REVISION].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(revisions(&one)[0], revisions(&two)[0]);
    assert_ne!(revisions(&one)[1], revisions(&two)[1]);
}

#[test]
fn two_sets_of_one_name_are_told_not_mixed() {
    let other = "---\nkind: DaemonSet\nmetadata: {name: echo}\nspec: {selector: {}, template: {}}\n";
    let (_directory, mut folder) = folder(&[("a.yaml", &format!("{SET}{other}"))]);
    let (workloads, complaints) = folder.read();
    assert_eq!((workloads.sets.len(), complaints.len()), (1, 1));
    assert!(
        complaints[0].contains("a ReplicaSet has this name already"),
        "{complaints:?}"
    );
}

#[test]
fn a_name_that_would_leave_its_folder_is_refused() {
    let (_directory, mut folder) = folder(&[("a.yaml", "kind: Pod\nmetadata: {name: ../../etc/x}\n")]);
    let (workloads, complaints) = folder.read();
    assert!(workloads.pods.is_empty());
    assert!(complaints[0].contains("is no name"), "{complaints:?}");
}
