//! Switches checksum offload off when it corrupts packets of this node.

use super::verdict::PeerVerdict;
use anyhow::Context;

use super::measure::Pair;
use super::offload::{set_tx_checksum, tx_checksum};

/// Measurements that must fail before the change is undone: one may be disturbed.
const MEASUREMENTS: usize = 3;

/// Makes the kernel compute the checksums of packets that enter the tunnel, and measures whether that helps; if not,
/// undoes the change. Returns a sentence about the change that stays.
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
        // Other verdicts do not concern checksums: the peer may have been stopped meanwhile.
        if matches!(verdict, PeerVerdict::Healthy | PeerVerdict::Mtu { .. }) {
            return Ok(Some(format!(
                "checksum offload on {} corrupts tunneled packets; switched off",
                pair.local.parent
            )));
        }
    }
    set_tx_checksum(&device, true).context("switching checksum offload on again")?;
    Ok(None)
}
