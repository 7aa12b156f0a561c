//! kubectl's templates, `{.items[*].metadata.name}{"\n"}`, and single paths, `.spec.clusterIP`. Takes text and a document,
//! gives text. The paths themselves are RFC 9535's: what kubectl writes otherwise is put into its form.

use std::fmt::Write;

use anyhow::{Context, bail};
use serde_json::Value;
use serde_json_path::JsonPath;

/// A path.
#[derive(Clone, Debug)]
pub struct Path {
    path: JsonPath,
    /// It begins at the document, not at the item of a range.
    from_root: bool,
}

impl Path {
    /// A path as kubectl writes it, with or without braces and a leading dot.
    ///
    /// # Errors
    /// It is none.
    pub fn relaxed(text: &str) -> anyhow::Result<Self> {
        let bare = text.trim();
        let bare = bare
            .strip_prefix('{')
            .and_then(|bare| bare.strip_suffix('}'))
            .unwrap_or(bare);
        if bare.starts_with(['.', '[', '$', '@']) {
            Self::parse(bare)
        } else {
            Self::parse(&format!(".{bare}"))
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let rest = text.strip_prefix(['$', '@']).unwrap_or(text);
        let standard = standard(rest).with_context(|| format!("`{text}` is no path"))?;
        let path = JsonPath::parse(&standard);
        let path = path.with_context(|| {
            format!("`{text}` is no path; write one such as .metadata.name or .spec.ports[0].port")
        })?;
        Ok(Self {
            path,
            from_root: text.starts_with('$'),
        })
    }

    /// What it finds in `document`.
    pub fn find<'v>(&self, document: &'v Value) -> Vec<&'v Value> {
        self.path.query(document).all()
    }

    /// What it finds, joined; strings as they are.
    pub fn text(&self, document: &Value, between: &str) -> Option<String> {
        let found: Vec<_> = self.find(document).into_iter().map(plain).collect();
        (!found.is_empty()).then(|| found.join(between))
    }
}

/// A value as a person reads it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// RFC 9535's form: names in brackets, since there a bare name has no dashes.
fn standard(text: &str) -> anyhow::Result<String> {
    let mut out = String::from("$");
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '[' => {
                let end = end_of_bracket(rest).context("a `[` has no `]`")?;
                out += &rest[..end];
                &rest[end..]
            }
            '.' => {
                let (dots, after) = match rest.strip_prefix("..") {
                    Some(after) => ("..", after),
                    None => (".", &rest[1..]),
                };
                let (name, after) = name(after);
                match name.as_str() {
                    // `.` alone, or before a bracket, is the thing itself.
                    "" if dots == "." => {}
                    "" => out += "..",
                    "*" => out += &format!("{dots}*"),
                    name => {
                        let quoted = serde_json::to_string(name)?;
                        let _ = write!(out, "{}[{quoted}]", if dots == ".." { ".." } else { "" });
                    }
                }
                after
            }
            other => bail!("`{other}` stands where `.` or `[` should"),
        };
    }
    Ok(out)
}

/// A name up to the next `.` or `[` that no backslash stands before, and what follows.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => name.extend(characters.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn end_of_bracket(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_usize, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Text with paths in braces.
#[derive(Clone, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Path(Path),
    Range(Path, Vec<Self>),
}

