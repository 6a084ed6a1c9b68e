//! `portolan doctor`: what the daemon knows about its node, and what the overlay's probes measure when asked.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::anyhow;
use overlay_probe::doctor::{self, DoctorReport};
use serde::Serialize;

use super::client::{self, UNANSWERED, Unanswered, complain};
use super::documents::{NodeCheck, NodeChecks};
use super::print::{Terminal, fitted, json, out};
use crate::cli::{DoctorArgs, OutputForm};

/// Both reports as one document: the fields of the overlay's, and `checks`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    overlay: DoctorReport,
    checks: Vec<NodeCheck>,
}

impl Report {
    /// 0: nothing found; 1: a fault of the node or the overlay; 2: no fault of the node, and the overlay could not be tested.
    fn exit_code(&self) -> u8 {
        match self.checks.iter().all(|check| check.faults.is_empty()) {
            true => self.overlay.exit_code(),
            false => 1,
        }
    }

    /// `tables`: with every measurement. `is_measured`: the overlay's part is there.
    fn text(&self, tables: bool, is_measured: bool) -> String {
        let mut text = match is_measured {
            true => self.overlay.text(tables),
            false => String::new(),
        };
        let node = &self.overlay.node;
        let mut good = Vec::new();
        for NodeCheck {
            check,
            faults,
            notes,
        } in &self.checks
        {
            // Writing to a String does not fail.
            for fault in faults {
                let _ = writeln!(text, "BROKEN {node}: {fault}");
            }
            for note in notes {
                let _ = writeln!(text, "{node}: {note}");
            }
            if faults.is_empty() && notes.is_empty() {
                good.push(check.as_str());
            }
        }
        if !good.is_empty() {
            let _ = writeln!(text, "ok     {node}: {}", good.join(", "));
        }
        text
    }
}

/// Runs the command.
pub fn doctor(args: &DoctorArgs) -> ExitCode {
    let NodeChecks {
        node,
        overlay: has_overlay,
        probes_off,
        checks,
    } = match client::document("/v1/checks") {
        Ok(known) => known,
        Err(error) => return client::unanswered(&error),
    };
    let asked = match probes_off {
        true => Err(anyhow!(
            "the overlay's probes are off (--overlay-probe-port=0)"
        )),
        false => doctor::ask(args.to.as_deref()),
    };
    let is_measured = asked.is_ok();
    let overlay = asked.unwrap_or_else(|error| {
        // One daemon may have the Services, and another the overlay.
        let is_missed = has_overlay || args.to.is_some();
        DoctorReport {
            node,
            trouble: is_missed.then(|| format!("{error:#}")),
            ..DoctorReport::default()
        }
    });
    let report = Report { overlay, checks };
    let is_read = match args.output {
        OutputForm::Text => {
            let text = report.text(args.to.is_some(), is_measured);
            out(&fitted(&text, Terminal::of_stdout()))
        }
        OutputForm::Json => json(&report, false),
    };
    if let (false, Some(trouble)) = (is_measured, &report.overlay.trouble) {
        let reason = format!("the overlay is not measured: {trouble}");
        complain(&Unanswered::because(reason));
    }
    match is_read {
        true => ExitCode::from(report.exit_code()),
        false => ExitCode::from(UNANSWERED),
    }
}
