//! Label and field selectors, as far as a service proxy uses them. What is not understood is an error, never
//! a selector that matches everything.

use super::store::Stored;

/// One comma-separated part of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Exists(String),
    Absent(String),
    Equal(String, String),
    Unequal(String, String),
}

/// Fields that a selector can name.
const FIELDS: [&str; 3] = ["metadata.name", "metadata.namespace", "spec.clusterIP"];

/// A label selector and a field selector together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

impl Selector {
    /// Of `labelSelector=` and `fieldSelector=`; empty texts select everything. The error is for a human.
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let selector = Selector {
            labels: terms(labels)?,
            fields: terms(fields)?,
        };
        for term in &selector.fields {
            match term {
                Term::Equal(field, _) | Term::Unequal(field, _)
                    if FIELDS.contains(&field.as_str()) => {}
                _ => return Err(format!("field selector not supported: {fields:?}")),
            }
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Stored) -> bool {
        let label = |key: &str| object.labels.get(key).map(String::as_str);
        let field = |key: &str| match key {
            "metadata.name" => Some(object.key.1.as_str()),
            "spec.clusterIP" => object.cluster_ip.as_deref(),
            _ => Some(object.key.0.as_str()),
        };
        self.labels.iter().all(|term| term.holds(label))
            && self.fields.iter().all(|term| term.holds(field))
    }
}

impl Term {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Term::Exists(key) => value(key).is_some(),
            Term::Absent(key) => value(key).is_none(),
            Term::Equal(key, wanted) => value(key) == Some(wanted),
            Term::Unequal(key, unwanted) => value(key) != Some(unwanted),
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(term)
        .collect()
}

fn term(part: &str) -> Result<Term, String> {
    let own = |text: &str| text.trim().to_owned();
    let parsed = if let Some(key) = part.strip_prefix('!') {
        Term::Absent(own(key))
    } else if let Some((key, value)) = part.split_once("!=") {
        Term::Unequal(own(key), own(value))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Term::Equal(own(key), own(value))
    } else {
        Term::Exists(own(part))
    };
    let (Term::Exists(key) | Term::Absent(key) | Term::Equal(key, _) | Term::Unequal(key, _)) =
        &parsed;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(plain) {
        return Err(format!("selector not understood: {part:?}"));
    }
    Ok(parsed)
}
