//! Options of the overlay, each by what it makes of the node: state of the kernel, packets, files.

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Protocol, node_object, scenario, wait_for, wait_until};
use portolan_tests::overlay::{OverlayStage, mac_of, tool};
use portolan_tests::stage::PATIENCE;
use serde_json::{Value, json};

/// `cni-conf.json` as flannel's manifests ship it (Documentation/kube-flannel.yml).
const FLANNELS_CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;

/// What flannel's CNI plugin makes of that with a `subnet.env`: its documented delegate.
fn delegated(env: &str) -> Result<Value> {
    let value = |key: &str| {
        let line = env
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.with_context(|| format!("no {key} in {env}"))
    };
    let range = |key: &str| -> Result<String> {
        Ok(value(key)?.parse::<ipnet::IpNet>()?.trunc().to_string())
    };
    let mut list: Value = serde_json::from_str(FLANNELS_CONFLIST)?;
    let mut bridge = list["plugins"][0]["delegate"].clone();
    bridge["type"] = "bridge".into();
    bridge["isGateway"] = true.into();
    bridge["ipMasq"] = (value("FLANNEL_IPMASQ")? != "true").into();
    bridge["mtu"] = value("FLANNEL_MTU")?.parse::<u32>()?.into();
    bridge["ipam"] = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": range("FLANNEL_SUBNET")? }], [{ "subnet": range("FLANNEL_IPV6_SUBNET")? }]],
        "routes": [{ "dst": value("FLANNEL_NETWORK")? }, { "dst": value("FLANNEL_IPV6_NETWORK")? }],
    });
    list["plugins"][0] = bridge;
    Ok(list)
}

#[scenario(Vxlan, Nft)]
fn cni_configuration_equals_what_the_flannel_plugin_generates() -> Result<()> {
    for flags in [&["--ip-masq"][..], &[]] {
        let stage = OverlayStage::new(2)?;
        let file = stage.file(0, "conflist");
        let _one = stage.start(0, &[flags, &["--cni-conf", &file]].concat())?;
        let _other = stage.start(1, flags)?;
        stage.wait_for_mesh()?;
        let written = || std::path::Path::new(&file).exists();
        wait_until("the file", PATIENCE, written)?;
        let ours: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let flannels = delegated(&std::fs::read_to_string(stage.file(0, "env"))?)?;
        ensure!(ours == flannels, "{ours:#} instead of {flannels:#}");
    }
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn packets_for_unused_pod_addresses_end_at_their_node() -> Result<()> {
    for (flags, bounces) in [(&[][..], true), (&["--ip-blackhole-route"], false)] {
        let stage = OverlayStage::new(2)?;
        let _daemons = stage.start_all(flags)?;
        stage.nodes[0].nft_stdin(
            "table ip watch { counter seen { }; chain forward { type filter hook forward priority 0;
               iifname \"flannel.1\" oifname \"eth0\" ip daddr 10.244.0.200 counter name seen; }; }",
        )?;
        let outcome = stage.pods[1].connect(
            Protocol::Udp,
            ("10.244.0.200".parse::<std::net::IpAddr>()?, 9),
        )?;
        ensure!(outcome.server().is_none(), "{outcome:?}");
        let seen = stage.nodes[0].nft(&["list", "counter", "ip", "watch", "seen"])?;
        ensure!(seen.contains("packets 0") != bounces, "{flags:?}: {seen}");
        let routes = stage.ip(0, "route show type blackhole")?;
        ensure!(
            routes.contains("10.244.0.0/24 proto 112") != bounces,
            "{routes}"
        );
        stage.wait_for_mesh()?;
    }
    Ok(())
}

/// Parent and local address of the first node's device.
fn outer(stage: &OverlayStage) -> Result<(String, String)> {
    outer_of(stage, "flannel.1")
}

fn outer_of(stage: &OverlayStage, device: &str) -> Result<(String, String)> {
    let link = stage.ip(0, &format!("-d -o link show dev {device}"))?;
    let after = |word: &str| {
        let mut words = link.split_whitespace().skip_while(|w| *w != word);
        words.nth(1).unwrap_or_default().to_owned()
    };
    Ok((after("dev"), after("local")))
}

#[scenario(Vxlan, Nft)]
fn interface_is_chosen_by_pattern_or_reach_and_changed_in_place() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    // A second network with the default route, as some virtual machines have it: no host answers in it.
    for line in [
        "link add mgmt0 type bridge",
        "addr add 10.0.2.15/24 dev mgmt0",
        "addr add fd00:99::15/64 dev mgmt0 nodad",
        "link set mgmt0 up",
    ] {
        stage.ip(0, line)?;
    }
    let other = stage.nodes[1].ipv4().to_string();
    let right = ("eth0".to_owned(), stage.nodes[0].ipv4().to_string());
    let wrong = ("mgmt0".to_owned(), "10.0.2.15".to_owned());
    let start = |flags: &[&str]| -> Result<Daemon> { stage.start(0, flags) };
    let _other = stage.start(1, &[])?;
    let mut number = None;
    for (flags, expected) in [
        (["--iface-regex", "^mgmt"], &wrong),
        (["--iface-regex", "^192\\.168\\.77\\."], &right),
        (["--iface-can-reach", "10.0.2.99"], &wrong),
        (["--iface-can-reach", &other], &right),
        (["--iface", "mgmt0"], &wrong),
        (["--public-ip", &right.1], &right),
    ] {
        let daemon = start(&flags)?;
        wait_until(
            &format!("{flags:?} to lead to {expected:?}"),
            PATIENCE,
            || outer(&stage).is_ok_and(|found| found == *expected),
        )?;
        if expected == &right {
            stage.wait_for_mesh()?;
        }
        let link = stage.ip(0, "-o link show dev flannel.1")?;
        let this = link.split(':').next().map(str::to_owned);
        ensure!(
            number.is_none() || number == this,
            "the device was made anew: {link}"
        );
        number = this;
        daemon.kill()?;
    }
    Ok(())
}

