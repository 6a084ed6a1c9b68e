//! The program with an API server: a fake one on the node's loopback, over real HTTP.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::fake_api::{Authority, FakeApi, Resource};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, HEALTH_PORT, Outcome, Protocol, scenario, wait_for,
    wait_until,
};
use portolan_tests::stage::{PATIENCE, Stage, portolan, service};
use serde_json::{Value, json};

/// The stage's objects in an API server, and the program that watches it.
fn start(stage: &Stage) -> Result<(FakeApi, Daemon)> {
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    Ok((api, daemon))
}

#[scenario(Nft)]
fn services_come_change_and_go_with_their_objects() -> Result<()> {
    let stage = Stage::new()?;
    let (api, _daemon) = start(&stage)?;
    stage.wait_for_backends(&stage.web, 4)?;
    for count in [1, 3, 2] {
        api.apply_all(stage.objects(&stage.web, 0..count))?;
        stage.wait_for_backends(&stage.web, count)?;
    }
    ensure!(
        api.delete(Resource::Services, "default", "web"),
        "there was no Service"
    );
    wait_until("the Service to be gone", PATIENCE, || {
        stage
            .connect(&stage.client, &stage.web)
            .is_ok_and(|outcome| outcome == Outcome::Unreachable)
    })
}

#[scenario(Nft)]
fn api_outage_changes_nothing_and_missed_changes_follow() -> Result<()> {
    let stage = Stage::new()?;
    let gone = service("gone", 81);
    let (api, _daemon) = start(&stage)?;
    api.apply_all(stage.objects(&gone, 0..2))?;
    stage.wait_for_backends(&gone, 2)?;
    let before = stage.tables()?;
    api.set_reachable(false);
    api.break_connections();
    api.apply_all(stage.objects(&stage.web, 0..3))?;
    api.delete(Resource::Services, "default", "gone");
    ensure!(
        stage.tables()? == before,
        "rules changed while nobody was there to say so"
    );
    stage.wait_for_backends(&stage.web, 4)?;
    api.compact();
    api.set_reachable(true);
    stage.wait_for_backends(&stage.web, 3)?;
    wait_until(
        "the Service that was deleted meanwhile to be gone",
        PATIENCE,
        || {
            stage
                .connect(&stage.client, &gone)
                .is_ok_and(|outcome| outcome == Outcome::Unreachable)
        },
    )
}

#[scenario(Nft)]
fn service_proxy_makes_no_forbidden_request() -> Result<()> {
    let stage = Stage::new()?;
    let (api, _daemon) = start(&stage)?;
    ensure!(
        api.counts().forbidden == 0,
        "asked for more than its rights: {:?}",
        api.counts()
    );
    Ok(())
}

#[scenario(Nft)]
fn restart_without_api_server_stays_healthy_on_adopted_tables() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let run = tempfile::tempdir()?;
    fs::create_dir(run.path().join("portolan"))?;
    let start = || {
        let script = r#"mount --bind "$1" /run; shift; exec "$@""#;
        let mut command = stage.node.command("unshare");
        command
            .args(["--mount", "sh", "-c", script, "pod"])
            .arg(run.path());
        command
            .arg(portolan()?)
            .args(["run", "--hostname-override=node-a"]);
        command.arg(format!("--kubeconfig={kubeconfig}"));
        stage.node.spawn("portolan", command)
    };
    let health = SocketAddr::new([127, 0, 0, 1].into(), HEALTH_PORT);
    let get =
        |path| -> Result<(u16, String)> { stage.node.http_get(health, path)?.context("no answer") };
    let daemon = start()?;
    stage.wait_until_ready(&daemon)?;
    wait_until("the time of the last sync", PATIENCE, || {
        run.path().join("portolan/last-sync").exists()
    })?;
    daemon.kill()?;

    api.set_reachable(false);
    let daemon = start()?;
    wait_for("a healthy start", PATIENCE, || {
        let (code, body) = get("/healthz")?;
        let body: Value = serde_json::from_str(&body)?;
        ensure!(code == 200 && body["healthy"] == true, "{code}: {body}");
        ensure!(body["adopted"]["ageSeconds"].is_u64(), "{body}");
        Ok(())
    })?;
    let (code, ready) = get("/readyz")?;
    ensure!(
        code == 503 && ready.contains("earlier process"),
        "{code}: {ready}"
    );
    stage.wait_for_backends(&stage.web, 4)?;
    api.set_reachable(true);
    stage.wait_until_ready(&daemon)?;
    ensure!(!get("/healthz")?.1.contains("adopted"));
    daemon.kill()?;

    // Without tables nothing serves, and nobody may send here.
    let mut cleanup = stage.node.command(portolan()?);
    cleanup.args(["cleanup", "--services"]);
    let output = stage.node.output(cleanup)?;
    ensure!(output.status.success(), "{output:?}");
    api.set_reachable(false);
    let _daemon = start()?;
    wait_for("an answer", PATIENCE, || {
        let (code, body) = get("/healthz")?;
        ensure!(code == 503, "{code}: {body}");
        Ok(())
    })
}

