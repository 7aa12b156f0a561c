//! `sluice apply` and `sluice delete`: manifests into and out of the folder that control watches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::args::{ApplyArgs, DeleteArgs, DryRun, ObjectOutput, wanted};
use super::check::print_problems;
use super::selector::Selector;
use super::store::{Store, document};
use crate::manifest::yaml::{self, Value};
use crate::manifest::{self, Key, Object};
use crate::problem::{Problem, Severity, SourceText};
use crate::source::Event;
use crate::source::files::{Folders, text_from};

/// Runs `apply`: all of it, or nothing if anything is wrong.
pub(super) fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let (mut objects, problems) = read(&args.files)?;
    if refused(&problems) {
        return Ok(ExitCode::FAILURE);
    }
    if objects.is_empty() {
        bail!("no objects passed to apply");
    }
    if let Some(namespace) = &args.namespace {
        objects
            .iter_mut()
            .try_for_each(|object| put_into(object, namespace))?;
    }
    let mut store = Store::open(args.api.clone())?;
    put(&mut store, &objects, args.dry_run, args.output)
}

/// Puts an object that names no namespace into this one.
fn put_into(object: &mut Object, namespace: &str) -> anyhow::Result<()> {
    let key = &object.key;
    if !key.kind.is_namespaced() || key.namespace == namespace {
        return Ok(());
    }
    if names_its_namespace(object) {
        bail!(
            "the namespace from the provided object \"{}\" does not match the namespace \"{namespace}\": {key} names its own",
            key.namespace
        );
    }
    object.key.namespace = namespace.into();
    object.body.set_namespace(namespace);
    Ok(())
}

/// Whether an object's text says in which namespace it is.
fn names_its_namespace(object: &Object) -> bool {
    let named = || {
        let place = object.place.as_ref()?;
        let document = yaml::read(&place.source.text[place.document.clone()]).ok()??;
        let index = place
            .prefix
            .strip_prefix("items[")
            .and_then(|rest| rest.strip_suffix(']'));
        let own = match (index, document.get("items").map(|items| &items.value)) {
            (Some(index), Some(Value::Sequence(items))) => items.get(index.parse::<usize>().ok()?)?,
            _ => &document,
        };
        own.get("metadata")?.get("namespace").map(drop)
    };
    named().is_some()
}

/// Writes `objects`, if control would take them, and says so as kubectl does, or shows them.
pub(super) fn put(
    store: &mut Store,
    objects: &[Object],
    dry_run: DryRun,
    output: Option<ObjectOutput>,
) -> anyhow::Result<ExitCode> {
    if refused(&store.judge(objects)) {
        return Ok(ExitCode::FAILURE);
    }
    for (index, object) in objects.iter().enumerate() {
        let change = match dry_run.is_dry() {
            true => store.change(object),
            false => store.put(object, &text(object)?)?,
        };
        match output {
            None => println!("{} {}{}", said(&object.key), change.word(), dry_run.note()),
            Some(ObjectOutput::Name) => println!("{}", said(&object.key)),
            Some(ObjectOutput::Yaml) => {
                let between = if index > 0 { "---\n" } else { "" };
                print!("{between}{}", document(&object.body)?);
            }
            Some(ObjectOutput::Json) => println!("{}", serde_json::to_string_pretty(&object.body.value()?)?),
        }
    }
    if !dry_run.is_dry() {
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

/// An object's text: as it was written where it is a document of its own, and says what the object is.
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
    let text = text.trim_end().to_owned() + "\n";
    let source = SourceText {
        path: place.source.path.clone(),
        text: text.clone(),
    };
    let said = manifest::read(&Arc::new(source)).objects;
    let is_another = said.first().is_none_or(|said| said.key != object.key);
    // JSON is one document to a file.
    match text.trim_start().starts_with('{') || is_another {
        true => document(&object.body),
        false => Ok(text),
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
        _ => bail!("say what to delete: KIND NAME…, KIND/NAME…, KIND --all, KIND -l LABELS, or -f FILE"),
    };
    let mut failed = false;
    let mut gone = Vec::new();
    for key in keys {
        if store.get(&key).is_none() {
            if args.ignore_not_found {
                continue;
            }
            failed = true;
            eprintln!(
                "Error from server (NotFound): {} \"{}\" not found",
                key.kind.resources(),
                key.name
            );
            continue;
        }
        if !args.dry_run.is_dry()
            && let Err(error) = store.remove(&key)
        {
            // Of several, the others go.
            failed = true;
            eprintln!("error: {error:#}");
            continue;
        }
        let place = if key.namespace.is_empty() {
            String::new()
        } else {
            format!(" from {} namespace", key.namespace)
        };
        let note = args.dry_run.note();
        println!("{} \"{}\" deleted{place}{note}", key.kind.resource(), key.name);
        gone.push(key);
    }
    if !args.dry_run.is_dry() {
        store.forget(&gone);
        taken(&store, gone)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The objects that were named, or chosen.
fn named(store: &Store, args: &DeleteArgs, word: &str) -> anyhow::Result<Vec<Key>> {
    let selector = args.selector.as_deref().map(str::parse::<Selector>).transpose()?;
    let selector = selector.or_else(|| args.all.then(Selector::default));
    let mut keys = Vec::new();
    for (kind, names) in wanted(word, &args.names)? {
        if let Some(selector) = selector.as_ref().filter(|_| names.is_empty()) {
            keys.extend(store.selected(kind, &args.namespace, selector));
            continue;
        }
        if names.is_empty() || selector.is_some() {
            bail!(
                "say which: `sluice delete {word} NAME…`, -l LABELS, or --all for all of namespace {}",
                args.namespace
            );
        }
        let namespace = match kind.is_namespaced() {
            true => args.namespace.as_str(),
            false => "",
        };
        keys.extend(names.into_iter().map(|name| Key {
            kind,
            namespace: namespace.into(),
            name,
        }));
    }
    Ok(keys)
}
