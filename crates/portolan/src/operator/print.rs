//! Documents as text for people: as wide as the terminal, and plain in a pipe.

use std::io::{IsTerminal, Write};

use serde::Serialize;

mod services;
mod status;
mod table;
mod trace;
mod traffic;

pub(super) use services::{service, services};
pub(super) use status::status;
pub(super) use trace::{live, trace, verification};
pub(super) use traffic::{flows, top};

/// Where text is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terminal {
    /// Columns; `None` in a pipe or file, where lines are as long as they are.
    pub(super) width: Option<usize>,
    /// Whether to mark verdicts by color.
    pub(super) colors: bool,
}

/// Columns from which on tables have room for the names of pods.
const WIDE: usize = 140;
/// Narrower terminals are treated as this wide.
const LEAST_WIDTH: usize = 60;

impl Terminal {
    /// Standard output.
    pub(super) fn of_stdout() -> Terminal {
        let out = std::io::stdout();
        if !out.is_terminal() {
            return Terminal {
                width: None,
                colors: false,
            };
        }
        let size = rustix::termios::tcgetwinsize(&out).ok();
        let columns = size
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Terminal {
            width: Some(columns.unwrap_or(80).max(LEAST_WIDTH)),
            // https://no-color.org
            colors: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Whether tables have room for the names of pods.
    fn is_wide(self) -> bool {
        self.width.is_none_or(|width| width >= WIDE)
    }

    /// What moves the cursor home and clears the screen, in a terminal and if wanted.
    pub(super) fn cleared(self, is_wanted: bool) -> String {
        let clears = is_wanted && self.width.is_some();
        if clears { "\u{1b}[H\u{1b}[2J" } else { "" }.to_owned()
    }

    /// Text that says that all is well, or not.
    fn marked(self, text: &str, is_good: bool) -> String {
        match (self.colors, is_good) {
            (false, _) => text.to_owned(),
            (true, true) => format!("\u{1b}[32m{text}\u{1b}[0m"),
            (true, false) => format!("\u{1b}[31m{text}\u{1b}[0m"),
        }
    }
}

/// A text whose lines fit into the terminal.
pub(super) fn fitted(text: &str, terminal: Terminal) -> String {
    table::lines(text, terminal.width)
}

/// Prints text. Returns whether the output is read: a reader that closes the pipe early is no failure.
pub(super) fn out(text: &str) -> bool {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).is_ok() && out.flush().is_ok()
}

/// Prints a document as one JSON object: on one line, or on several for people. Returns as [`out`].
pub(super) fn json(document: &impl Serialize, on_one_line: bool) -> bool {
    let text = match on_one_line {
        true => serde_json::to_string(document),
        false => serde_json::to_string_pretty(document),
    };
    text.is_ok_and(|text| out(&format!("{text}\n")))
}

/// A number of seconds as people say it: `3 s`, `12 min`, `5 h`, `2 d`.
fn ago(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A short duration: `0.35 ms`, `12 ms`, `1.20 s`.
fn short(seconds: f64) -> String {
    let millis = seconds * 1e3;
    match millis {
        _ if millis < 10.0 => format!("{millis:.2} ms"),
        _ if millis < 1_000.0 => format!("{millis:.0} ms"),
        _ => format!("{seconds:.2} s"),
    }
}

/// A number and its noun.
fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_people_use() {
        assert_eq!(
            [3.7, 119.0, 150.0, 7_300.0, 2e6].map(ago),
            ["3 s", "119 s", "2 min", "2 h", "23 d"]
        );
        assert_eq!(
            [0.000_35, 0.012_4, 1.2].map(short),
            ["0.35 ms", "12 ms", "1.20 s"]
        );
        assert_eq!(count(1, "Service", "Services"), "1 Service");
    }
}
