//! Alert rules of `deploy/monitoring`, tested by promtool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn monitoring() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("the checkout")?
        .join("deploy/monitoring"))
}

fn promtool(arguments: &[&str], folder: &Path) -> Result<()> {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("start promtool (Debian: package prometheus)")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    ensure!(output.status.success(), "promtool {arguments:?}: {text}");
    Ok(())
}

#[test]
#[ignore = "needs prometheus"]
fn each_alert_fires_for_what_it_is_about() -> Result<()> {
    let folder = monitoring()?;
    promtool(&["check", "rules", "alerts.yaml"], &folder)?;
    promtool(&["test", "rules", "alerts_test.yaml"], &folder)?;
    // Each alert is tested silent and firing.
    let rules = fs::read_to_string(folder.join("alerts.yaml"))?;
    let tests = fs::read_to_string(folder.join("alerts_test.yaml"))?;
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let silent = format!("alertname: {alert}, exp_alerts: []");
        let firing = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        ensure!(tests.contains(&silent), "{alert} is not tested silent");
        ensure!(tests.contains(&firing), "{alert} is not tested firing");
    }
    Ok(())
}