impl Template {
    /// What `{…}` says in each.
    ///
    /// # Errors
    /// A brace that is not closed, a path that is none, a range without end.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        // The parts of every open range, innermost last; the template's own first.
        let mut open: Vec<(Option<Path>, Vec<Part>)> = vec![(None, Vec::new())];
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, inside) = (&rest[..at], &rest[at + 1..]);
            let end = end_of_braces(inside).context("a `{` has no `}`")?;
            let said = inside[..end].trim();
            rest = &inside[end + 1..];
            let mut parts = Vec::new();
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            if let Some(path) = said.strip_prefix("range ") {
                last(&mut open).extend(parts);
                open.push((Some(Path::parse(path)?), Vec::new()));
                continue;
            }
            if said == "end" {
                last(&mut open).extend(parts);
                match open.pop() {
                    Some((Some(path), inner)) if !open.is_empty() => {
                        last(&mut open).push(Part::Range(path, inner))
                    }
                    _ => bail!("{{end}} without {{range …}}"),
                }
                continue;
            }
            parts.push(match said.chars().next() {
                Some('"') => {
                    Part::Text(serde_json::from_str(said).with_context(|| format!("{said} is no text"))?)
                }
                Some('\'') => Part::Text(said.trim_matches('\'').to_owned()),
                _ => Part::Path(Path::parse(said)?),
            });
            last(&mut open).extend(parts);
        }
        if !rest.is_empty() {
            last(&mut open).push(Part::Text(rest.to_owned()));
        }
        match open.pop() {
            Some((None, parts)) => Ok(Self(parts)),
            _ => bail!("{{range …}} without {{end}}"),
        }
    }

    /// The template with what `document` has.
    pub fn fill(&self, document: &Value) -> String {
        let mut out = String::new();
        fill(&self.0, document, document, &mut out);
        out
    }
}

fn last(open: &mut [(Option<Path>, Vec<Part>)]) -> &mut Vec<Part> {
    // The template's own parts are always there.
    let at = open.len() - 1;
    &mut open[at].1
}

fn end_of_braces(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

fn fill(parts: &[Part], root: &Value, item: &Value, out: &mut String) {
    let at = |path: &Path| if path.from_root { root } else { item };
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(path) => out.push_str(&path.text(at(path), " ").unwrap_or_default()),
            Part::Range(path, inner) => {
                for each in path.find(at(path)) {
                    // As kubectl: a list that is found is gone through.
                    match each {
                        Value::Array(items) => items.iter().for_each(|each| fill(inner, root, each, out)),
                        each => fill(inner, root, each, out),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_say_what_kubectls_do() {
        let document = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x", "tier-1": "y"}},
             "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53}]}},
            {"metadata": {"name": "b"}, "spec": {"clusterIP": "None"}},
        ]});
        for (template, said) in [
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].spec.ports[*].port}", "80 53"),
            ("{.items[0].metadata.labels.app\\.kubernetes\\.io/name}", "x"),
            (
                "{.items[0].metadata.labels['tier-1']} {.items[0].metadata.labels.tier-1}",
                "y y",
            ),
            ("{.items[0].spec.ports[?(@.name==\"dns\")].port}", "53"),
            ("{.items[-1:].metadata.name}", "b"),
            (
                "{range .items[*]}{.metadata.name}={.spec.clusterIP}{\"\\n\"}{end}",
                "a=10.96.0.1\nb=None\n",
            ),
            (
                "{range .items[*]}{range .spec.ports}{.name},{end};{end}",
                "http,dns,;;",
            ),
            ("{range .items[*]}{$.kind} {end}", "List List "),
            ("{..port}", "80 53"),
            ("{.items[0].spec.ports[0]}", "{\"name\":\"http\",\"port\":80}"),
            ("{.nothing}here", "here"),
            ("plain", "plain"),
        ] {
            assert_eq!(
                Template::parse(template).unwrap().fill(&document),
                said,
                "{template}"
            );
        }
    }

    #[test]
    fn what_is_no_template_is_refused_with_what_is_wrong() {
        for (template, said) in [
            ("{.a", "a `{` has no `}`"),
            ("{range .a}x", "{range …} without {end}"),
            ("{end}", "{end} without {range …}"),
            ("{.a[0}", "is no path"),
            ("{a b}", "is no path"),
        ] {
            let error = format!("{:#}", Template::parse(template).unwrap_err());
            assert!(error.contains(said), "{template}: {error}");
        }
    }

    #[test]
    fn a_path_may_be_written_with_and_without_its_dressing() {
        let document = json!({"spec": {"clusterIP": "10.96.0.1"}});
        for text in [
            "spec.clusterIP",
            ".spec.clusterIP",
            "{.spec.clusterIP}",
            "{spec.clusterIP}",
            "$.spec.clusterIP",
        ] {
            let path = Path::relaxed(text).unwrap();
            assert_eq!(path.text(&document, ",").as_deref(), Some("10.96.0.1"), "{text}");
        }
    }
}
