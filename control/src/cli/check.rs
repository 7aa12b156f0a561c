//! `sluice check`: manifests to what is wrong with them, without any effect.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use ipnet::Ipv4Net;

use super::args::{CheckArgs, CheckOutput};
use crate::allocate::{Allocator, Ranges};
use crate::model::Model;
use crate::problem::{Problem, Severity};
use crate::source::files::Folders;

/// Exit code 1 if there is an error.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    for path in &args.paths {
        anyhow::ensure!(
            path.exists(),
            "{}: there is no such file or folder",
            path.display()
        );
    }
    let model = model(&args.paths);
    let problems = sorted_problems(&model);
    match args.output {
        CheckOutput::Json => println!("{}", serde_json::to_string_pretty(&problems)?),
        CheckOutput::Text => {
            let colour = std::io::stdout().is_terminal();
            problems
                .iter()
                .for_each(|problem| println!("{}\n", problem.snippet(colour)));
            let count = |severity| {
                problems
                    .iter()
                    .filter(|problem| problem.severity == severity)
                    .count()
            };
            println!(
                "{} Services; {} errors, {} warnings, {} notes",
                model.services().count(),
                count(Severity::Error),
                count(Severity::Warning),
                count(Severity::Note)
            );
        }
    }
    let wrong = problems.iter().any(|problem| problem.severity == Severity::Error);
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What is wrong with the manifests at `paths`, in the order of files and lines.
pub(super) fn problems(paths: &[PathBuf]) -> Vec<Problem> {
    sorted_problems(&model(paths))
}

fn model(paths: &[PathBuf]) -> Model {
    // The ranges of a cluster by default; those of a gateway are in its configuration.
    let ranges = Ranges {
        services: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
        node_ports: 30_000..=32_767,
    };
    let mut model = Model::new(Allocator::new(ranges, BTreeMap::new()));
    model.apply(Folders::new(paths).scan());
    model
}

fn sorted_problems(model: &Model) -> Vec<Problem> {
    let mut problems = model.problems();
    problems.sort_by(|a, b| order(a).cmp(&order(b)));
    problems
}

fn order(problem: &Problem) -> (&str, usize, usize) {
    let (line, column) = problem
        .spot
        .as_ref()
        .map_or((0, 0), |spot| (spot.line, spot.column));
    (&problem.file, line, column)
}
