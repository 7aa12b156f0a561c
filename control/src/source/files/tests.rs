//! Scans of folders that change in between.

use std::fs;

use super::*;

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")
}

fn names(batch: &Batch) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::ResetBegin => "begin".into(),
        Event::ResetEnd => "end".into(),
        Event::Apply(object) => format!("+{}", object.key.name),
        Event::Delete(key) => format!("-{}", key.name),
        Event::Problems(problems) => format!("!{}", problems.len()),
    };
    batch.iter().map(name).collect()
}

#[test]
fn the_first_scan_is_a_reset_and_later_ones_are_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    fs::write(dir.path().join("sub/b.yml"), service("b")).unwrap();
    fs::write(dir.path().join("notes.txt"), "kind: [").unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    assert_eq!(names(&folders.scan()), ["begin", "+a", "+b", "end"]);
    assert!(folders.scan().is_empty());
    fs::write(dir.path().join("a.yaml"), service("c")).unwrap();
    assert_eq!(names(&folders.scan()), ["-a", "+c"]);
}

#[test]
fn what_a_file_defined_stays_in_force_while_it_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.yaml");
    fs::write(&path, format!("{}---\n{}", service("a"), service("b"))).unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    folders.scan();
    fs::write(&path, format!("{}---\nkind: [\n", service("a"))).unwrap();
    assert_eq!(
        names(&folders.scan()),
        ["!1", "+a"],
        "`a` is written elsewhere now; `b` stays"
    );
    fs::write(&path, service("a")).unwrap();
    let said = names(&folders.scan());
    assert_eq!((said[0].as_str(), said[1].as_str()), ("!0", "-b"), "{said:?}");
    fs::remove_file(&path).unwrap();
    assert_eq!(names(&folders.scan()), ["-a"]);
}

#[test]
fn own_objects_are_there_unless_a_file_defines_the_first_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let own = crate::dns::kube_dns::objects(
        &["10.96.0.10".parse().unwrap()],
        &["192.0.2.2:53".parse().unwrap()],
    );
    let mut folders = Folders::new(&[dir.path().into()]).with_own(own);
    assert_eq!(names(&folders.scan()), ["begin", "+kube-dns", "+kube-dns", "end"]);
    let theirs = service("kube-dns, namespace: kube-system");
    fs::write(dir.path().join("dns.yaml"), theirs).unwrap();
    assert_eq!(names(&folders.scan()), ["-kube-dns", "+kube-dns"]);
    fs::remove_file(dir.path().join("dns.yaml")).unwrap();
    assert_eq!(names(&folders.scan()), ["+kube-dns", "+kube-dns"]);
}

#[test]
fn nothing_is_said_before_every_folder_could_be_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    let late = dir.path().join("late");
    let mut folders = Folders::new(&[dir.path().into(), late.clone()]);
    assert_eq!(names(&folders.scan()), ["!1"]);
    fs::create_dir(&late).unwrap();
    assert_eq!(names(&folders.scan()), ["!0", "begin", "+a", "end"]);
}

#[test]
fn a_folder_that_vanishes_takes_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("a.yaml"), service("a")).unwrap();
    let mut folders = Folders::new(std::slice::from_ref(&sub));
    folders.scan();
    fs::rename(&sub, dir.path().join("elsewhere")).unwrap();
    assert_eq!(names(&folders.scan()), ["!1"]);
}

#[test]
fn a_configmap_swap_is_one_change() {
    let dir = tempfile::tempdir().unwrap();
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
    };
    for (version, name) in [("..1", "a"), ("..2", "b")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("f.yaml"), service(name)).unwrap();
    }
    link("..1", "..data");
    link("..data/f.yaml", "f.yaml");
    let mut folders = Folders::new(&[dir.path().into()]);
    assert_eq!(names(&folders.scan()), ["begin", "+a", "end"]);
    link("..2", "..data_tmp");
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    assert_eq!(names(&folders.scan()), ["-a", "+b"]);
}

#[test]
fn loops_of_links_end() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
    std::os::unix::fs::symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
    assert_eq!(
        names(&Folders::new(&[dir.path().into()]).scan()),
        ["begin", "+a", "end"]
    );
}

