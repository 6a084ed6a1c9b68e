//! Label and field selectors, as far as a service proxy uses them. A selector that is not understood is an error, never one
//! that matches everything.

use kube::core::{Expression, Selector, SelectorExt};

use super::store::{FIELDS, Stored};

/// A label selector and a field selector together.
#[derive(Clone, Debug)]
pub(super) struct Selectors {
    labels: Selector,
    fields: Selector,
}

impl Selectors {
    /// Parses `labelSelector=` and `fieldSelector=`; empty texts select everything. The error is for a human.
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let expressions = expressions(fields)?;
        let is_known = |expression: &Expression| {
            matches!(expression, Expression::Equal(field, _) | Expression::NotEqual(field, _)
                if FIELDS.iter().any(|(known, _)| known == field))
        };
        if !expressions.iter().all(is_known) {
            return Err(format!("field selector not supported: {fields:?}"));
        }
        Ok(Selectors {
            labels: self::expressions(labels)?.into_iter().collect(),
            fields: expressions.into_iter().collect(),
        })
    }

    pub(super) fn matches(&self, object: &Stored) -> bool {
        self.labels.matches(&object.labels) && self.fields.matches(&object.fields)
    }
}

fn expressions(text: &str) -> Result<Vec<Expression>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(expression)
        .collect()
}

fn expression(part: &str) -> Result<Expression, String> {
    let own = |text: &str| text.trim().to_owned();
    let (key, parsed) = if let Some(key) = part.strip_prefix('!') {
        (key, Expression::DoesNotExist(own(key)))
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Expression::NotEqual(own(key), own(value)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Expression::Equal(own(key), own(value)))
    } else {
        (part, Expression::Exists(own(part)))
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match !key.trim().is_empty() && key.trim().chars().all(is_plain) {
        true => Ok(parsed),
        false => Err(format!("selector not understood: {part:?}")),
    }
}
