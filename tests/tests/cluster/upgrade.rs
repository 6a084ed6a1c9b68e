//! Rolling updates between versions, under traffic.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::faults::SET;
use crate::kubeadm::{Cluster, xtask};
use crate::traffic::{Traffic, Web};

/// What version 0.1.0 runs with, which reads no file: the settings of the cluster's ConfigMap.
const OLD: [&str; 9] = [
    "run",
    "--hostname-override=$(NODE_NAME)",
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--overlay=vxlan",
    "--ip-masq",
    "--cni-conf=/etc/cni/net.d/10-flannel.conflist",
    "--overlay-cache=/run/portolan/overlay.json",
    "--conntrack-max-per-core=0",
    "--conntrack-min=0",
];

/// Gives the pods of the DaemonSet this image and these arguments, and waits until all have them.
fn update(cluster: &Cluster, image: &str, arguments: &Value) -> Result<()> {
    let container = "/spec/template/spec/containers/0";
    let patch = json!([
        { "op": "replace", "path": format!("{container}/image"), "value": image },
        { "op": "replace", "path": format!("{container}/args"), "value": arguments },
    ]);
    let patch = patch.to_string();
    let change = ["patch", SET, "--type=json", "-p", &patch];
    cluster.kubectl(&[&["-n", "kube-system"], &change[..]].concat())?;
    cluster.rolled_out("kube-system", SET)
}

#[test]
#[ignore = "needs cluster"]
fn rolling_updates_from_the_first_version_and_back_lose_nothing() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let cluster = Cluster::up(&xtask, "versions", &["--old-version"])?;
    cluster.rolled_out("kube-system", SET)?;
    let set = cluster.get(&["-n", "kube-system", SET])?;
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let new = container["image"].as_str().context("no image")?;
    let web = Web::new(&cluster)?;
    for (what, image, arguments) in [
        ("0.2.0 to 0.1.0", "localhost/portolan:v0.1.0", &json!(OLD)),
        ("0.1.0 to 0.2.0", new, &container["args"]),
    ] {
        let traffic = Traffic::start(&web)?;
        traffic.goes_on(100)?;
        update(&cluster, image, arguments)?;
        traffic.goes_on(200)?;
        traffic.stop()?.nothing_is_lost(what)?;
    }
    cluster.doctor()
}
