//! What is wrong with a manifest, and where: one form for the daemon's log, `sluice check` and the API.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::manifest::yaml::{self, Spot};

/// A file's text, shared by all objects in it.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceText {
    /// Its path as the user gave it.
    pub path: PathBuf,
    /// What it holds.
    pub text: String,
}

/// Where an object was written. Only messages are made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Arc<SourceText>,
    /// Bytes of the document in it.
    pub document: Range<usize>,
    /// Lines of the file before the document.
    pub lines_before: usize,
    /// Path of the object in the document: "", or `items[2]` of a List.
    pub prefix: String,
}

impl Place {
    /// Where `field` of the object is. The document is read again: mistakes are rare, and positions of every field of
    /// every object would cost more memory than the objects.
    fn locate(&self, field: &str) -> Spot {
        let text = self.source.text.get(self.document.clone()).unwrap_or_default();
        let path = match (self.prefix.as_str(), field) {
            ("", field) => field.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, field) => format!("{prefix}.{field}"),
        };
        match yaml::read(text) {
            Ok(Some(node)) => node.locate(&path),
            _ => Spot {
                line: 1,
                column: 1,
                bytes: 0..0,
            },
        }
    }

    /// Where the document is read from, in the terms of the whole file.
    fn in_file(&self, spot: &Spot) -> Spot {
        Spot {
            line: spot.line + self.lines_before,
            column: spot.column,
            bytes: spot.bytes.start + self.document.start..spot.bytes.end + self.document.start,
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is not taken as written.
    Error,
    /// It is taken, but hardly does what is meant.
    Warning,
    /// It is left alone.
    Note,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Path of the file or folder, "" if it came from no file.
    pub file: String,
    /// Where in the file, if it is about a place in it.
    pub spot: Option<Spot>,
    /// `Service shop/web`, or "" if it is not known.
    pub object: String,
    /// Field path, or "".
    pub field: String,
    /// What is wrong, and what is allowed.
    pub message: String,
    source: Option<Arc<SourceText>>,
}

impl Problem {
    /// About a whole file or folder.
    pub fn of_file(severity: Severity, path: &std::path::Path, message: String) -> Self {
        let file = path.display().to_string();
        Self {
            severity,
            file,
            spot: None,
            object: String::new(),
            field: String::new(),
            message,
            source: None,
        }
    }

    /// About a spot of the document at `place`.
    pub fn at(
        severity: Severity,
        place: &Place,
        spot: &Spot,
        object: &str,
        field: &str,
        message: String,
    ) -> Self {
        Self {
            severity,
            file: place.source.path.display().to_string(),
            spot: Some(place.in_file(spot)),
            object: object.into(),
            field: field.into(),
            message,
            source: Some(place.source.clone()),
        }
    }

    /// About a field of the object at `place`.
    pub fn of_field(
        severity: Severity,
        place: Option<&Place>,
        object: &str,
        field: &str,
        message: String,
    ) -> Self {
        match place {
            Some(place) => Self::at(severity, place, &place.locate(field), object, field, message),
            None => Self {
                severity,
                file: String::new(),
                spot: None,
                object: object.into(),
                field: field.into(),
                message,
                source: None,
            },
        }
    }

    /// The line of `Display`, and under it the lines of the file concerned with the place marked.
    pub fn with_source(&self, colour: bool) -> String {
        let (Some(source), Some(spot)) = (&self.source, &self.spot) else {
            return self.to_string();
        };
        // One line before and one after: a file may be megabytes.
        let text = source.text.as_str();
        let at = text.floor_char_boundary(spot.bytes.start);
        let line = text[..at].rfind('\n').map_or(0, |i| i + 1);
        let from = text[..line.saturating_sub(1)].rfind('\n').map_or(0, |i| i + 1);
        let end_of_line = text[at..].find('\n').map_or(text.len(), |i| at + i);
        let to = text
            .get(end_of_line + 1..)
            .and_then(|t| t.find('\n'))
            .map_or(text.len(), |i| end_of_line + 1 + i);
        let first_line = spot.line - usize::from(from < line);
        let marked = at - from..spot.bytes.end.clamp(at, end_of_line) - from;
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let lines = Group::with_level(level).element(
            Snippet::source(&text[from..to])
                .line_start(first_line)
                .annotation(AnnotationKind::Primary.span(marked)),
        );
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        format!("{self}\n{}", renderer.render(&[lines]))
    }

    fn sentence(&self) -> String {
        [self.object.as_str(), self.field.as_str(), self.message.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(": ")
    }
}

/// `file:line:column: object: field: message`; what is no error says so before the object.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.spot) {
            (file, Some(spot)) => write!(f, "{file}:{}:{}: ", spot.line, spot.column)?,
            (file, None) if !file.is_empty() => write!(f, "{file}: ")?,
            _ => {}
        }
        match self.severity {
            Severity::Error => {}
            Severity::Warning => f.write_str("warning: ")?,
            Severity::Note => f.write_str("note: ")?,
        }
        f.write_str(&self.sentence())
    }
}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = serializer.serialize_struct("Problem", 7)?;
        out.serialize_field("severity", &self.severity)?;
        out.serialize_field("file", &self.file)?;
        out.serialize_field("line", &self.spot.as_ref().map(|s| s.line))?;
        out.serialize_field("column", &self.spot.as_ref().map(|s| s.column))?;
        out.serialize_field("object", &self.object)?;
        out.serialize_field("field", &self.field)?;
        out.serialize_field("message", &self.message)?;
        out.end()
    }
}
