//! The real flanneld on nodes of an overlay's stage.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lab::Daemon;

use crate::overlay::OverlayStage;

/// flannel's firewall: its nftables mode, or its iptables mode with the programs of one variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    Nftables,
    /// iptables mode: `nft` or `legacy`.
    Iptables(&'static str),
}

/// Where flannel finds iptables' programs of a variant under their plain names.
fn iptables_of(stage: &OverlayStage, variant: &str) -> Result<PathBuf> {
    let folder = PathBuf::from(stage.file(0, &format!("iptables-{variant}")));
    if folder.exists() {
        return Ok(folder);
    }
    std::fs::create_dir(&folder)?;
    for family in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            let real = format!("/usr/sbin/{family}-{variant}{verb}");
            std::os::unix::fs::symlink(real, folder.join(format!("{family}{verb}")))?;
        }
    }
    Ok(folder)
}

/// Writes its configuration for a node, with this behind the type of its backend.
pub fn write_net_conf(
    stage: &OverlayStage,
    node: usize,
    firewall: Firewall,
    backend: &str,
) -> Result<String> {
    let conf = stage.file(node, "net-conf");
    let nftables = firewall == Firewall::Nftables;
    let text = format!(
        r#"{{"Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/32", "EnableIPv6": true,
            "EnableNFTables": {nftables}, "Backend": {{"Type": "vxlan" {backend}}}}}"#
    );
    std::fs::write(&conf, text)?;
    Ok(conf)
}

/// Starts it on a node.
pub fn start_flannel(
    stage: &OverlayStage,
    program: &Path,
    node: usize,
    kubeconfig: &str,
    firewall: Firewall,
) -> Result<Daemon> {
    start_flannel_with(stage, program, node, kubeconfig, (firewall, ""))
}

/// The same with this behind the type of its backend.
pub fn start_flannel_with(
    stage: &OverlayStage,
    program: &Path,
    node: usize,
    kubeconfig: &str,
    (firewall, backend): (Firewall, &str),
) -> Result<Daemon> {
    let conf = write_net_conf(stage, node, firewall, backend)?;
    let host = &stage.nodes[node];
    let mut command = host.command("env");
    if let Firewall::Iptables(variant) = firewall {
        let programs = iptables_of(stage, variant)?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg(format!("PATH={}:{path}", programs.display()));
    }
    command
        .arg(format!("NODE_NAME={}", host.name()))
        .arg(program)
        .args([
            "--kube-subnet-mgr",
            "--kubeconfig-file",
            kubeconfig,
            "--net-config-path",
            &conf,
            "--subnet-file",
            &stage.file(node, "env"),
            "--iface",
            "eth0",
            "--ip-masq",
        ]);
    host.spawn("flanneld", command)
}
