//! The table that benches print: each quantity with its target and floor beside it.

use std::time::Duration;

/// One quantity. Cells without a value are empty.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Name of the quantity.
    pub quantity: String,
    /// Required value.
    pub target: String,
    /// Measured value.
    pub measured: String,
    /// Value that nothing can beat, measured in the same run.
    pub floor: String,
    /// Ratio of the measured value to the floor.
    pub ratio: String,
}

/// Rows, printed as Markdown when the bench is over.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a row, and shows it at once on standard error, since a run takes minutes.
    pub fn row(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Prints the table on standard output; nothing when nothing was measured.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!("\n| quantity | target | measured | floor | ratio |");
        println!("|---|---|---|---|---|");
        for row in &self.rows {
            println!("{}", line(row));
        }
    }
}

fn line(row: &Row) -> String {
    let cells = [
        &row.quantity,
        &row.target,
        &row.measured,
        &row.floor,
        &row.ratio,
    ];
    format!("| {} |", cells.map(String::as_str).join(" | "))
}

/// As milliseconds.
pub fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1e3;
    if value < 10.0 {
        format!("{value:.2} ms")
    } else {
        format!("{value:.0} ms")
    }
}

/// As microseconds.
pub fn microseconds(duration: Duration) -> String {
    format!("{:.1} us", duration.as_secs_f64() * 1e6)
}

/// How many times `of` is in `this`.
pub fn ratio(this: Duration, of: Duration) -> String {
    let ratio = this.as_secs_f64() / of.as_secs_f64();
    if ratio < 10.0 {
        format!("{ratio:.2}")
    } else {
        format!("{ratio:.0}")
    }
}
