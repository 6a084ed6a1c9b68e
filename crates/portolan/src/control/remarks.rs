//! Log lines about objects, and the notes of `/readyz`.

use std::time::Instant;

use nft::Backend;
use object_source::{Problem, Subject};
use service_dataplane::SyncOutcome;
use service_model::{Invalid, ObjectKind, ObjectName};

use super::Control;
use super::line_limit::{LineLimit, Names};
use super::problem_log::Contest;

/// Maximum number of quarantined Services and of invalid objects that readiness names, and of contested frontends in a log line.
const NAMED: usize = 8;

/// Limits of log lines. Quarantined Services have their own: invalid objects, which every tenant can make, must not hide the
/// error of the kernel.
#[derive(Debug, Default)]
pub(super) struct LineLimits {
    /// Lines about problems of objects and about conflicts.
    problems: LineLimit,
    /// Lines about Services that the kernel refused or that are over their budget.
    quarantine: LineLimit,
}

impl LineLimits {
    /// When a line with the names of waiting objects is due; `None` when no object waits.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let due = [self.problems.due(now), self.quarantine.due(now)];
        due.into_iter().flatten().min()
    }
}

impl<B: Backend> Control<B> {
    /// Logs quarantined Services, and conflicts that are new.
    pub(super) fn log_outcome(&mut self, outcome: &SyncOutcome) {
        for quarantined in &outcome.quarantined {
            if self.permits_about_quarantined(&quarantined.service) {
                let rules = rules_of_quarantined(quarantined.last_good.is_some());
                tracing::error!(service = %quarantined.service, error = %quarantined.error,
                    "the kernel refused this Service; it is quarantined and {rules}");
            }
        }
        for contest in self.conflicts.new_contests(&outcome.conflicts) {
            if self.line_limits.problems.permits(Instant::now()) {
                let Contest {
                    winner,
                    loser,
                    claims,
                } = contest;
                let named: Vec<String> =
                    claims.iter().take(NAMED).map(ToString::to_string).collect();
                tracing::warn!(frontends = claims.len(), first = named.join("; "), %winner, %loser,
                    "two Services claim the same frontends; the winner keeps them");
            }
        }
    }

    /// Reports a Service that is over its budget from now on. The problem log is for what is true of one version of an
    /// object; this depends on its endpoints as well, and is reported once until the Service is within its budget again.
    /// Called after the batch is part of the desired state: rules of an earlier Service of the name are none of it.
    pub(super) fn report_over_budget(&mut self, invalid: Invalid) {
        if self.permits_about_quarantined(&invalid.object) {
            let rules = rules_of_quarantined(self.dataplane.intent(&invalid.object).is_some());
            tracing::error!(service = %invalid.object, "{invalid}; the Service is quarantined and {rules}");
        }
        let problem = Problem::Object { at: None, invalid };
        for observer in &mut self.observers {
            observer.problem(&problem);
            observer.new_problem(&problem);
        }
    }

    /// Whether a line about an object may be logged now; otherwise the object is named later.
    pub(super) fn permits_about(&mut self, subject: Subject) -> bool {
        let limit = &mut self.line_limits.problems;
        limit.permits_about(subject, Instant::now())
    }

    /// The same for a Service that is quarantined.
    pub(super) fn permits_about_quarantined(&mut self, service: &ObjectName) -> bool {
        let limit = &mut self.line_limits.quarantine;
        limit.permits_about(of_service(service), Instant::now())
    }

    /// Logs the names of waiting objects that still have problems, if a line is due.
    pub(super) fn write_names(&mut self, now: Instant) {
        let problems = &mut self.problems;
        let has_problem = |subject: &Subject| problems.has(subject);
        if let Some(names) = self.line_limits.problems.names(now, has_problem) {
            let what = "further objects have problems; earlier valid versions, or their valid fields, keep serving";
            log_names(what, &names);
        }
        let (refused, view) = (self.dataplane.quarantine(), &self.view);
        let is_quarantined = |subject: &Subject| match subject {
            Subject::Object(_, name) => refused.contains_key(name) || view.is_over_budget(name),
            Subject::File(_) => false,
        };
        if let Some(names) = self.line_limits.quarantine.names(now, is_quarantined) {
            let what = "further Services are quarantined; last good rules stay in place where there are any";
            log_names(what, &names);
        }
    }

    /// Facts for the operator that do not make the node unready.
    pub(super) fn notes(&self) -> Vec<String> {
        let quarantined = self.quarantine.services();
        let named = quarantined.iter().map(|(service, quarantined)| {
            format!("Service {service} is quarantined: {}", quarantined.reason)
        });
        let mut notes = first(named, quarantined.len(), "Services are quarantined");
        let invalid = self.view.wholly_invalid();
        let count = invalid.len();
        let invalid = invalid.map(|problem| format!("{problem}: an earlier valid version serves"));
        notes.extend(first(invalid, count, "objects are invalid"));
        if self.lacks_node {
            let name = &self.facts.node_name;
            notes.push(format!(
                "no Node object has the name of this node, {name}: node ports and policy Local depend on it"
            ));
        }
        if self.standby {
            notes.push("standing by: another process owns the tables".to_owned());
        }
        notes
    }
}

/// What a quarantined Service has in the tables, for a log line.
fn rules_of_quarantined(has_rules: bool) -> &'static str {
    match has_rules {
        true => "its last good rules stay in place",
        false => "has no rules",
    }
}

/// Logs what is the matter with the objects that had to wait, and their names.
fn log_names(what: &str, names: &Names) {
    let Names {
        objects,
        waiting,
        text,
    } = names;
    tracing::error!(objects, waiting, "{what}: {text}");
}

fn of_service(name: &ObjectName) -> Subject {
    Subject::Object(ObjectKind::Service, name.clone())
}

/// The first notes of `count`, and how many more there are. The others are not composed: this happens on every turn.
fn first(all: impl Iterator<Item = String>, count: usize, what: &str) -> Vec<String> {
    let mut notes: Vec<String> = all.take(NAMED).collect();
    if count > notes.len() {
        notes.push(format!("{} more {what}", count - notes.len()));
    }
    notes
}

/// Logs a problem of an object or file, and what is served nevertheless.
pub(super) fn log(problem: &Problem) {
    let consequence = match problem {
        Problem::File { line: 0, .. } => "earlier valid versions of its objects keep serving",
        Problem::File { .. } => {
            "the rest of the file is served, with earlier valid versions of the objects it lacks"
        }
        Problem::Object { .. } => {
            "the object is ignored, and an earlier valid version keeps serving"
        }
        Problem::Field { .. } => "the rest of the object is served",
    };
    match problem.invalid() {
        // A file that cannot be parsed names no object.
        None => tracing::error!("{problem}; {consequence}"),
        Some(Invalid {
            kind,
            object,
            field,
            ..
        }) => tracing::error!(%kind, %object, field, "{problem}; {consequence}"),
    }
}
