//! Log lines about objects, and the notes of `/readyz`.

use std::time::Instant;

use nft::Backend;
use object_source::Problem;
use service_dataplane::SyncOutcome;
use service_model::Invalid;

use super::Control;
use super::problem_log::Contest;

/// Maximum number of quarantined Services that readiness names, and of contested frontends in a log line.
const NAMED: usize = 8;

impl<B: Backend> Control<B> {
    /// Logs quarantined Services, and conflicts that are new.
    pub(super) fn log_outcome(&mut self, outcome: &SyncOutcome) {
        for quarantined in &outcome.quarantined {
            tracing::error!(service = %quarantined.service, error = %quarantined.error,
                "the kernel refused this Service; it is quarantined and its last good rules stay in place");
        }
        for contest in self.conflicts.new_contests(&outcome.conflicts) {
            if self.line_limit.permits(Instant::now()) {
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

    /// Facts for the operator that do not make the node unready.
    pub(super) fn notes(&self) -> Vec<String> {
        let quarantined = self.dataplane.quarantine().iter();
        let mut notes: Vec<String> = quarantined
            .take(NAMED)
            .map(|(service, error)| format!("Service {service} is quarantined: {error}"))
            .collect();
        let more = self.dataplane.quarantine().len().saturating_sub(NAMED);
        if more > 0 {
            notes.push(format!("{more} more Services are quarantined"));
        }
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
