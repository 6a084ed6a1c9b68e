//! Runs the probes of the overlay inside the daemon: hands them the plan, metrics, Events and legacy iptables.

use std::sync::Arc;

use anyhow::Result;
use overlay_probe::{
    Environment, LegacyIptables, Measurement, Observer, ProbeConfig, ProbeEvent, RoundSummary,
    SharedProbeStatus,
};
use tokio_util::sync::CancellationToken;

use super::SharedOverlayStatus;
use crate::events::{Recorder, Severity, Subject};
use crate::metrics::Metrics;
use crate::takeover::legacy;

/// Where the probes report.
pub struct ProbeReports {
    /// Receives the findings of each round.
    pub status: SharedProbeStatus,
    /// Counts probes and failing peers.
    pub metrics: Arc<Metrics>,
    /// Creates Events of this Node.
    pub recorder: Recorder,
}

/// Starts the probes on a thread of their own, until canceled.
pub fn start(
    config: ProbeConfig,
    overlay: SharedOverlayStatus,
    reports: ProbeReports,
    cancel: CancellationToken,
) -> Result<()> {
    let environment = Environment {
        plan: Box::new(move || overlay.load().plan.clone()),
        legacy: LegacyIptables {
            tables: legacy::tables,
            dropping_forwarders: legacy::dropping_forwarders,
        },
        status: reports.status.clone(),
        observer: Box::new(reports),
    };
    overlay_probe::start(config, environment, cancel)
}

impl Observer for ProbeReports {
    fn measured(&self, measured: &Measurement) {
        self.metrics.probes.measured(measured);
    }

    fn alarm(&self) {
        self.metrics.probes.alarm();
    }

    fn round(&self, round: &RoundSummary<'_>) {
        self.metrics.probes.round(round);
    }

    fn event(&self, event: ProbeEvent<'_>) {
        let severity = match event.is_warning {
            true => Severity::Warning,
            false => Severity::Normal,
        };
        let words = (event.reason, "Probe");
        self.recorder
            .tell(Subject::Node, severity, words, event.note);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use lab::{Lab, scenario};

    use super::*;

    #[scenario]
    fn legacy_tables_and_their_forward_policy_are_read() -> Result<()> {
        let lab = Lab::new()?;
        let node = lab.node("node-a")?;
        assert_eq!(node.run(legacy::tables)?, Vec::<String>::new());
        let mut command = node.command("iptables-legacy");
        command.args(["-P", "FORWARD", "DROP"]);
        let output = node.output(command)?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(
                std::env::var_os("CI").is_none(),
                "no legacy iptables: {why}"
            );
            eprintln!("SKIPPED: no legacy iptables: {why}");
            return Ok(());
        }
        let tables = node.run(legacy::tables)?;
        assert!(
            tables.iter().any(|t| t == "iptables-legacy -t filter"),
            "{tables:?}"
        );
        let programs = node.run(legacy::dropping_forwarders)?;
        let program = programs.first().context("no program is named")?;
        assert_eq!(*program, "iptables-legacy");
        Ok(())
    }
}
