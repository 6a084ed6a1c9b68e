//! Runs the probes of the overlay inside the daemon: hands them the plan, metrics, Events and legacy iptables.

use std::sync::Arc;

use anyhow::Result;
use overlay_probe::{
    Environment, LegacyIptables, Measurement, Observer, ProbeConfig, ProbeEvent, RoundSummary,
    SharedProbeStatus,
};

use super::SharedOverlayStatus;
use crate::events::{Recorder, Severity, Subject};
use crate::metrics::Metrics;
use crate::parts::Parts;
use crate::silent::SilentPeers;
use crate::takeover::legacy;

/// Where the probes report.
pub struct ProbeReports {
    /// Receives the findings of each round.
    pub status: SharedProbeStatus,
    /// Counts probes and failing peers.
    pub metrics: Arc<Metrics>,
    /// Creates Events of this Node.
    pub recorder: Recorder,
    /// Tells failover of peers that answer nothing.
    pub silent: SilentPeers,
}

/// Starts the probes.
pub(crate) fn start(
    parts: &Parts,
    config: ProbeConfig,
    overlay: SharedOverlayStatus,
    reports: ProbeReports,
) -> Result<()> {
    let of_faults = overlay.clone();
    let environment = Environment {
        plan: Box::new(move || overlay.load().plan.clone()),
        faults: Box::new(move || of_faults.load().faults()),
        legacy: LegacyIptables {
            tables: legacy::tables,
            dropping_forwarders: legacy::dropping_forwarders,
        },
        status: reports.status.clone(),
        observer: Box::new(reports),
    };
    run(parts, config, environment)
}

fn run(parts: &Parts, config: ProbeConfig, environment: Environment) -> Result<()> {
    let cancel = parts.cancel();
    parts.runtime("probe", async move || {
        overlay_probe::run(config, environment, cancel).await;
        Ok(())
    })?;
    Ok(())
}

impl Observer for ProbeReports {
    fn measured(&self, measured: &Measurement) {
        self.metrics.probes.measured(measured);
    }

    fn silent(&self, node: &Arc<str>) {
        self.silent.add(node);
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
            .record(Subject::Node, severity, words, event.note);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context;
    use lab::{Lab, scenario};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::parts::parts;

    struct Ignores;

    impl Observer for Ignores {
        fn measured(&self, _: &Measurement) {}
        fn silent(&self, _: &Arc<str>) {}
        fn alarm(&self) {}
        fn round(&self, _: &RoundSummary<'_>) {}
        fn event(&self, _: ProbeEvent<'_>) {}
    }

    #[tokio::test]
    async fn panic_of_the_probes_ends_the_daemon_and_names_them() -> Result<()> {
        let (parts, ends) = parts(CancellationToken::new());
        let config = ProbeConfig {
            own: "node-a".into(),
            port: 0,
            interval: Duration::from_secs(3600),
        };
        let environment = Environment {
            plan: Box::new(|| panic!("no plan")),
            faults: Box::new(Vec::new),
            legacy: LegacyIptables {
                tables: Vec::new,
                dropping_forwarders: Vec::new,
            },
            status: SharedProbeStatus::default(),
            observer: Box::new(Ignores),
        };
        run(&parts, config, environment)?;
        drop(parts);
        let error = tokio::time::timeout(Duration::from_secs(10), ends.wait()).await?;
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, "probe failed: panicked: no plan");
        Ok(())
    }

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
