//! Untidy worlds with the real flanneld on one of three nodes: its pods and ours reach each other again, whatever happens to
//! a node of ours or to the Node objects.
//!
//! `PORTOLAN_CONTROL_PLANE` names the folder with the program.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::fake_api::{FakeApi, Resource};
use lab::{Daemon, program, scenario, wait_until};
use portolan_tests::flannel::{Firewall, start_flannel_with, write_net_conf};
use portolan_tests::overlay::{OverlayStage, all_go_on, state, tool, worst};
use portolan_tests::stage::PATIENCE;
use serde_json::json;

const PREFIX: &str = "flannel.alpha.coreos.com";
/// The node of flannel; the others are ours.
const FLANNEL: usize = 2;

struct Mixed {
    stage: OverlayStage,
    api: FakeApi,
    kubeconfig: String,
    flannel: PathBuf,
    daemons: Vec<Option<Daemon>>,
}

impl Mixed {
    fn new() -> Result<Mixed> {
        let stage = OverlayStage::new(3)?;
        let (api, kubeconfig) = stage.serve_api()?;
        let flannel = program("flanneld")?;
        let mut mixed = Mixed {
            stage,
            api,
            kubeconfig,
            flannel,
            daemons: vec![None, None, None],
        };
        mixed.roll_out("")?;
        Ok(mixed)
    }

    /// Starts every program anew, node by node, with this behind the type of the backend.
    fn roll_out(&mut self, backend: &str) -> Result<()> {
        for node in 0..3 {
            let (stage, api) = (&self.stage, &self.kubeconfig);
            drop(self.daemons[node].take());
            let daemon = if node == FLANNEL {
                let how = (Firewall::Nftables, backend);
                start_flannel_with(stage, &self.flannel, node, api, how)?
            } else {
                let conf = write_net_conf(stage, node, Firewall::Nftables, backend)?;
                let flags = ["--ip-masq", "--net-config-path", &conf];
                stage.start_with_api(node, api, &flags)?
            };
            self.daemons[node] = Some(daemon);
        }
        self.stage.wait_for_mesh()
    }

    /// What the nodes hold, for the message of a failure.
    fn situation(&self) -> String {
        let mut found = String::new();
        for node in &self.stage.nodes {
            for (program, line) in [
                ("ip", "-d -o link show type vxlan"),
                ("ip", "route show"),
                ("ip", "neigh show nud permanent"),
                ("bridge", "fdb show"),
            ] {
                let told = tool(node, program, line).unwrap_or_default();
                found += &format!("{} {program} {line}\n{told}", node.name());
            }
        }
        found
    }