/// Nothing names the interface of a Node without addresses. flannel ends where several ways share one default route.
#[scenario(Vxlan, Nft)]
fn of_several_default_routes_the_best_one_chooses() -> Result<()> {
    let stage = OverlayStage::new(1)?;
    let mut object = node_object(&stage.nodes[0]);
    object["status"]["addresses"] = json!([]);
    stage.manifests.write_objects("node-0.yaml", &[object])?;
    for line in [
        "link add mgmt0 type bridge",
        "link set mgmt0 mtu 1400",
        "addr add 10.0.2.15/24 dev mgmt0",
        "addr add fd00:99::15/64 dev mgmt0 nodad",
        "link set mgmt0 up",
        "route del default",
        "-6 route del default",
    ] {
        stage.ip(0, line)?;
    }
    let (v4, v6) = (stage.nodes[0].ipv4(), stage.nodes[0].ipv6());
    let _daemon = stage.start(0, &[])?;
    let (of_mgmt, of_eth) = ("via 10.0.2.2 dev mgmt0", "via 192.168.77.250 dev eth0");
    let (of_mgmt6, of_eth6) = ("via fe80::99 dev mgmt0", "via fe80::99 dev eth0");
    let two = |first: &str, second: &str| {
        [
            format!("route add default {first} metric 10"),
            format!("route add default {second} metric 100"),
        ]
    };
    let both = |first: &str, second: &str| {
        [
            format!("route add default nexthop {first} nexthop {second}"),
            "route show default".to_owned(),
        ]
    };
    for (family, routes, device, expected, mtu) in [
        (
            "-4",
            two(of_mgmt, of_eth),
            "flannel.1",
            ("mgmt0", "10.0.2.15".into()),
            1350,
        ),
        (
            "-4",
            two(of_eth, of_mgmt),
            "flannel.1",
            ("eth0", v4.to_string()),
            1450,
        ),
        // Of ways that are used at once, the one with the least MTU decides what fits.
        (
            "-4",
            both(of_eth, of_mgmt),
            "flannel.1",
            ("mgmt0", "10.0.2.15".into()),
            1350,
        ),
        (
            "-6",
            two(of_mgmt6, of_eth6),
            "flannel-v6.1",
            ("mgmt0", "fd00:99::15".into()),
            1330,
        ),
        (
            "-6",
            two(of_eth6, of_mgmt6),
            "flannel-v6.1",
            ("eth0", v6.to_string()),
            1430,
        ),
        (
            "-6",
            both(of_eth6, of_mgmt6),
            "flannel-v6.1",
            ("mgmt0", "fd00:99::15".into()),
            1330,
        ),
    ] {
        for route in &routes {
            stage.ip(0, &format!("{family} {route}"))?;
        }
        wait_for(&format!("{routes:?}"), PATIENCE, || {
            let (parent, local) = outer_of(&stage, device)?;
            let link = stage.ip(0, &format!("-o link show dev {device}"))?;
            ensure!(
                parent == expected.0
                    && local == expected.1
                    && link.contains(&format!("mtu {mtu} ")),
                "{parent} {local} {link}"
            );
            Ok(())
        })?;
        stage.ip(0, &format!("{family} route flush default"))?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn overridden_public_address_is_published_local_one_stays() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let public = "192.168.77.160";
    // What translates addresses in front of a node is the node itself here.
    stage.ip(1, &format!("addr add {public}/32 dev lo"))?;
    stage.ip(
        0,
        &format!("route add {public} via {}", stage.nodes[1].ipv4()),
    )?;
    let mut object = api.node("node-1").context("there is a node-1")?;
    object["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip-overwrite"] =
        public.into();
    api.apply(object)?;
    let _daemons = (0..2)
        .map(|n| stage.start_with_api(n, &kubeconfig, &["--overlay-filter", "enforce"]))
        .collect::<Result<Vec<_>>>()?;
    stage.wait_for_mesh()?;
    let node = api.node("node-1").context("there is a node-1")?;
    let published = &node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"];
    ensure!(published == public, "{published}");
    let mac = mac_of(&stage.nodes[1], "flannel.1")?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    let fdb = tool(&stage.nodes[0], "bridge", "fdb show dev flannel.1")?;
    ensure!(fdb.contains(&format!("{mac} dst {public}")), "{fdb}");
    let link = stage.ip(1, "-d -o link show dev flannel.1")?;
    ensure!(
        link.contains(&format!("local {}", stage.nodes[1].ipv4())),
        "{link}"
    );
    Ok(())
}
