//! A mistake in a field of an object, in the API server's own classes.

use std::fmt::{self, Display};

/// Which kind of mistake: the API server's own classes, so that its answers can be compared with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A field that must be given is not.
    Required,
    /// A value that cannot be.
    Invalid,
    /// A value that is not one of a list.
    NotSupported,
    /// A field that may not be given here.
    Forbidden,
    /// A value that may be given once only.
    Duplicate,
    /// More values than there may be.
    TooMany,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldError {
    /// Path, `spec.ports[1].nodePort`.
    pub field: String,
    /// Its class.
    pub reason: Reason,
    /// The value, if that says more.
    pub value: Option<String>,
    /// What would be right.
    pub message: String,
}

impl Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.reason {
            Reason::Required => "Required value",
            Reason::Invalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Forbidden => "Forbidden",
            Reason::Duplicate => "Duplicate value",
            Reason::TooMany => "Too many",
        };
        match &self.value {
            Some(value) => write!(f, "{class}: {value}: {}", self.message),
            None => write!(f, "{class}: {}", self.message),
        }
    }
}

/// A list of mistakes being made.
#[derive(Default)]
pub(crate) struct Errors(pub(crate) Vec<FieldError>);

impl Errors {
    fn push(&mut self, field: &str, reason: Reason, value: Option<String>, message: impl Into<String>) {
        self.0.push(FieldError {
            field: field.into(),
            reason,
            value,
            message: message.into(),
        });
    }

    pub(super) fn required(&mut self, field: &str, message: &str) {
        self.push(field, Reason::Required, None, message);
    }

    pub(crate) fn invalid(&mut self, field: &str, value: impl Display, message: impl Into<String>) {
        self.push(field, Reason::Invalid, Some(value.to_string()), message);
    }

    pub(super) fn forbidden(&mut self, field: &str, message: &str) {
        self.push(field, Reason::Forbidden, None, message);
    }

    pub(super) fn duplicate(&mut self, field: &str, value: impl Display, message: impl Into<String>) {
        self.push(field, Reason::Duplicate, Some(value.to_string()), message);
    }

    pub(super) fn too_many(&mut self, field: &str, count: usize, most: usize) {
        let message = format!("must have at most {most} items");
        self.push(field, Reason::TooMany, Some(count.to_string()), message);
    }

    pub(super) fn one_of(&mut self, field: &str, value: Option<&str>, allowed: &[&str]) {
        match value {
            Some(value) if allowed.contains(&value) => {}
            Some(value) => {
                let near = allowed.iter().find(|allowed| allowed.eq_ignore_ascii_case(value));
                let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
                let message = format!("must be one of {}{near}", allowed.join(", "));
                self.push(field, Reason::NotSupported, Some(format!("\"{value}\"")), message);
            }
            None => self.required(field, &format!("one of {}", allowed.join(", "))),
        }
    }
}
