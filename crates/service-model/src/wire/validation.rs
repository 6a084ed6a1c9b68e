//! The validation of one object: builds [`Invalid`] values and keeps foreign text in them harmless.
//!
//! Invariant: nothing that leaves here holds control characters or more than 64 characters of a foreign
//! value, and an object yields at most [`MAX_WARNINGS`] warnings, however large it is.

use super::Converted;
use crate::objects::{Invalid, ObjectKind, ObjectName};

/// Each is a line in the log, and a slice may hold a thousand faulty endpoints.
const MAX_WARNINGS: usize = 8;
/// See [`Invalid::reason`].
const MAX_VALUE: usize = 64;
/// Longer than any name Kubernetes allows.
const MAX_PRINTED_NAME: usize = 253;

/// Collects the warnings about one object while it is converted.
#[derive(Debug)]
pub(super) struct Validation {
    kind: ObjectKind,
    object: ObjectName,
    warnings: Vec<Invalid>,
    omitted: usize,
}

impl Validation {
    pub(super) fn new(kind: ObjectKind, object: ObjectName) -> Validation {
        Validation {
            kind,
            object,
            warnings: Vec::new(),
            omitted: 0,
        }
    }

    pub(super) fn object(&self) -> &ObjectName {
        &self.object
    }

    /// The object cannot be used.
    pub(super) fn invalid(&self, field: impl Into<String>, reason: impl Into<String>) -> Invalid {
        Invalid {
            kind: self.kind,
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// The field was skipped.
    pub(super) fn warn(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        if self.warnings.len() < MAX_WARNINGS {
            let warning = self.invalid(field, reason);
            self.warnings.push(warning);
        } else {
            self.omitted += 1;
        }
    }

    /// Closes the conversion.
    pub(super) fn converted<T>(mut self, object: T) -> Converted<T> {
        if let (Some(last), 1..) = (self.warnings.last_mut(), self.omitted) {
            last.reason
                .push_str(&format!(" (and {} more like it)", self.omitted));
        }
        Converted {
            object,
            warnings: self.warnings,
        }
    }
}

/// A foreign value in quotes: at most 64 characters of it, control and invisible characters escaped.
pub(super) fn quoted(value: &str) -> String {
    format!("\"{}\"", crate::printable(value, MAX_VALUE))
}

/// A foreign name as it may be printed; what Kubernetes allows comes out unchanged.
pub(super) fn printable(name: &str) -> String {
    crate::printable(name, MAX_PRINTED_NAME)
}
