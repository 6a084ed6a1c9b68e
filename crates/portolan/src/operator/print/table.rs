//! Tables and paragraphs within a width.

use std::collections::BTreeSet;

/// Rows with a heading, in columns two spaces apart.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

/// Columns between two cells.
const GAP: usize = 2;
/// How much further in a row, or a line, continues.
const CONTINUED: usize = 4;

impl Table {
    /// A table with this heading.
    pub(super) fn new(heading: &[&str]) -> Table {
        Table {
            rows: vec![heading.iter().map(|text| (*text).to_owned()).collect()],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether there are no rows below the heading.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The text, each line indented. Nothing is cut: behind a cell that is too long for its column, the row continues on the
    /// next line.
    pub(super) fn text(&self, indent: usize, width: Option<usize>) -> String {
        let room = width.map(|width| width.saturating_sub(indent));
        let mut starts = vec![indent];
        for width in self.widths(room) {
            starts.push(starts.last().map_or(0, |start| start + width + GAP));
        }
        let rows = self.rows.iter();
        rows.map(|row| line(row, &starts, width)).collect()
    }

    /// Widths of the columns: those of their longest cells. Where these do not fit side by side, the longest cells of the
    /// widest columns do not count, so that most rows still are one line.
    fn widths(&self, room: Option<usize>) -> Vec<usize> {
        let heading = self.rows.first().into_iter().flatten();
        let columns = heading.enumerate().map(|(column, heading)| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let lengths = cells.map(|cell| length(cell));
            let lengths = lengths.filter(|cell| *cell >= length(heading));
            Vec::from_iter(BTreeSet::from_iter(lengths))
        });
        let mut columns: Vec<Vec<usize>> = columns.collect();
        let widths = |columns: &[Vec<usize>]| -> Vec<usize> {
            let longest = columns.iter().filter_map(|lengths| lengths.last());
            longest.copied().collect()
        };
        let taken =
            |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while room.is_some_and(|room| taken(&widths(&columns)) > room) {
            let narrowable = columns.iter_mut().filter(|lengths| lengths.len() > 1);
            let Some(widest) = narrowable.max_by_key(|lengths| lengths.last().copied()) else {
                break;
            };
            widest.pop();
        }
        widths(&columns)
    }
}

/// A row, whose cells begin in these columns. A cell that does not fit between its column and the end of the line has lines
/// of its own.
fn line(row: &[String], starts: &[usize], width: Option<usize>) -> String {
    let below = starts.first().map_or(0, |indent| indent + CONTINUED);
    let mut text = String::new();
    // Where the line ends, and where the next cell may begin in it.
    let (mut used, mut free) = (0, 0);
    let cells = row.iter().zip(starts);
    for (cell, start) in cells.filter(|(cell, _)| !cell.is_empty()) {
        let fits = width.is_none_or(|width| start + length(cell) <= width);
        let start = if fits { *start } else { below };
        if free > start || (used > 0 && !fits) {
            text.push('\n');
            used = 0;
        }
        let cell = wrapped(cell, start, width);
        text.push_str(&" ".repeat(start - used));
        text.push_str(&cell);
        used = match cell.rsplit_once('\n') {
            None => start + length(&cell),
            Some((_, last)) => length(last),
        };
        free = used + GAP;
    }
    text.push('\n');
    text
}

/// Columns that a text takes.
fn length(text: &str) -> usize {
    text.chars().count()
}

/// A paragraph behind a label: further lines begin below the first one's text.
pub(super) fn labeled(label: &str, text: &str, width: Option<usize>) -> String {
    const LABEL: usize = 12;
    format!("{label:<LABEL$}{}\n", wrapped(text, LABEL, width))
}

/// The lines of a text; a line that is too long continues below.
pub(super) fn lines(text: &str, width: Option<usize>) -> String {
    let fitted = text.lines().map(|line| {
        let words = line.trim_start();
        let indent = length(line) - length(words);
        match width.is_none_or(|width| length(line) <= width) {
            true => format!("{line}\n"),
            false => {
                let words = wrapped(words, indent + CONTINUED, width);
                format!("{:indent$}{words}\n", "")
            }
        }
    });
    fitted.collect()
}

/// The text with line breaks, where the first line begins in column `indent`, and so do all others.
fn wrapped(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(room) = width.map(|width| width.saturating_sub(indent).max(1)) else {
        return text.to_owned();
    };
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let fits = |line: &&mut String| length(line) + 1 + length(word) <= room;
        match lines.last_mut().filter(fits) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.extend(divided(word, room)),
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

/// A word in pieces that fit into a line: divided behind slashes, since each part of `NAMESPACE/NAME` fits, and anywhere
/// if need be.
fn divided(word: &str, room: usize) -> Vec<String> {
    if length(word) <= room {
        return vec![word.to_owned()];
    }
    let parts = word.split_inclusive('/');
    let parts = parts.map(|part| part.chars().collect::<Vec<char>>());
    let pieces = parts.flat_map(|part| {
        let pieces = part.chunks(room).map(String::from_iter);
        pieces.collect::<Vec<_>>()
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_too_wide_continues_below_and_loses_nothing() {
        let mut table = Table::new(&["SERVICE", "AT", "REMARK"]);
        table.row(["shop/web", "10.96.0.1:80", "one two three four"].map(str::to_owned));
        table.row(["a".repeat(30), "b".to_owned(), "short".to_owned()]);
        table.row([
            format!("{}/names", "a".repeat(33)),
            "c".to_owned(),
            String::new(),
        ]);
        let text = table.text(2, Some(40));
        assert_eq!(
            text,
            "  SERVICE   AT            REMARK
  shop/web  10.96.0.1:80
      one two three four
  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
            b             short
      aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/
      names
            c
"
        );
        let whole = table.text(0, None);
        assert!(
            whole.contains(&"a".repeat(30)) && whole.lines().count() == 4,
            "{whole}"
        );
    }

    #[test]
    fn a_line_or_a_word_that_is_too_long_continues_below() {
        assert_eq!(lines("  one two\nthree\n", None), "  one two\nthree\n");
        assert_eq!(
            lines("  one two three\nfour\n", Some(14)),
            "  one two\n      three\nfour\n"
        );
        let long = "b".repeat(9);
        assert_eq!(lines(&long, Some(8)), "bbbb\n    bbbb\n    b\n");
    }

    #[test]
    fn a_paragraph_is_wrapped_below_its_text() {
        let text = labeled("Source", "one two three", Some(20));
        assert_eq!(text, "Source      one two\n            three\n");
        assert_eq!(labeled("Source", "one two", None), "Source      one two\n");
    }
}
