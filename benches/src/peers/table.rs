//! The figures as Markdown: a table for each size of cluster, a line for each contender.

use std::time::Duration;

use super::run::Figures;
use crate::report::{milliseconds, ratio};
use crate::shape::Shape;

const HEAD: &str = "\
| | cold start, until the last Service answers | its processor time (kernel) | restart, rules in place | one endpoint \
changed, until a packet takes the new way | the same at 100 changes a second: p50, p99 | processor time of a minute of \
these (kernel) | peak memory |
|---|---|---|---|---|---|---|---|
";

/// The results of all contenders on one cluster. The first line is ours, and in the others each figure has its ratio
/// to ours beside it.
pub fn table(shape: Shape, patience: Duration, results: &[(String, Figures)]) -> String {
    let mut text = format!(
        "\n### {} Services of {} endpoints\n\n{HEAD}",
        shape.services, shape.endpoints
    );
    let ours = results.first().map(|(_, figures)| figures);
    for (name, figures) in results {
        let base = ours.filter(|ours| !std::ptr::eq(*ours, figures));
        text += &line(name, figures, base, patience);
    }
    text
}

fn line(name: &str, of: &Figures, base: Option<&Figures>, patience: Duration) -> String {
    let Some(cold) = of.cold else {
        return format!(
            "| {name} | not in {} s | | | | | | {} |\n",
            patience.as_secs(),
            mebibytes(of.peak)
        );
    };
    let with_ratio = |text: String, this: Duration, of: Option<Duration>| match of {
        Some(of) if !of.is_zero() => format!("{text} **{}x**", ratio(this, of)),
        _ => text,
    };
    let base_samples = |samples: fn(&Figures) -> Duration| base.map(samples);
    let per_minute = |of: &Figures| scaled(of.churn_usage.total(), of.churn_time);
    let churn_kernel = scaled(of.churn_usage.kernel, of.churn_time);
    let cells = [
        name.to_owned(),
        with_ratio(time(cold), cold, base.and_then(|base| base.cold)),
        with_ratio(
            format!(
                "{} ({})",
                time(of.cold_usage.total()),
                time(of.cold_usage.kernel)
            ),
            of.cold_usage.total(),
            base.map(|base| base.cold_usage.total()),
        ),
        of.restart.map_or_else(String::new, |restart| {
            with_ratio(time(restart), restart, base.and_then(|base| base.restart))
        }),
        with_ratio(
            spread(&of.change),
            of.change.median(),
            base_samples(|base| base.change.median()),
        ),
        with_ratio(
            format!(
                "{}, {} of {}",
                time(of.churn.median()),
                time(of.churn.p99()),
                of.churn.len()
            ),
            of.churn.median(),
            base_samples(|base| base.churn.median()),
        ),
        with_ratio(
            format!("{} ({})", time(per_minute(of)), time(churn_kernel)),
            per_minute(of),
            base.map(per_minute),
        ),
        match base {
            Some(base) if base.peak > 0 => {
                format!(
                    "{} **{:.1}x**",
                    mebibytes(of.peak),
                    of.peak as f64 / base.peak as f64
                )
            }
            _ => mebibytes(of.peak),
        },
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// What a minute would have taken.
fn scaled(usage: Duration, time: Duration) -> Duration {
    usage.mul_f64(60.0 / time.as_secs_f64().max(1.0))
}

fn spread(samples: &crate::samples::Samples) -> String {
    format!(
        "{}, at most {} of {}",
        time(samples.median()),
        time(samples.max()),
        samples.len()
    )
}

/// In the unit that reads best.
fn time(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        milliseconds(duration)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cold: Duration) -> Figures {
        Figures {
            cold: Some(cold),
            peak: 10 << 20,
            ..Figures::default()
        }
    }

    #[test]
    fn peer_row_has_its_ratio_or_the_time_it_had_in_vain() {
        let results = [
            ("ours".to_owned(), figures(Duration::from_millis(500))),
            ("peer".to_owned(), figures(Duration::from_secs(30))),
            ("slow".to_owned(), Figures::default()),
        ];
        let table = table(Shape::new(10, 2), Duration::from_secs(60), &results);
        let line = |name: &str| {
            let start = format!("| {name} |");
            table
                .lines()
                .find(|line| line.starts_with(&start))
                .unwrap_or_default()
        };
        assert!(line("ours").starts_with("| ours | 500 ms |"), "{table}");
        assert!(
            line("peer").starts_with("| peer | 30.0 s **60x** |"),
            "{table}"
        );
        assert!(
            line("slow").starts_with("| slow | not in 60 s |"),
            "{table}"
        );
        let columns = |line: &str| line.matches('|').count();
        assert!(
            table
                .lines()
                .filter(|line| line.starts_with('|'))
                .all(|line| columns(line) == 9),
            "{table}"
        );
    }
}
