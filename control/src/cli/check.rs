//! `sluice check`: manifests to what is wrong with them, without any effect.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::args::{CheckArgs, CheckOutput};
use crate::allocate::{Allocator, Ranges};
use crate::daemon::config::Config;
use crate::lab::net::service_ranges;
use crate::model::{Model, doubts};
use crate::problem::{Problem, Severity};
use crate::source::files::Folders;

/// Exit code 1 if there is an error.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    for path in &args.paths {
        std::fs::metadata(path).with_context(|| format!("{}: cannot be checked", path.display()))?;
    }
    let ranges = match &args.config {
        Some(path) => Config::load(path)?.ranges(),
        None => any_cluster(),
    };
    let mut folders = Folders::new(&args.paths);
    let (model, problems) = read(&mut folders, ranges);
    let stdout = std::io::stdout();
    let report = match args.output {
        CheckOutput::Json => serde_json::to_string_pretty(&problems)? + "\n",
        CheckOutput::Text => {
            let terminal = stdout.is_terminal();
            let colour = terminal && wants_colour();
            let text = |problem: &Problem| match terminal {
                true => problem.with_source(colour) + "\n\n",
                false => format!("{problem}\n"),
            };
            problems.iter().map(text).collect::<String>() + &summary(&folders, &model, &problems)
        }
    };
    // Whoever reads no further (`| head`) needs no more.
    let _ = stdout.lock().write_all(report.as_bytes());
    let wrong = problems.iter().any(|problem| problem.severity == Severity::Error);
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Problems on standard error, with the lines concerned where a person reads it.
pub(super) fn print_problems(problems: &[&Problem]) {
    let terminal = std::io::stderr().is_terminal();
    for problem in problems {
        match terminal {
            true => eprintln!("{}\n", problem.with_source(wants_colour())),
            false => eprintln!("{problem}"),
        }
    }
}

/// Whether a terminal's reader wants colours (<https://no-color.org>).
fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn summary(folders: &Folders, model: &Model, problems: &[Problem]) -> String {
    let count = |severity| {
        problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let some = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        number => format!("{number} {word}s"),
    };
    let mut said = vec![
        some(count(Severity::Error), "error"),
        some(count(Severity::Warning), "warning"),
    ];
    // Other people's objects in the folder are no reproach.
    if count(Severity::Note) > 0 {
        said.push(some(count(Severity::Note), "note"));
    }
    let services = some(model.services().count(), "valid Service");
    format!(
        "{services} in {}: {}\n",
        some(folders.file_count(), "file"),
        said.join(", ")
    )
}

/// One of both families, so that nothing is wrong with a Service for its families alone.
pub(super) fn any_cluster() -> Ranges {
    Ranges {
        services: service_ranges(true).collect(),
        ..Ranges::default()
    }
}

/// What is wrong with the manifests at `paths` in a cluster of these ranges, in the order of files and lines.
pub(super) fn problems(paths: &[PathBuf], ranges: Ranges) -> Vec<Problem> {
    read(&mut Folders::new(paths), ranges).1
}

fn read(folders: &mut Folders, ranges: Ranges) -> (Model, Vec<Problem>) {
    let mut model = Model::new(Allocator::new(ranges, BTreeMap::new()));
    model.apply(folders.scan());
    let mut problems = model.problems();
    problems.extend(doubts::doubts(&model));
    problems.sort_by(|a, b| order(a).cmp(&order(b)));
    (model, problems)
}

fn order(problem: &Problem) -> (&str, usize, usize) {
    let (line, column) = problem
        .spot
        .as_ref()
        .map_or((0, 0), |spot| (spot.line, spot.column));
    (&problem.file, line, column)
}