#[test]
fn a_file_that_is_not_text_or_too_long_is_one_line_of_report() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), b"kind: x\n\xff\n").unwrap();
    File::create(dir.path().join("b.yaml"))
        .unwrap()
        .set_len(MAX_FILE_BYTES + 1)
        .unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    folders.scan();
    let said: Vec<_> = folders.problems().iter().map(|p| p.message.as_str()).collect();
    assert_eq!(
        said,
        [
            "is not UTF-8 text (line 2)",
            "is longer than 16 MiB: split it into several files"
        ]
    );
}

#[test]
fn an_object_defined_twice_is_reported_on_the_later_naming_the_earlier() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("x")).unwrap();
    fs::write(dir.path().join("b.yaml"), service("x")).unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    folders.scan();
    let said = folders.problems()[0].to_string();
    assert!(
        said.contains("b.yaml:3:18: Service default/x: metadata.name: is already defined in"),
        "{said}"
    );
    assert!(said.ends_with("a.yaml; that one counts"), "{said}");
}

#[test]
fn a_pod_with_status_stands_for_the_one_without() {
    let (users, agents) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
    fs::write(users.path().join("p.yaml"), pod).unwrap();
    fs::write(
        agents.path().join("p.yaml"),
        format!("{pod}status: {{phase: Running}}\n"),
    )
    .unwrap();
    let mut folders = Folders::new(&[users.path().into(), agents.path().into()]);
    let batch = folders.scan();
    let Event::Apply(object) = &batch[1] else {
        panic!("{batch:?}")
    };
    assert!(matches!(&object.body, Body::Pod(pod) if pod.status.is_some()));
    assert!(folders.problems().is_empty());
}

#[test]
fn a_file_replaced_by_a_folder_is_gone_and_the_folder_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, service("a")).unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    folders.scan();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), service("b")).unwrap();
    assert_eq!(names(&folders.scan()), ["-a", "+b"]);
}

#[test]
fn what_a_file_defined_stays_in_force_while_it_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, service("a")).unwrap();
    let mut folders = Folders::new(&[dir.path().into()]);
    folders.scan();
    fs::remove_file(&path).unwrap();
    // A regular file whose first byte cannot be read, by root neither.
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    assert_eq!(names(&folders.scan()), ["!1"]);
    let said = &folders.problems()[0].message;
    assert!(said.starts_with("cannot be read: "), "{said}");
    fs::remove_file(&path).unwrap();
    fs::write(&path, service("b")).unwrap();
    assert_eq!(names(&folders.scan()), ["!0", "-a", "+b"]);
}

/// What is in force, by name, with the file that it is from; and what is wrong.
fn known(folders: &Folders) -> (Vec<(String, PathBuf)>, BTreeSet<String>) {
    let from = |object: &Object| object.place.as_ref().unwrap().source.path.clone();
    let objects = folders
        .in_force
        .values()
        .map(|object| (object.key.name.clone(), from(object)));
    let problems = folders.problems().iter().map(ToString::to_string);
    (objects.collect(), problems.collect())
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]

    /// Files of few names, each with some of few Services, come, change and go: after each scan the same is known as to who
    /// has never looked before.
    #[test]
    fn scans_one_after_the_other_know_what_a_first_one_does(
        edits in proptest::collection::vec((0..6usize, 0..32u8), 1..24)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["one", "two"].map(|root| dir.path().join(root));
        roots.iter().for_each(|root| fs::create_dir_all(root.join("sub")).unwrap());
        let mut folders = Folders::new(&roots);
        folders.scan();
        for (file, services) in edits {
            let path = roots[file % 2].join(["a.yaml", "sub/b.yaml", "sub.yaml"][file / 2]);
            let text: Vec<String> = (0..4).filter(|n| services >> n & 1 == 1).map(|n| service(&format!("s{n}"))).collect();
            match services < 16 {
                true => fs::write(path, text.join("---\n")).unwrap(),
                false => drop(fs::remove_file(path)),
            }
            folders.scan();
            let mut fresh = Folders::new(&roots);
            fresh.scan();
            proptest::prop_assert_eq!(known(&folders), known(&fresh));
        }
    }
}
