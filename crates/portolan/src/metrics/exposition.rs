//! The two formats of `/metrics`: Prometheus' text 0.0.4 by default, as kube-proxy answers, and OpenMetrics on request.
//!
//! `prometheus-client` writes OpenMetrics only, in which a counter's family has no `_total` and bounds are written `1.0`.
//! Metadata and `le` labels under other names than kube-proxy's would miss in dashboards and linters.

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::ACCEPT;
use prometheus_client::registry::Registry;

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' text format.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that a request asks for.
    pub(crate) fn requested(headers: &HeaderMap) -> Format {
        let mut accepted = headers.get_all(ACCEPT).iter();
        let is_open = accepted.any(|value| {
            let mut types = value.to_str().unwrap_or_default().split(',');
            types.any(|media| {
                media
                    .trim_start()
                    .starts_with("application/openmetrics-text")
            })
        });
        match is_open {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// The `Content-Type` of the format.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes all metrics of a registry.
    pub(super) fn encode(self, registry: &Registry) -> String {
        let mut open_metrics = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut open_metrics, registry);
        match self {
            Format::Text => text(&open_metrics),
            Format::OpenMetrics => open_metrics,
        }
    }
}

fn text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // `# HELP` precedes `# TYPE`, which decides about the name in both.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(&sample(line));
            text.push('\n');
        }
    }
    text
}

/// `le="1.0"` as `le="1"`.
fn sample(line: &str) -> String {
    let Some((before, rest)) = line.split_once("le=\"") else {
        return line.to_owned();
    };
    let Some((bound, after)) = rest.split_once('"') else {
        return line.to_owned();
    };
    let is_label = before.ends_with(['{', ',']) && before.contains("_bucket{");
    match bound.strip_suffix(".0") {
        Some(bound) if is_label => format!("{before}le=\"{bound}\"{after}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_names_that_kube_proxy_gives_to_types() {
        let open = "# HELP a_changes Changes.\n# TYPE a_changes counter\na_changes_total{le=\"1.0\"} 3\n\
            # HELP b B, in seconds.\n# TYPE b histogram\n# UNIT b seconds\nb_sum 1.0\nb_bucket{le=\"1.0\",x=\"y\"} 1\nb_bucket{le=\"+Inf\"} 1\n\
            # HELP c Version.\n# TYPE c info\nc_info{version=\"1.0\"} 1\n# EOF\n";
        let expected = "# HELP a_changes_total Changes.\n# TYPE a_changes_total counter\na_changes_total{le=\"1.0\"} 3\n\
            # HELP b B, in seconds.\n# TYPE b histogram\nb_sum 1.0\nb_bucket{le=\"1\",x=\"y\"} 1\nb_bucket{le=\"+Inf\"} 1\n\
            # HELP c_info Version.\n# TYPE c_info gauge\nc_info{version=\"1.0\"} 1\n";
        assert_eq!(text(open), expected);
    }

    #[test]
    fn open_metrics_is_for_those_who_ask() {
        let requested = |accept: &'static str| {
            Format::requested(&HeaderMap::from_iter([(
                ACCEPT,
                http::HeaderValue::from_static(accept),
            )]))
        };
        assert_eq!(Format::requested(&HeaderMap::new()), Format::Text);
        assert_eq!(requested("*/*"), Format::Text);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(requested(prometheus), Format::OpenMetrics);
        let text_first =
            "text/plain;version=0.0.4;q=0.5, application/openmetrics-text; version=1.0.0";
        assert_eq!(requested(text_first), Format::OpenMetrics);
    }
}
