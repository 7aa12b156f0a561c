//! `sluice check`: manifests to what is wrong with them, without any effect.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;

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
    // The ranges of a cluster by default; those of a gateway are in its configuration.
    let ranges = Ranges {
        services: "10.96.0.0/16".parse()?,
        node_ports: 30_000..=32_767,
    };
    let mut model = Model::new(Allocator::new(ranges, BTreeMap::new()));
    model.apply(Folders::new(&args.paths).scan());
    let mut problems = model.problems();
    problems.sort_by(|a, b| order(a).cmp(&order(b)));
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

fn order(problem: &Problem) -> (&str, usize, usize) {
    let (line, column) = problem
        .spot
        .as_ref()
        .map_or((0, 0), |spot| (spot.line, spot.column));
    (&problem.file, line, column)
}
