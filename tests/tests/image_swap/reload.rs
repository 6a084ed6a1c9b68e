//! A changed configuration file reaches the running daemon, and packets.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use lab::{HEALTH_PORT, Probe, Protocol, scenario, wait_for};
use nix::sys::signal::Signal;
use portolan_tests::stage::{PATIENCE, Stage};
use serde_json::Value;

use super::{KUBE_PROXY, KUBEADM, Swapped, VOLUME, start_as};

#[scenario(Nft)]
fn a_changed_config_map_is_applied_and_a_broken_one_is_not() -> Result<()> {
    let mut swapped = Swapped::start()?;
    swapped.wait_for_localhost(true)?;
    let primary = KUBEADM.replace("nodePortAddresses: null", "nodePortAddresses: [primary]");
    let primary = primary.replace("localhostNodePorts: null", "localhostNodePorts: false");
    swapped.configure(&primary)?;
    swapped.wait_for_localhost(false)?;
    let broken = KUBEADM.replace("mode: iptables", "mode: ebpf");
    swapped.configure(&broken)?;
    // The next good file is read after the broken one, which must not have ended the daemon or its rules.
    let to = swapped.node_port_at(swapped.stage.node.ipv4().into())?;
    let outside = swapped.stage.lab().client("outside")?;
    ensure!(outside.connect(Protocol::Tcp, to)?.server().is_some());
    swapped.configure(KUBEADM)?;
    swapped.wait_for_localhost(true)?;
    ensure!(swapped.daemon.is_running(), "the daemon has ended");
    Ok(())
}

impl Swapped {
    /// Waits until a pod's connections to a Service keep the pod's address, or are masqueraded.
    fn wait_for_masquerade(&self, is_masqueraded: bool) -> Result<()> {
        let stage = &self.stage;
        let (to, own) = (
            Stage::address(&stage.web)?,
            IpAddr::from(stage.client.ipv4()),
        );
        wait_for("the source address", PATIENCE, || {
            let outcome = stage.client.probe(Probe::new(Protocol::Tcp, to))?;
            let peer = outcome.peer().context("no answer")?;
            ensure!((peer.ip() != own) == is_masqueraded, "it is {peer}");
            Ok(())
        })
    }

    /// What `/configz` shows as kube-proxy's configuration.
    fn configz(&self) -> Result<Value> {
        let metrics = SocketAddr::new([127, 0, 0, 1].into(), 10_249);
        let answer = self.stage.node.http_get(metrics, "/configz")?;
        let (_, body) = answer.context("/configz")?;
        let mut documents: Value = serde_json::from_str(&body)?;
        Ok(documents["kubeproxy.config.k8s.io"].take())
    }
}

#[scenario(Nft)]
fn cluster_cidr_and_masquerade_all_change_without_restart() -> Result<()> {
    let mut swapped = Swapped::start()?;
    swapped.stage.wait_for_backends(&swapped.stage.web, 4)?;
    swapped.wait_for_masquerade(false)?;
    let others = KUBEADM.replace("clusterCIDR: 10.244.0.0/16", "clusterCIDR: 192.0.2.0/24");
    swapped.configure(&others)?;
    swapped.wait_for_masquerade(true)?;
    swapped.configure(KUBEADM)?;
    swapped.wait_for_masquerade(false)?;
    let all = KUBEADM.replace("masqueradeAll: false", "masqueradeAll: true");
    swapped.configure(&all)?;
    swapped.wait_for_masquerade(true)?;
    ensure!(swapped.daemon.is_running(), "the daemon has ended");
    Ok(())
}

#[scenario(Nft)]
fn configz_shows_values_in_effect_not_those_that_need_a_restart() -> Result<()> {
    let mut swapped = Swapped::start()?;
    let changed = KUBEADM
        .replace(
            "healthzBindAddress: \"\"",
            "healthzBindAddress: 0.0.0.0:10999",
        )
        .replace("clusterCIDR: 10.244.0.0/16", "clusterCIDR: 192.0.2.0/24");
    ensure!(changed.contains("10999"), "kubeadm's file has another form");
    swapped.configure(&changed)?;
    wait_for("the change", PATIENCE, || {
        let shown = swapped.configz()?;
        ensure!(shown["clusterCIDR"] == "192.0.2.0/24", "{shown}");
        Ok(())
    })?;
    let shown = swapped.configz()?;
    ensure!(shown["healthzBindAddress"] == "0.0.0.0:10256", "{shown}");
    Ok(())
}

#[scenario(Nft)]
fn log_level_changes_without_restart() -> Result<()> {
    let mut swapped = Swapped::start()?;
    let health = SocketAddr::new([127, 0, 0, 1].into(), HEALTH_PORT);
    // A request that is none ends its connection early, which is logged at debug level.
    let debug_lines = |swapped: &Swapped| -> Result<usize> {
        swapped.stage.node.run(move || -> Result<()> {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(health)?;
            stream.write_all(b"nonsense\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(())
        })??;
        let lines = swapped.daemon.lines();
        Ok(lines.iter().filter(|line| line.contains("DEBUG")).count())
    };
    ensure!(
        debug_lines(&swapped)? == 0,
        "debug lines at the default level"
    );
    let verbose = KUBEADM.replace("verbosity: 0", "verbosity: 4");
    ensure!(verbose != KUBEADM, "kubeadm's file has another form");
    swapped.configure(&verbose)?;
    wait_for("debug lines", PATIENCE, || {
        ensure!(debug_lines(&swapped)? > 0, "none");
        Ok(())
    })
}

#[scenario(Nft)]
fn sighup_applies_a_file_that_cannot_be_watched() -> Result<()> {
    let stage = Stage::new()?;
    let (_api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let folder = tempfile::tempdir()?;
    // The daemon watches the folder of the file that it is given; this one is a link to elsewhere.
    let (linked, real) = (folder.path().join("linked"), folder.path().join("real"));
    fs::create_dir(&linked)?;
    fs::copy(&kubeconfig, linked.join("kubeconfig.conf"))?;
    fs::write(&real, KUBEADM)?;
    symlink(&real, linked.join("config.conf"))?;
    let volumes = [(linked.as_path(), VOLUME)];
    let daemon = start_as(&stage.node, KUBE_PROXY, &volumes, &super::ARGUMENTS, &[])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let (to, own) = (
        Stage::address(&stage.web)?,
        IpAddr::from(stage.client.ipv4()),
    );
    let peer = || -> Result<IpAddr> {
        let outcome = stage.client.probe(Probe::new(Protocol::Tcp, to))?;
        Ok(outcome.peer().context("no answer")?.ip())
    };
    ensure!(peer()? == own, "masqueraded from the start");
    fs::write(
        &real,
        KUBEADM.replace("masqueradeAll: false", "masqueradeAll: true"),
    )?;
    daemon.signal(Signal::SIGHUP)?;
    wait_for("the change", PATIENCE, || {
        ensure!(peer()? != own, "not masqueraded");
        Ok(())
    })?;
    ensure!(daemon.is_running(), "the daemon has ended");
    Ok(())
}
