//! Logs problems of objects in a daemon without a control loop, in the words of the loop.

use std::time::Instant;

use object_source::SourceEvent;

use super::line_limit::LineLimit;
use super::problem_log::ProblemLog;
use super::remarks;

/// Logs each problem of an object or file once, until the object or file is valid again. A later line has the number of lines
/// above the limit ([`LineLimit`]), and `portolan status` names the objects.
#[derive(Debug, Default)]
pub(crate) struct ObjectLog {
    problems: ProblemLog,
    lines: LineLimit,
}

impl ObjectLog {
    /// Logs a new problem, and records which objects have a new version, are deleted or are valid again.
    pub(crate) fn event(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Problem(problem) => {
                if self.problems.is_new(problem) && self.lines.permits(Instant::now()) {
                    remarks::log(problem);
                }
            }
            event => self.problems.event(event),
        }
    }
}
