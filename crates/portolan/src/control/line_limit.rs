//! Bounds how many log lines objects can cause: [`BURST`] lines, then five a second. Objects whose line has to wait are named
//! together, many in a line, so that each one is named and the log stays small.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use object_source::Subject;
use service_model::printable;

/// Lines that may be logged in a row.
const BURST: u32 = 100;
/// Interval after which one more line may be logged.
const LINE: Duration = Duration::from_millis(200);
/// Maximum number of objects that wait to be named. Tenants can create and delete objects for ever.
const WAITING: usize = 20_000;
/// Bytes of names in a line, and maximum length of a name: those of objects in a real cluster fit.
const NAMES: usize = 1_500;
const NAME: usize = 320;

/// Token bucket for log lines about objects.
#[derive(Debug, Default)]
pub(super) struct LineLimit {
    /// When a whole burst may be logged again.
    full_at: Option<Instant>,
    /// Lines that are never written.
    suppressed: u64,
    /// Objects and files that are named later.
    waiting: BTreeSet<Subject>,
}

impl LineLimit {
    /// Whether a line may be logged now; logs how many lines were suppressed before.
    pub(super) fn permits(&mut self, now: Instant) -> bool {
        let is_permitted = self.takes(now);
        let lines = match is_permitted {
            true => std::mem::take(&mut self.suppressed),
            false => {
                self.suppressed += 1;
                0
            }
        };
        if lines > 0 {
            tracing::warn!(
                lines,
                "suppressed log lines about objects; metrics count all problems"
            );
        }
        is_permitted
    }

    /// Whether a line about an object may be logged now. If not, [`LineLimit::write`] names the object.
    pub(super) fn permits_about(&mut self, subject: Subject, now: Instant) -> bool {
        // While objects wait, they come first.
        if self.waiting.is_empty() && self.permits(now) {
            return true;
        }
        match self.waiting.len() < WAITING {
            true => drop(self.waiting.insert(subject)),
            false => self.suppressed += 1,
        }
        false
    }

    /// When a line with the names of waiting objects is due; `None` when no object waits.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let due = self
            .full_at
            .and_then(|at| at.checked_sub(LINE * (BURST - 1)));
        (!self.waiting.is_empty()).then(|| due.unwrap_or(now))
    }

    /// Logs the names of waiting objects if a line is due, and returns how many it has named.
    pub(super) fn write(&mut self, now: Instant) -> usize {
        if self.waiting.is_empty() || !self.permits(now) {
            return 0;
        }
        let (mut objects, mut names) = (0, String::new());
        while let Some(subject) = self.waiting.pop_first() {
            let separator = if names.is_empty() { "" } else { ", " };
            names = names + separator + &printable(&name(&subject), NAME);
            objects += 1;
            if names.len() >= NAMES {
                break;
            }
        }
        tracing::error!(
            objects,
            waiting = self.waiting.len(),
            "further objects have problems; earlier valid versions, or their valid fields, keep serving: {names}"
        );
        objects
    }

    /// Takes a token, if there is one.
    fn takes(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + LINE;
        let is_permitted = full_at <= now + LINE * BURST;
        if is_permitted {
            self.full_at = Some(full_at);
        }
        is_permitted
    }
}

fn name(subject: &Subject) -> String {
    match subject {
        Subject::File(path) => path.display().to_string(),
        Subject::Object(kind, name) => format!("{kind} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use service_model::{ObjectKind, ObjectName};

    use super::*;

    #[test]
    fn ten_thousand_objects_are_each_named_once_in_few_lines() {
        let (mut limit, mut now) = (LineLimit::default(), Instant::now());
        let subject = |n: u32| {
            let name = ObjectName::new("a-namespace", format!("a-service-of-a-tenant-{n}"));
            Subject::Object(ObjectKind::Service, name)
        };
        let at_once = (0..10_000).filter(|n| limit.permits_about(subject(*n), now));
        let mut named = at_once.count();
        assert_eq!(named, BURST as usize);
        let (start, mut lines) = (now, 0);
        while let Some(due) = limit.due(now) {
            now = now.max(due);
            assert!(!limit.permits_about(subject(9_999), now), "others wait");
            named += limit.write(now);
            lines += 1;
        }
        assert_eq!(named, 10_000);
        assert!(lines < 400, "{lines} lines");
        assert!(now - start <= LINE * lines);
        assert_eq!(limit.write(now + LINE), 0);
        assert!(limit.permits_about(subject(1), now + LINE));
    }

    #[test]
    fn lines_that_name_no_object_are_five_a_second() {
        let (mut limit, start) = (LineLimit::default(), Instant::now());
        let mut lines = 0;
        for n in 0..10_000 {
            let now = start + Duration::from_millis(1) * n;
            lines += usize::from(limit.permits(now));
        }
        assert!((140..=151).contains(&lines), "{lines} lines in ten seconds");
    }
}
