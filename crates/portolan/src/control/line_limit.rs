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

/// Objects that one line names.
#[derive(Debug)]
pub(super) struct Names {
    /// Number of named objects.
    pub(super) objects: usize,
    /// Number of objects that later lines name.
    pub(super) waiting: usize,
    /// The names, separated by commas.
    pub(super) text: String,
}

impl LineLimit {
    /// Whether a line that names no waiting object may be logged now. If not, the line counts as suppressed.
    pub(super) fn permits(&mut self, now: Instant) -> bool {
        let is_permitted = self.takes(now);
        self.suppressed += u64::from(!is_permitted);
        is_permitted
    }

    /// Whether a line about an object may be logged now. If not, [`LineLimit::names`] names the object.
    pub(super) fn permits_about(&mut self, subject: Subject, now: Instant) -> bool {
        // While objects wait, they come first.
        if self.waiting.is_empty() && self.takes(now) {
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

    /// The names of waiting objects, if a line is due. Objects that have recovered or are gone, which `is_current` says,
    /// are not named.
    pub(super) fn names(
        &mut self,
        now: Instant,
        mut is_current: impl FnMut(&Subject) -> bool,
    ) -> Option<Names> {
        if self.waiting.is_empty() || !self.takes(now) {
            return None;
        }
        let (mut objects, mut text) = (0, String::new());
        while let Some(subject) = self.waiting.pop_first() {
            if !is_current(&subject) {
                continue;
            }
            let separator = if text.is_empty() { "" } else { ", " };
            text = text + separator + &printable(&name(&subject), NAME);
            objects += 1;
            if text.len() >= NAMES {
                break;
            }
        }
        let waiting = self.waiting.len();
        (objects > 0).then_some(Names {
            objects,
            waiting,
            text,
        })
    }

    /// Takes a token, if there is one; then logs how many lines were suppressed before.
    fn takes(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + LINE;
        if full_at > now + LINE * BURST {
            return false;
        }
        self.full_at = Some(full_at);
        let lines = std::mem::take(&mut self.suppressed);
        if lines > 0 {
            tracing::warn!(
                lines,
                "suppressed log lines about objects; metrics count all problems"
            );
        }
        true
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

    fn subject(n: u32) -> Subject {
        let name = ObjectName::new("a-namespace", format!("a-service-of-a-tenant-{n}"));
        Subject::Object(ObjectKind::Service, name)
    }

    #[test]
    fn ten_thousand_objects_are_each_named_once_in_few_lines() {
        let (mut limit, mut now) = (LineLimit::default(), Instant::now());
        let at_once = (0..10_000).filter(|n| limit.permits_about(subject(*n), now));
        let mut named = at_once.count();
        assert_eq!(named, BURST as usize);
        let (start, mut lines) = (now, 0);
        while let Some(due) = limit.due(now) {
            now = now.max(due);
            assert!(!limit.permits_about(subject(9_999), now), "others wait");
            named += limit.names(now, |_| true).map_or(0, |names| names.objects);
            // The control loop asks on each turn, also when nothing is due.
            assert!(limit.names(now, |_| true).is_none());
            assert_eq!(limit.suppressed, 0);
            lines += 1;
        }
        assert_eq!(named, 10_000);
        assert!(lines < 400, "{lines} lines");
        assert!(now - start <= LINE * lines);
        assert!(limit.names(now + LINE, |_| true).is_none());
        assert!(limit.permits_about(subject(1), now + LINE));
    }

    #[test]
    fn an_object_that_recovers_while_it_waits_is_not_named() {
        let (mut limit, now) = (LineLimit::default(), Instant::now());
        for n in 0..BURST + 3 {
            limit.permits_about(subject(n), now);
        }
        let recovered = subject(BURST + 1);
        let names = limit.names(now + LINE, |subject| *subject != recovered);
        let names = names.unwrap();
        assert_eq!((names.objects, names.waiting), (2, 0));
        assert!(!names.text.contains(&name(&recovered)), "{}", names.text);
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
