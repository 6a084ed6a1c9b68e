//! Two scrapes in Prometheus' text format, compared by name, type, labels and bucket bounds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// Why one of kube-proxy's families has no counterpart, or another shape.
pub const EXCEPTIONS: &[(&str, &str)] = &[
    ("rest_client_exec_plugin_", "no credential plugins"),
    (
        "rest_client_rate_limiter_duration_seconds",
        "no rate limiter",
    ),
    ("rest_client_request_size_bytes", "optional"),
    ("rest_client_response_size_bytes", "optional"),
    ("rest_client_transport_", "of Go's transport"),
];

/// Prefixes of the families that people's dashboards and alerts use.
const COMPARED: [&str; 3] = ["kubeproxy_", "process_", "rest_client_"];

/// A family of a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shape {
    kind: String,
    /// Sets of label names, without `le`. Empty while no series has been made.
    labels: BTreeSet<BTreeSet<String>>,
    /// Bounds as they are written.
    bounds: BTreeSet<String>,
}

/// The families of a scrape by name.
pub fn shapes(scrape: &str) -> Result<BTreeMap<String, Shape>> {
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    let mut current = String::new();
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
            name.clone_into(&mut current);
            kind.clone_into(&mut shapes.entry(current.clone()).or_default().kind);
        } else if !line.starts_with('#') {
            let shape = shapes.get_mut(&current).with_context(|| line.to_owned())?;
            let mut names = BTreeSet::new();
            let labels = line
                .split_once('{')
                .and_then(|(_, rest)| rest.rsplit_once('}'));
            for label in labels.map_or("", |(labels, _)| labels).split("\",") {
                match label.split_once("=\"") {
                    None => {}
                    Some(("le", bound)) => {
                        shape.bounds.insert(bound.trim_end_matches('"').to_owned());
                    }
                    Some((name, _)) => {
                        names.insert(name.to_owned());
                    }
                }
            }
            shape.labels.insert(names);
        }
    }
    Ok(shapes)
}

/// Each way in which a dashboard for kube-proxy's scrape would miss something in ours.
pub fn missing(theirs: &str, ours: &str) -> Result<Vec<String>> {
    let (theirs, ours) = (shapes(theirs)?, shapes(ours)?);
    let mut missing = Vec::new();
    for (name, their) in &theirs {
        let is_compared = COMPARED.iter().any(|prefix| name.starts_with(prefix));
        if !is_compared
            || EXCEPTIONS
                .iter()
                .any(|(prefix, _)| name.starts_with(prefix))
        {
            continue;
        }
        let Some(our) = ours.get(name) else {
            missing.push(format!("{name}: no such family"));
            continue;
        };
        if our.kind != their.kind {
            missing.push(format!("{name}: {} instead of {}", our.kind, their.kind));
        }
        if our.labels != their.labels {
            missing.push(format!(
                "{name}: labels {:?} instead of {:?}",
                our.labels, their.labels
            ));
        }
        let bounds: Vec<_> = their.bounds.difference(&our.bounds).collect();
        if !bounds.is_empty() {
            missing.push(format!("{name}: no bounds {bounds:?}"));
        }
    }
    Ok(missing)
}
