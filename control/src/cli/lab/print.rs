//! How the lab's commands print: tables as kubectl has them, colours only for a terminal, `sluice` as it was typed.

use std::io::IsTerminal;

/// What text is marked as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// A heading.
    Bold,
    /// What is wrong.
    Red,
}

/// `text` in a style, if standard output is a terminal that wants it (<https://no-color.org>).
pub(super) fn paint(style: Style, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal()
        || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    let code = match style {
        Style::Bold => 1,
        Style::Red => 31,
    };
    if plain {
        text.to_owned()
    } else {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Prints columns, the first row as their heading.
pub(super) fn table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    let mut lines = aligned(heading, rows).into_iter();
    if let Some(heading) = lines.next() {
        println!("{}", paint(Style::Bold, &heading));
    }
    lines.for_each(|line| println!("{line}"));
}

/// Three blanks between columns, as in kubectl's tables.
fn aligned<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> Vec<String> {
    let heading = heading.map(str::to_owned);
    let all = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    all().map(line).collect()
}

/// The command that was typed to run this program, so that what is printed can be typed as well.
pub(super) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "sluice".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = [["a-long-name", ""], ["b", "x"]].map(|row| row.map(str::to_owned));
        let lines = aligned(["NAME", "IP"], &rows);
        assert_eq!(lines, ["NAME          IP", "a-long-name", "b             x"]);
    }
}
