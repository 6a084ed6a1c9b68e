//! What a peer costs the released program in memory: with thousands of Nodes, and with one.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::fake_api::FakeApi;
use lab::{Lab, node_object, wait_until};
use serde_json::{Value, json};

use crate::{Report, Row};

const PATIENCE: Duration = Duration::from_secs(120);
/// Memory is called steady after so long without an event: five seconds after the list the peers are written down for a
/// restart, and a second later what that took is given back.
const STEADY: Duration = Duration::from_secs(9);

/// Measures with this number of Nodes, whose objects have the size of real ones.
pub fn measure(report: &mut Report, program: &Path, peers: u32) -> Result<()> {
    let (without, with) = (resident(program, 1)?, resident(program, peers)?);
    let bytes = with.saturating_sub(without) * 1024 / u64::from(peers);
    report.row(Row {
        quantity: format!("memory of a peer, {peers} of them, both families"),
        target: "a few hundred bytes".into(),
        measured: format!(
            "{bytes} bytes ({:.1} MiB of {:.1} MiB in all)",
            (with.saturating_sub(without)) as f64 / 1024.0,
            with as f64 / 1024.0
        ),
        ..Row::default()
    });
    Ok(())
}

/// KiB in use once everything is in the kernel.
fn resident(program: &Path, peers: u32) -> Result<u64> {
    let lab = Lab::builder().without_pod_routes().build()?;
    let node = lab.node("node-0")?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    let listener = node.run(|| TcpListener::bind(("127.0.0.1", 0)))??;
    let api = FakeApi::serve(listener)?;
    api.set_node_patches(true);
    api.apply(node_object(&node))?;
    api.apply_all((1..=peers).map(peer))?;
    api.kubeconfig(&kubeconfig)?;
    let kubeconfig = kubeconfig.display().to_string();
    let ranges = "10.0.0.0/8,fd00:244::/32";
    // A round of probes takes what it takes whatever the number of peers, of whom none is there to answer.
    let no_rounds = [
        "--overlay-probe-interval",
        "3600s",
        "--healthz-bind-address",
        "",
    ];
    let source = ["--ip-masq", "--kubeconfig", &kubeconfig];
    let more = [&super::OVERLAY[..], &source, &no_rounds].concat();
    let daemon = super::start(program, &node, ranges, &more)?;
    wait_until("the routes", PATIENCE, || {
        let mut command = node.command("ip");
        command.args(["route", "show", "dev", "flannel.1"]);
        node.output(command).is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).lines().count() == peers as usize
        })
    })?;
    std::thread::sleep(STEADY);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmRSS")?.parse()?)
}

/// A Node of flannel's, with conditions and images as kubelets report them (about 10 kB). Its pods are in 10.64.0.0/11.
pub(crate) fn peer(number: u32) -> Value {
    let (high, low) = (number >> 8, number & 255);
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let name = format!("registry.example/team/image-{image}@sha256:{image:064x}");
            json!({ "names": [name], "sizeBytes": 1_000_000 + image })
        })
        .collect();
    let mac = |family: u32| format!("02:{family:02x}:00:00:{high:02x}:{low:02x}");
    let data = |family| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(family));
    let (v4, v6) = (
        format!("172.16.{high}.{low}"),
        format!("2001:db8:1::{number:x}"),
    );
    let ranges = [
        format!("10.{}.{low}.0/24", 64 + high),
        format!("fd00:244:{number:x}::/64"),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node-{number}"), "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data(4),
            "flannel.alpha.coreos.com/backend-v6-data": data(6),
            "flannel.alpha.coreos.com/public-ip": v4,
            "flannel.alpha.coreos.com/public-ipv6": v6,
            "node.alpha.kubernetes.io/ttl": "0",
        } },
        "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 }],
            "images": images,
        },
    })
}
