//! The figures as a drawing (SVG): a panel for each quantity, a line for each contender, over the size of the
//! cluster. Both axes are logarithmic, since it is the ratios that matter.

use std::fmt::Write;
use std::time::Duration;

use super::run::Figures;
use super::table::scaled;
use crate::shape::Shape;

/// All contenders on one cluster.
pub type Results = (Shape, Vec<(String, Figures)>);

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
/// Left, right, top and bottom of a panel, beside its axes.
const MARGINS: [f64; 4] = [60.0, 16.0, 34.0, 30.0];
/// One for each contender, ours first; told apart by those who do not see colours as most do (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#7fcf9f", "#8a5a9e", "#cc79a7", "#555555",
];

/// A quantity, in a unit that its title names; `None` where it was not measured.
type Quantity = (&'static str, fn(&Figures) -> Option<f64>);

const QUANTITIES: [Quantity; 4] = [
    ("cold start until the last Service answers, s", |figures| {
        figures.cold.map(|cold| cold.as_secs_f64())
    }),
    (
        "one endpoint changed until a packet takes the new way, ms",
        |figures| positive(figures.change.median()).map(|seconds| seconds * 1e3),
    ),
    (
        "processor time of a minute at 100 changes a second, s",
        |figures| positive(scaled(figures.churn_usage.total(), figures.churn_time)),
    ),
    ("peak memory, MiB", |figures| {
        figures.cold?;
        Some(figures.peak as f64 / f64::from(1 << 20))
    }),
];

fn positive(duration: Duration) -> Option<f64> {
    Some(duration.as_secs_f64()).filter(|seconds| *seconds > 0.0)
}

/// The drawing. Equal results give equal bytes.
pub fn draw(results: &[Results]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in results.iter().flat_map(|(_, contenders)| contenders) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let legend = 20.0 * names.len().div_ceil(2) as f64 + 12.0;
    let (width, height) = (2.0 * WIDTH, 2.0 * HEIGHT + legend);
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
    );
    for (number, name) in names.iter().enumerate() {
        let (x, y) = (
            60.0 + WIDTH * (number % 2) as f64,
            20.0 * (number / 2) as f64 + 16.0,
        );
        let colour = colour(number);
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            x + 24.0,
            x + 32.0,
            y + 4.0,
            escaped(name)
        );
    }
    for (number, quantity) in QUANTITIES.iter().enumerate() {
        let (x, y) = (
            WIDTH * (number % 2) as f64,
            HEIGHT * (number / 2) as f64 + legend,
        );
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, results, &names, quantity);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// A panel of [`WIDTH`] by [`HEIGHT`].
fn panel(svg: &mut String, results: &[Results], names: &[&str], (title, value): &Quantity) {
    let lines: Vec<Vec<(f64, f64)>> = names
        .iter()
        .map(|name| {
            results
                .iter()
                .filter_map(|(shape, contenders)| {
                    let (_, figures) = contenders.iter().find(|(of, _)| of == name)?;
                    Some((f64::from(shape.services), value(figures)?))
                })
                .collect()
        })
        .collect();
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"20\" font-weight=\"bold\">{title}</text>",
        MARGINS[0]
    );
    let points = || lines.iter().flatten().copied();
    let (Some(across), Some(up)) = (
        Axis::around(
            points().map(|point| point.0),
            MARGINS[0],
            WIDTH - MARGINS[1],
            1.15,
        ),
        Axis::around(
            points().map(|point| point.1),
            HEIGHT - MARGINS[3],
            MARGINS[2],
            1.5,
        ),
    ) else {
        return;
    };
    for tick in up.ticks() {
        let y = up.at(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            MARGINS[0],
            WIDTH - MARGINS[1],
            MARGINS[0] - 6.0,
            y + 4.0
        );
    }
    for (shape, _) in results {
        let x = across.at(f64::from(shape.services));
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 10.0,
            shape.services
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let points: Vec<String> = line
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", across.at(*x), up.at(*y)))
            .collect();
        let colour = colour(number);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for (x, y) in line {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                across.at(*x),
                up.at(*y)
            );
        }
    }
}

/// A logarithmic axis from the lowest value to the highest.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Around the values, with so much room beside them; `None` when there are none.
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64, room: f64) -> Option<Axis> {
        let (low, high) = values.fold(None, |range: Option<(f64, f64)>, value| {
            let (low, high) = range.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        })?;
        Some(Axis {
            low: low / room,
            high: high * room,
            from,
            to,
        })
    }

    /// Where a value is.
    fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }

    /// The powers of ten on it, and where those are few their doubles and halves.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let steps: &[f64] = if self.high / self.low < 100.0 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let exponents = self.low.log10().floor() as i32..=self.high.log10().floor() as i32;
        exponents
            .flat_map(|exponent| steps.iter().map(move |step| step * 10_f64.powi(exponent)))
            .filter(|tick| (self.low..=self.high).contains(tick))
    }
}

fn colour(number: usize) -> &'static str {
    COLOURS.get(number).copied().unwrap_or("black")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_gives_equal_room_to_equal_ratios() {
        let axis = Axis::around([1.0, 100.0].into_iter(), 0.0, 200.0, 1.0);
        let axis = axis.unwrap_or_else(|| unreachable!("there are values"));
        assert!((axis.at(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [1.0, 10.0, 100.0]);
        let short = Axis::around([4.0, 60.0].into_iter(), 0.0, 200.0, 1.0);
        let short = short.unwrap_or_else(|| unreachable!("there are values"));
        assert_eq!(short.ticks().collect::<Vec<_>>(), [5.0, 10.0, 20.0, 50.0]);
    }

    #[test]
    fn what_was_not_measured_has_no_point() {
        let measured = Figures {
            cold: Some(Duration::from_secs(1)),
            peak: 1 << 20,
            ..Figures::default()
        };
        let results = [(
            Shape::new(1_000, 10),
            vec![
                ("ours".to_owned(), measured),
                ("slow".to_owned(), Figures::default()),
            ],
        )];
        let svg = draw(&results);
        // Cold start and memory of one of two.
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
    }
}
