//! A mistake in a document: the field's path, its place, and what is wrong.

use std::fmt;

use serde::de;

use crate::manifest::yaml::Spot;

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Field path, `spec.ports[1].nodePort`.
    pub field: String,
    /// What is wrong, as a sentence's predicate: the field's path comes before it.
    pub message: String,
    /// Where in the document.
    pub spot: Spot,
}

/// A mistake that ends the reading of a document; a visitor that makes one does not know its place.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) field: String,
    pub(super) message: String,
    pub(super) spot: Option<Spot>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            field: String::new(),
            message: message.to_string(),
            spot: None,
        }
    }
}

/// The way from the document's root, as a list on the stack.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    pub(super) parent: Option<&'a Self>,
    pub(super) part: Part<'a>,
}

/// One step of it.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    Root,
    Field(&'a str),
    Item(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.part {
            Part::Root => Ok(()),
            Part::Item(index) => write!(f, "[{index}]"),
            Part::Field(name) if name.contains(['.', '/']) => write!(f, "[{name}]"),
            Part::Field(name) if parent.parent.is_none() => write!(f, "{name}"),
            Part::Field(name) => write!(f, ".{name}"),
        }
    }
}