    fn node(&self, name: &str) -> Result<serde_json::Value> {
        let node = self.api.node(name);
        node.with_context(|| format!("there is no {name}"))
    }
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn what_happens_to_a_node_is_healed_beside_flannel() -> Result<()> {
    let mixed = Mixed::new()?;
    let stage = &mixed.stage;
    let beats = stage.beats()?;
    all_go_on(&beats)?;
    let device = || state(&stage.nodes[0], "flannel.1").map(|state| state["fdb"].len());
    let entries = device()?;
    ensure!(entries == 2, "{entries} entries");
    for lines in [
        &["ip link del flannel.1", "ip link del flannel-v6.1"][..],
        &[
            "ip link set flannel.1 down",
            "ip link set flannel-v6.1 down",
        ],
        &[
            "ip route flush dev flannel.1",
            "ip -6 route flush dev flannel-v6.1",
        ],
        &[
            "ip neigh flush dev flannel.1 nud permanent",
            "ip neigh flush dev flannel-v6.1 nud permanent",
        ],
        &[
            "ip link set flannel.1 address 02:00:00:00:00:99",
            "ip link set flannel-v6.1 address 02:00:00:00:00:98",
        ],
        &[
            "ip link set flannel.1 mtu 1300",
            "ip addr flush dev flannel.1",
        ],
        &["nft flush ruleset"],
        // The kernel takes no IPv6 route through the tunnel while this one leads to its gateway.
        &[
            "ip -6 route replace fd00:244:2::/64 via fd00:77::1 dev eth0 proto 186 metric 1024",
            "ip route replace 10.244.2.0/24 via 192.168.77.1 dev eth0 proto 186",
        ],
    ] {
        for line in lines {
            let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
            tool(&stage.nodes[0], program, arguments)?;
        }
        let is_whole = || device().is_ok_and(|now| now == entries);
        wait_until("the entries are back", PATIENCE, is_whole)
            .and_then(|()| stage.wait_for_mesh())
            .and_then(|()| all_go_on(&beats))
            .with_context(|| format!("{lines:?}"))?;
    }
    worst(beats).map(drop)
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn ports_vnis_and_direct_routes_are_rolled_out_with_flannel() -> Result<()> {
    let mut mixed = Mixed::new()?;
    for backend in [
        r#", "Port": 4789"#,
        r#", "Port": 4789, "DirectRouting": true"#,
        r#", "VNI": 7"#,
        // Without a port flannel leaves the one of the device that it finds, 4789.
        r#", "Port": 8472"#,
    ] {
        let rolled_out = mixed.roll_out(backend);
        rolled_out.with_context(|| format!("{backend}: {}", mixed.situation()))?;
        let name = if backend.contains("VNI") {
            "flannel.7"
        } else {
            "flannel.1"
        };
        let port = if backend.contains("4789") { 4789 } else { 8472 };
        for node in 0..3 {
            // The old devices carry packets until then.
            let what = format!("node-{node} has {name} with port {port}");
            wait_until(&what, PATIENCE, || {
                let link = mixed.stage.ip(node, &format!("-d -o link show dev {name}"));
                link.is_ok_and(|link| link.contains(&format!("dstport {port}")))
            })?;
        }
        mixed.stage.wait_for_mesh()?;
    }
    Ok(())
}

/// A machine that was renamed leaves a Node with its address, and a Node may claim what it likes.
#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn nodes_that_lie_do_not_cut_flannels_node_off() -> Result<()> {
    let mixed = Mixed::new()?;
    let (stage, api) = (&mixed.stage, &mixed.api);
    let named = |name: &str, created: &str, pods: [&str; 2]| -> Result<serde_json::Value> {
        let mut object = mixed.node("node-2")?;
        object["metadata"]["name"] = name.into();
        object["metadata"]["creationTimestamp"] = created.into();
        object["spec"]["podCIDR"] = pods[0].into();
        object["spec"]["podCIDRs"] = json!(pods);
        Ok(object)
    };
    let mut serving = mixed.node("node-2")?;
    serving["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.apply(serving)?;
    let renamed = ["10.244.77.0/24", "fd00:244:77::/64"];
    api.apply(named("a-renamed", "2025-01-01T00:00:00Z", renamed)?)?;
    let mut overlarge = named(
        "a-overlarge",
        "2026-02-01T00:00:00Z",
        ["10.244.78.0/24", "fd00:244:78::/64"],
    )?;
    let addresses = (0..1000).map(|n| {
        let address = format!("198.18.{}.{}", n / 250, n % 250 + 1);
        json!({ "type": "InternalIP", "address": address })
    });
    overlarge["status"]["addresses"] = addresses.collect();
    api.apply(overlarge)?;
    wait_until("routes to the others", PATIENCE, || {
        let routes = stage.ip(0, "route show dev flannel.1");
        routes.is_ok_and(|routes| routes.contains("10.244.77.0/24"))
    })?;
    stage.wait_for_mesh()?;
    ensure!(api.delete(Resource::Nodes, "", "a-renamed"));
    wait_until("the renamed one to go", PATIENCE, || {
        let routes = stage.ip(0, "route show dev flannel.1");
        routes.is_ok_and(|routes| !routes.contains("10.244.77.0/24"))
    })?;
    stage.wait_for_mesh()
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn nodes_that_change_come_and_go_are_followed_both_ways() -> Result<()> {
    let mixed = Mixed::new()?;
    let (stage, api) = (&mixed.stage, &mixed.api);
    // What another program spoils is written again, for flannel as well.
    let mut object = mixed.node("node-0")?;
    let name = format!("{PREFIX}/backend-data");
    let good = object["metadata"]["annotations"][&name].clone();
    object["metadata"]["annotations"][&name] = "null".into();
    api.apply(object)?;
    wait_until("the annotation is restored", PATIENCE, || {
        let object = mixed.node("node-0");
        object.is_ok_and(|object| object["metadata"]["annotations"][&name] == good)
    })?;
    stage.wait_for_mesh().context("spoiled annotations")?;
    // A Node that is deleted and made again, of either program.
    for node in ["node-0", "node-2"] {
        let object = mixed.node(node)?;
        ensure!(api.delete(Resource::Nodes, "", node));
        wait_until("the Node to be forgotten", PATIENCE, || {
            let routes = stage.ip(1, "route show dev flannel.1");
            routes.is_ok_and(|routes| routes.matches("10.244.").count() == 2)
        })?;
        api.apply(object)?;
        stage.wait_for_mesh().context(node.to_owned())?;
    }
    Ok(())
}