#[scenario(Nft)]
fn a_taken_port_is_an_event_and_ends_the_daemon_if_asked() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let source = ["--kubeconfig", &kubeconfig];
    let taken = stage.node.run(|| -> std::io::Result<_> {
        let health = TcpListener::bind(("0.0.0.0", HEALTH_PORT))?;
        Ok((health, TcpListener::bind(("127.0.0.1", 10_249))?))
    })??;
    let daemon = stage.start_with(&source, &[])?;
    for reason in [
        "FailedToStartProxierHealthcheck",
        "FailedToStartMetricServer",
    ] {
        wait_until(reason, PATIENCE, || {
            api.events().iter().any(|event| event["reason"] == reason)
        })?;
    }
    ensure!(daemon.is_running(), "a taken port has ended the daemon");
    drop(taken);
    stage.wait_until_ready(&daemon)?;
    daemon.kill()?;

    let _taken = stage
        .node
        .run(|| TcpListener::bind(("127.0.0.1", 10_249)))??;
    let daemon = stage.start_with(&source, &["--bind-address-hard-fail"])?;
    ensure!(!daemon.wait(PATIENCE)?.success(), "it ended well");
    Ok(())
}

/// The cluster IP of Service `default/kubernetes`.
const CLUSTER_IP: &str = "10.96.0.1";

/// Starts the program as a pod: with a service account, a `/run` of its own as after a boot, and a `/var/lib` that lasts.
fn start_as_pod(stage: &Stage, files: &Path) -> Result<Daemon> {
    let script = r#"set -e
        mount -t tmpfs none /run
        mkdir -p /run/secrets/kubernetes.io/serviceaccount
        cp "$1/token" "$1/ca.crt" /run/secrets/kubernetes.io/serviceaccount/
        mount --bind "$1/lib" /var/lib
        shift
        exec "$@""#;
    let mut command = stage.node.command("unshare");
    command
        .args(["--mount", "sh", "-c", script, "pod"])
        .arg(files)
        .arg(portolan()?)
        .args(["run", "--hostname-override", "node-a"])
        .arg(format!(
            "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
        ))
        .env("KUBERNETES_SERVICE_HOST", CLUSTER_IP)
        .env("KUBERNETES_SERVICE_PORT", "443");
    stage.node.spawn("portolan", command)
}

/// The slice of Service `default/kubernetes`.
fn api_server_slice(address: SocketAddr) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": "kubernetes",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "ports": [{ "name": "https", "port": address.port(), "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address.ip()], "conditions": { "ready": true } }],
    })
}

#[scenario(Nft)]
fn rebooted_node_comes_up_by_itself_with_an_empty_table() -> Result<()> {
    let stage = Stage::new()?;
    let machine = stage.lab().node("node-c")?;
    let address = machine.ipv4();
    let listener = machine.run(move || TcpListener::bind((address, 6443)))??;
    let address = listener.local_addr()?;
    let authority = Authority::new()?;
    let api = FakeApi::serve_tls(listener, &authority, &[CLUSTER_IP])?;
    api.require_token(Some("of-the-pod"));
    api.apply_all(stage.all_objects())?;
    api.apply(api_server_slice(address))?;

    let files = stage.manifests.path().join("pod");
    let kubelet = files.join("lib/kubelet/kubeconfig");
    let memory = files.join("lib/portolan");
    fs::create_dir_all(files.join("lib/kubelet"))?;
    fs::write(files.join("token"), "of-the-pod")?;
    fs::write(files.join("ca.crt"), authority.certificate())?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": {
            "server": format!("https://{address}"), "tls-server-name": CLUSTER_IP,
            "certificate-authority": files.join("ca.crt"),
        } }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
    });
    fs::write(&kubelet, config.to_string())?;

    // The server that the kubelet knows is enough for a node that never had a table.
    let daemon = start_as_pod(&stage, &files)?;
    stage.wait_until_ready(&daemon)?;
    wait_until("the endpoints to be remembered", PATIENCE, || {
        // Not the draft of the file, which is there before.
        memory.join("api-servers").exists()
    })?;
    daemon.kill()?;
    drop(daemon);

    // Reboot: no table, no /run, and this time nothing but the environment and what is remembered.
    stage.node.nft(&["flush", "ruleset"])?;
    fs::remove_file(&kubelet)?;
    for family in ["ip", "ip6"] {
        let delete = ["delete", "table", family, "portolan"];
        // An owned table without `persist` is gone with its daemon.
        let _ = stage.node.nft(&delete);
    }
    ensure!(
        stage.tables()?.iter().all(Option::is_none),
        "the node has a table"
    );
    let cluster_ip: SocketAddr = (CLUSTER_IP.parse::<std::net::IpAddr>()?, 443).into();
    let outcome = stage.node.connect(Protocol::Tcp, cluster_ip)?;
    ensure!(!matches!(outcome, Outcome::Answered { .. }), "{outcome:?}");
    let daemon = start_as_pod(&stage, &files)?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)
}
