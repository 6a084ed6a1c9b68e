//! What programs of others cannot do, found out by trying.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::Namespace;

/// `Linux 6.12.117+deb13-amd64`, for what is so on some kernels only.
pub fn kernel() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("Linux {}", release.trim()))
}

const INTERVAL_WITH_A_PROTOCOL: &str = "
table ip trial {
    set s { type ipv4_addr . inet_proto; flags interval; }
    chain c { ip daddr . meta l4proto @s drop; }
}";

/// Whether this program cannot load what it lists of an interval set with a protocol in its key. nft 1.0.6 turns the bytes of
/// every field around, also where there is one only, and newer kernels refuse that step (EOPNOTSUPP; seen on 6.12.117 and 7.2,
/// not on 6.18). Any other version has to load it.
pub fn cannot_load_protocols_in_intervals(nft: &Path) -> Result<bool> {
    let version = Command::new(nft).arg("--version").output()?;
    ensure!(version.status.success(), "{nft:?}: {version:?}");
    if !String::from_utf8_lossy(&version.stdout).contains("v1.0.6 ") {
        return Ok(false);
    }
    let program = nft.to_owned();
    Namespace::new("trial")?.run(move || {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), INTERVAL_WITH_A_PROTOCOL)?;
        let output = Command::new(&program).arg("-f").arg(file.path()).output();
        let output = output.with_context(|| format!("{program:?}"))?;
        let refused = String::from_utf8_lossy(&output.stderr).contains("not supported");
        ensure!(
            output.status.success() || refused,
            "{program:?}: {output:?}"
        );
        Ok(refused)
    })?
}
