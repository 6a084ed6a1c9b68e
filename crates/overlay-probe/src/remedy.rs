//! What this node does about what it has found: checksum offload that corrupts packets is switched off.

use super::verdict::Verdict;
use anyhow::Context;

use super::measure::Pair;
use super::offload::{set_tx_checksum, tx_checksum};

/// Measurements that have to agree that it does not help: one may be disturbed.
const MEASUREMENTS: usize = 3;

/// Has the kernel write checksums of what enters the tunnel itself, and looks whether that helps; if not, all stays as
/// it was. Says what was done, if anything was.
///
/// To be called only when packets were seen to arrive with wrong checksums: it costs speed, and elsewhere much of it.
pub(super) async fn switch_off(pair: &Pair<'_>) -> anyhow::Result<Option<String>> {
    let device = pair.local.device.clone();
    if !tx_checksum(&device).context("reading the device's features")? {
        return Ok(None);
    }
    set_tx_checksum(&device, false).context("switching checksum offload off")?;
    for _ in 0..MEASUREMENTS {
        let verdict = pair.measure(false).await.verdict();
        // Any other verdict says nothing about checksums: the peer may have gone away meanwhile.
        if matches!(verdict, Verdict::Healthy | Verdict::Mtu { .. }) {
            return Ok(Some(format!(
                "checksum offload on {} corrupts tunneled packets; switched off",
                pair.local.parent
            )));
        }
    }
    set_tx_checksum(&device, true).context("switching checksum offload on again")?;
    Ok(None)
}
