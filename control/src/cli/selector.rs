//! Label selectors as typed after `-l`: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::bail;

/// Requirements, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<(String, Requirement)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Selector {
    /// Whether an object with `labels` is selected.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|(key, requirement)| {
            let value = labels.and_then(|labels| labels.get(key));
            match requirement {
                Requirement::In(values) => value.is_some_and(|value| values.contains(value)),
                // An object without the label is not one of them either.
                Requirement::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Requirement::Exists => value.is_some(),
                Requirement::Absent => value.is_none(),
            }
        })
    }
}

impl FromStr for Selector {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut requirements = Vec::new();
        for part in parts(text) {
            requirements.push(requirement(part.trim())?);
        }
        Ok(Self(requirements))
    }
}

/// Labels as typed after `--labels`: `a=b,c=d`.
///
/// # Errors
/// A part that is no `key=value`.
pub fn pairs(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let pair = |part: &str| match part.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => bail!("\"{part}\" is no label; write key=value,key=value"),
    };
    text.split(',').map(pair).collect()
}

/// Splits at commas outside of parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text.trim().is_empty() {
        found.push(&text[start..]);
    }
    found
}

fn requirement(part: &str) -> anyhow::Result<(String, Requirement)> {
    let plain = |text: &str| -> anyhow::Result<String> {
        let text = text.trim();
        if text.is_empty()
            || !text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        {
            bail!(
                "`{part}` is not a label requirement; write key=value, key!=value, key in (a,b), key or !key"
            );
        }
        Ok(text.into())
    };
    let value = |text: &str| {
        if text.trim().is_empty() {
            Ok(String::new())
        } else {
            plain(text)
        }
    };
    if let Some(key) = part.strip_prefix('!') {
        return Ok((plain(key)?, Requirement::Absent));
    }
    if let Some(inside) = part.strip_suffix(')')
        && let Some((head, values)) = inside.split_once('(')
    {
        let values = values.split(',').map(value).collect::<Result<_, _>>()?;
        return match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => Ok((plain(key)?, Requirement::In(values))),
            Some((key, "notin")) => Ok((plain(key)?, Requirement::NotIn(values))),
            _ => bail!("`{part}`: only `in (…)` and `notin (…)` take a list"),
        };
    }
    if let Some((key, unwanted)) = part.split_once("!=") {
        return Ok((plain(key)?, Requirement::NotIn(vec![value(unwanted)?])));
    }
    if let Some((key, wanted)) = part.split_once('=') {
        let wanted = wanted.strip_prefix('=').unwrap_or(wanted);
        return Ok((plain(key)?, Requirement::In(vec![value(wanted)?])));
    }
    Ok((plain(part)?, Requirement::Exists))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_selects_what_kubectl_would() {
        let labels: BTreeMap<String, String> = [("tier", "web"), ("env", "prod")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        for (text, matches) in [
            ("", true),
            ("tier=web", true),
            ("tier==web,env=prod", true),
            ("tier=db", false),
            ("tier!=db", true),
            ("x!=y", true),
            ("tier in (web, db)", true),
            ("tier notin (web),env", false),
            ("tier,env", true),
            ("!tier", false),
            ("!x", true),
            ("x", false),
            ("tier=", false),
        ] {
            assert_eq!(
                text.parse::<Selector>().unwrap().matches(Some(&labels)),
                matches,
                "{text}"
            );
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["bad=a=b", "a,,b", "a of (b)", "=x"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
