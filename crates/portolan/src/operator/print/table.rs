//! Tables and paragraphs within a width.

/// Rows with a heading, in columns two spaces apart.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

/// Least width of a column that is shortened.
const LEAST: usize = 12;
/// Room that is kept for the last column, if its cells need as much.
const LAST: usize = 20;
/// How much further in a row continues.
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

    /// The text, each line indented. Where the width does not suffice, the last cell of a row continues on lines of its own,
    /// and the widest of the other columns are shortened.
    pub(super) fn text(&self, indent: usize, width: Option<usize>) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths = self.widths(columns.saturating_sub(1), indent, width);
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let cells = cells.map(|(cell, width)| format!("{:<width$}  ", shortened(cell, *width)));
            let line = format!("{:indent$}{}", "", cells.collect::<String>());
            let last = row.get(widths.len()).map_or("", String::as_str);
            let used = line.chars().count() + last.chars().count();
            if width.is_none_or(|width| used <= width) {
                text.push_str(format!("{line}{last}").trim_end());
                text.push('\n');
            } else {
                text.push_str(line.trim_end());
                let below = " ".repeat(indent + CONTINUED);
                text.push_str(&format!("\n{below}"));
                text.push_str(&wrapped(last, below.len(), width));
                text.push('\n');
            }
        }
        text
    }

    /// Widths of the first `count` columns.
    fn widths(&self, count: usize, indent: usize, width: Option<usize>) -> Vec<usize> {
        let longest = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let lengths = cells.map(|cell: &String| cell.chars().count());
            lengths.max().unwrap_or_default()
        };
        let mut widths: Vec<usize> = (0..count).map(longest).collect();
        let taken = indent + 2 * count + longest(count).min(LAST);
        let room = width.map(|width| width.saturating_sub(taken));
        while room.is_some_and(|room| widths.iter().sum::<usize>() > room) {
            let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > LEAST) else {
                break;
            };
            *widest -= 1;
        }
        widths
    }
}

/// At most this many characters, the last of them an ellipsis if some are missing.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// A paragraph behind a label: further lines begin below the first one's text.
pub(super) fn labeled(label: &str, text: &str, width: Option<usize>) -> String {
    const LABEL: usize = 12;
    format!("{label:<LABEL$}{}\n", wrapped(text, LABEL, width))
}

/// The text with line breaks, where the first line begins in column `indent`, and so do all others.
fn wrapped(text: &str, indent: usize, width: Option<usize>) -> String {
    let mut out = String::new();
    let mut used = indent;
    for (number, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        let fits = width.is_none_or(|width| used + 1 + length <= width);
        match (number, fits) {
            (0, _) => used += length,
            (_, true) => {
                out.push(' ');
                used += 1 + length;
            }
            (_, false) => {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                used = indent + length;
            }
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_too_wide_continues_below_and_loses_nothing() {
        let mut table = Table::new(&["SERVICE", "AT", "REMARK"]);
        table.row(["shop/web", "10.96.0.1:80", "one two three four"].map(str::to_owned));
        table.row(["a".repeat(60), "b".to_owned(), "short".to_owned()]);
        let text = table.text(2, Some(40));
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(text.contains("\n      one two three four\n"), "{text}");
        assert!(text.contains("aaa…  b"), "{text}");
        let whole = table.text(0, None);
        assert!(
            whole.contains(&"a".repeat(60)) && whole.lines().count() == 3,
            "{whole}"
        );
    }

    #[test]
    fn a_paragraph_is_wrapped_below_its_text() {
        let text = labeled("Source", "one two three", Some(20));
        assert_eq!(text, "Source      one two\n            three\n");
        assert_eq!(labeled("Source", "one two", None), "Source      one two\n");
    }
}
