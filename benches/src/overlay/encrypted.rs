//! What packets between pods of two nodes pay for encryption: Portolan's with `--overlay-encryption require` beside real
//! flanneld's with its WireGuard backend, in turn, on one kernel. Two pairs of nodes have flannel, which shows what the
//! measure cannot tell.
//!
//! flannel routes pods' packets into WireGuard as they are; ours are in VXLAN first, so that they keep flannel's addresses
//! and nodes can differ. IPv4 only, as flannel's guide has it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lab::fake_api::FakeApi;
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Capability, Daemon, node_object, program, require, wait_until,
};
use tempfile::TempDir;

use super::packets::{Pair, Yardstick, compare};
use crate::Report;

/// Long enough for an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

const FLANNEL: Yardstick = Yardstick {
    name: "flannel",
    targets: [">= 0.95 x flannel", ""],
};

const NET_CONF: &str =
    r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "wireguard"}}"#;

/// A pair of nodes with an API server on the first, and files of the daemons.
struct Stage {
    pair: Pair,
    folder: TempDir,
    _api: FakeApi,
}

impl Stage {
    fn new() -> Result<Stage> {
        let (pair, folder) = (Pair::new()?, tempfile::tempdir()?);
        let address = SocketAddr::new(pair.nodes[0].ipv4().into(), 6443);
        let api = FakeApi::serve(pair.nodes[0].run(move || TcpListener::bind(address))??)?;
        api.set_node_patches(true);
        for node in &pair.nodes {
            api.apply(node_object(node))?;
        }
        api.kubeconfig(&folder.path().join("kubeconfig"))?;
        Ok(Stage {
            pair,
            folder,
            _api: api,
        })
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Portolan on both nodes.
    fn portolan(&self, program: &Path) -> Result<Vec<Daemon>> {
        let ranges = format!("{CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}");
        let start = |node: usize| {
            let (kubeconfig, keys) = (self.file("kubeconfig"), self.file(&format!("keys-{node}")));
            let source = ["--kubeconfig", &kubeconfig, "--ip-masq"];
            let encryption = ["--overlay-encryption", "require"];
            let file = ["--overlay-encryption-key-file", &keys];
            let more = [&super::OVERLAY[..], &source, &encryption, &file].concat();
            super::start(program, &self.pair.nodes[node], &ranges, &more)
        };
        (0..2).map(start).collect()
    }

    /// flanneld on both nodes.
    fn flannel(&self, flanneld: &Path) -> Result<Vec<Daemon>> {
        std::fs::write(self.file("net-conf"), NET_CONF)?;
        let start = |node: usize| {
            let host = &self.pair.nodes[node];
            let mut command = host.command("env");
            command
                .arg(format!("NODE_NAME={}", host.name()))
                .arg(format!(
                    "WIREGUARD_KEY_FILE={}",
                    self.file(&format!("keys-{node}"))
                ))
                .arg(flanneld)
                .args([
                    "--kube-subnet-mgr",
                    "--kubeconfig-file",
                    &self.file("kubeconfig"),
                ])
                .args(["--net-config-path", &self.file("net-conf")])
                .args(["--subnet-file", &self.file(&format!("env-{node}"))])
                .args(["--iface", "eth0", "--ip-masq"]);
            host.spawn("flanneld", command)
        };
        (0..2).map(start).collect()
    }

    /// Waits until both nodes route the other's pods by this device.
    fn leads_by(&self, device: &str) -> Result<()> {
        for (node, other) in [(0, 1), (1, 0)] {
            let (node, other) = (&self.pair.nodes[node], &self.pair.pods[other]);
            let (address, way) = (other.ipv4().to_string(), format!(" dev {device} "));
            wait_until(&format!("a route by {device}"), PATIENCE, || {
                let mut command = node.command("ip");
                command.args(["route", "get", &address]);
                let found = node.output(command);
                found.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains(&way))
            })?;
        }
        Ok(())
    }
}

/// Measures in this number of rounds. Says so where the kernel has no WireGuard, or flanneld is not built.
pub fn measure(report: &mut Report, portolan: &Path, rounds: usize) -> Result<()> {
    if !require(&[
        Capability::Flanneld,
        Capability::Vxlan,
        Capability::Wireguard,
    ]) {
        return Ok(());
    }
    let flanneld = program("flanneld")?;
    let stages = [Stage::new()?, Stage::new()?, Stage::new()?];
    let [ours, theirs, again] = &stages;
    let mut daemons = ours.portolan(portolan)?;
    ours.leads_by("flannel.1")?;
    for stage in [theirs, again] {
        daemons.extend(stage.flannel(&flanneld)?);
        stage.leads_by("flannel-wg")?;
    }
    let pairs = [&ours.pair, &theirs.pair, &again.pair];
    pairs.iter().try_for_each(|pair| pair.serve())?;
    compare(report, pairs, rounds, (FLANNEL, "encrypted by Portolan"))?;
    // WireGuard takes several segments of a pod as one work, and those of a tunnel one by one (`hw_enc_features` of
    // `drivers/net/wireguard/device.c` has no tunnels): without the former both do the same.
    pairs.iter().try_for_each(|pair| pair.divide_at_once())?;
    let what = "encrypted by Portolan, pods divide into segments";
    compare(report, pairs, rounds, (FLANNEL, what))
}
