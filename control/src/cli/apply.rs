//! `sluice apply` and `sluice delete`: manifests into and out of the folder that control watches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::args::{ApplyArgs, DeleteArgs, kind};
use super::check::print_problems;
use super::store::{Store, document};
use crate::manifest::{self, Key, Object};
use crate::problem::{Problem, Severity, SourceText};
use crate::source::Event;
use crate::source::files::{Folders, text_from};

/// Runs `apply`: all of it, or nothing if anything is wrong.
pub(super) fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let (objects, problems) = read(&args.files)?;
    if refused(&problems) {
        return Ok(ExitCode::FAILURE);
    }
    if objects.is_empty() {
        bail!("no objects passed to apply");
    }
    let mut store = Store::open(args.api.clone())?;
    put(&mut store, &objects, args.dry_run)
}

/// Writes `objects`, if control would take them, and says so as kubectl does.
pub(super) fn put(store: &mut Store, objects: &[Object], dry_run: bool) -> anyhow::Result<ExitCode> {
    if refused(&store.judge(objects)) {
        return Ok(ExitCode::FAILURE);
    }
    for object in objects {
        let (change, note) = match dry_run {
            true => (store.change(object), " (dry run)"),
            false => (store.put(object, &text(object)?)?, ""),
        };
        println!("{} {}{note}", said(&object.key), change.word());
    }
    if !dry_run {
        taken(store, objects.iter().map(|object| object.key.clone()).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there are errors, which are printed.
fn refused(problems: &[Problem]) -> bool {
    let errors: Vec<_> = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .collect();
    print_problems(&errors);
    if !errors.is_empty() {
        eprintln!("nothing was applied: correct the above first");
    }
    !errors.is_empty()
}

fn taken(store: &Store, keys: Vec<Key>) -> anyhow::Result<()> {
    if !store.wait(&keys)? {
        eprintln!("control has not taken it yet; `sluice describe service NAME` says what is in the way");
    }
    Ok(())
}

/// `service/web`, as kubectl says it.
pub(super) fn said(key: &Key) -> String {
    format!("{}/{}", key.kind.resource(), key.name)
}

/// An object's text: as it was written where it is a document of its own.
fn text(object: &Object) -> anyhow::Result<String> {
    let place = object.place.as_ref().filter(|place| place.prefix.is_empty());
    let Some(place) = place else {
        return document(&object.body);
    };
    let text = &place.source.text[place.document.clone()];
    let text = match text.split_once('\n') {
        Some((line, rest)) if line.starts_with("---") => rest,
        _ => text,
    };
    // JSON is one document to a file.
    match text.trim_start().starts_with('{') {
        true => document(&object.body),
        false => Ok(text.trim_end().to_owned() + "\n"),
    }
}

/// The objects of files, folders and standard input (`-`), and what is wrong with them.
fn read(paths: &[PathBuf]) -> anyhow::Result<(Vec<Object>, Vec<Problem>)> {
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for path in paths {
        if path == Path::new("-") {
            let text = text_from(std::io::stdin().lock()).map_err(|wrong| anyhow!("<stdin>: {wrong}"))?;
            let contents = manifest::read(&Arc::new(SourceText {
                path: "<stdin>".into(),
                text,
            }));
            objects.extend(contents.objects);
            problems.extend(contents.problems);
            continue;
        }
        std::fs::metadata(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        for event in Folders::new(std::slice::from_ref(path)).scan() {
            match event {
                Event::Apply(object) => objects.push(*object),
                Event::Problems(said) => problems.extend(said),
                _ => {}
            }
        }
    }
    Ok((objects, problems))
}

/// Runs `delete`.
pub(super) fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let mut store = Store::open(args.api.clone())?;
    let keys = match (args.files.is_empty(), &args.kind) {
        (false, None) => {
            let (objects, problems) = read(&args.files)?;
            if refused(&problems) {
                return Ok(ExitCode::FAILURE);
            }
            objects.into_iter().map(|object| object.key).collect()
        }
        (true, Some(word)) => named(&store, args, word)?,
        _ => bail!("say what to delete: KIND NAME…, KIND/NAME, KIND --all, or -f FILE"),
    };
    let mut failed = false;
    let mut gone = Vec::new();
    for key in keys {
        if store.get(&key).is_none() {
            failed = true;
            eprintln!(
                "Error from server (NotFound): {} \"{}\" not found",
                key.kind.resources(),
                key.name
            );
            continue;
        }
        if !args.dry_run {
            store.remove(&key)?;
        }
        let place = if key.namespace.is_empty() {
            String::new()
        } else {
            format!(" from {} namespace", key.namespace)
        };
        let note = if args.dry_run { " (dry run)" } else { "" };
        println!("{} \"{}\" deleted{place}{note}", key.kind.resource(), key.name);
        gone.push(key);
    }
    if !args.dry_run {
        store.forget(&gone);
        taken(&store, gone)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn named(store: &Store, args: &DeleteArgs, word: &str) -> anyhow::Result<Vec<Key>> {
    let (word, mut names) = match word.split_once('/') {
        Some((word, name)) => (word, vec![name.to_owned()]),
        None => (word, Vec::new()),
    };
    let kind = kind(word)?;
    names.extend(args.names.iter().cloned());
    if args.all {
        names = store
            .names(kind, &args.namespace)
            .into_iter()
            .map(str::to_owned)
            .collect();
    } else if names.is_empty() {
        bail!(
            "say which: `sluice delete {word} NAME…`, or --all for all of namespace {}",
            args.namespace
        );
    }
    let namespace = if kind.is_namespaced() {
        args.namespace.clone()
    } else {
        String::new()
    };
    let key = |name: String| Key {
        kind,
        namespace: namespace.clone(),
        name,
    };
    Ok(names.into_iter().map(key).collect())
}
