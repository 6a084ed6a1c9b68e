//! Manifests of kube-proxy and flannel with nothing but the image changed: the program under their names, with their
//! arguments, their files and their rights. What distributions ship is in [`distributions`], changes of a running daemon's
//! file in [`reload`].

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::fake_api::Resource;
use lab::{Daemon, HEALTH_PORT, Host, Protocol, scenario, wait_for, wait_until};
use portolan_tests::overlay::OverlayStage;
use portolan_tests::stage::{PATIENCE, Stage, portolan};
use tempfile::TempDir;

mod distributions;
mod reload;

const KUBEADM: &str =
    include_str!("../../../crates/kube-proxy-config/tests/distributions/kubeadm/config");
const KUBE_PROXY: &str = "/usr/local/bin/kube-proxy";
const VOLUME: &str = "/var/lib/kube-proxy";
const ARGUMENTS: [&str; 2] = [
    "--config=/var/lib/kube-proxy/config.conf",
    "--hostname-override=node-a",
];

/// A ConfigMap volume, as kubelet makes and changes it.
struct Volume {
    dir: TempDir,
    versions: usize,
}

impl Volume {
    fn new(files: &[(&str, &str)]) -> Result<Volume> {
        let mut volume = Volume {
            dir: TempDir::new()?,
            versions: 0,
        };
        volume.replace(files)?;
        for (name, _) in files {
            symlink(format!("..data/{name}"), volume.dir.path().join(name))?;
        }
        Ok(volume)
    }

    /// All files change at once, when the link is renamed.
    fn replace(&mut self, files: &[(&str, &str)]) -> Result<()> {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        let dir = self.dir.path();
        fs::create_dir(dir.join(&version))?;
        for (name, content) in files {
            fs::write(dir.join(&version).join(name), content)?;
        }
        symlink(&version, dir.join("..data_tmp"))?;
        fs::rename(dir.join("..data_tmp"), dir.join("..data"))?;
        Ok(())
    }
}

/// Starts the program by another name, in a mount namespace that has these folders at these paths.
fn start_as(
    host: &Host,
    name: &str,
    volumes: &[(&Path, &str)],
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<Daemon> {
    // `exec -a` sets the name that a program is called by; it is bash's.
    let script = r#"set -e
        [ "$1" = -- ] || { mount -t tmpfs none /var/lib; mount -t tmpfs none /etc; }
        while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
        shift
        exec -a "$0" "$@""#;
    let mut command = host.command("unshare");
    command.args(["--mount", "bash", "-c", script, name]);
    for (source, target) in volumes {
        command.arg(source).arg(target);
    }
    command
        .arg("--")
        .arg(portolan()?)
        .args(arguments)
        .envs(environment.iter().copied());
    host.spawn(name, command)
}

/// A stage whose node runs kubeadm's pod with the image changed.
struct Swapped {
    stage: Stage,
    volume: Volume,
    kubeconfig: String,
    daemon: Daemon,
    _api: lab::fake_api::FakeApi,
}

impl Swapped {
    fn start() -> Result<Swapped> {
        let stage = Stage::new()?;
        let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
        let kubeconfig = fs::read_to_string(kubeconfig)?;
        let volume = Volume::new(&[("config.conf", KUBEADM), ("kubeconfig.conf", &kubeconfig)])?;
        let volumes = [(volume.dir.path(), VOLUME)];
        let daemon = start_as(&stage.node, KUBE_PROXY, &volumes, &ARGUMENTS, &[])?;
        stage.wait_until_ready(&daemon)?;
        Ok(Swapped {
            stage,
            volume,
            kubeconfig,
            daemon,
            _api: api,
        })
    }

    fn configure(&mut self, config: &str) -> Result<()> {
        let files = [
            ("config.conf", config),
            ("kubeconfig.conf", &self.kubeconfig),
        ];
        self.volume.replace(&files)
    }

    fn node_port_at(&self, ip: IpAddr) -> Result<SocketAddr> {
        let port = self.stage.web.node_port.context("has a node port")?;
        Ok(SocketAddr::new(ip, port))
    }

    /// Waits until this node's own connections to its node port at 127.0.0.1 are answered, or not.
    fn wait_for_localhost(&self, is_served: bool) -> Result<()> {
        let to = self.node_port_at([127, 0, 0, 1].into())?;
        wait_for("the node port at 127.0.0.1", PATIENCE, || {
            let outcome = self.stage.node.connect(Protocol::Tcp, to)?;
            ensure!(outcome.server().is_some() == is_served, "it is {outcome:?}");
            Ok(())
        })
    }
}

#[scenario(Nft)]
fn kubeadms_pod_serves_with_only_its_image_changed() -> Result<()> {
    let swapped = Swapped::start()?;
    let stage = &swapped.stage;
    stage.wait_for_backends(&stage.web, 4)?;
    // iptables mode serves node ports on every address of the node, and on 127.0.0.1.
    let outside = stage.lab().client("outside")?;
    let node_port = swapped.node_port_at(stage.node.ipv4().into())?;
    let outcome = outside.connect(Protocol::Tcp, node_port)?;
    ensure!(outcome.server().is_some(), "{outcome:?}");
    swapped.wait_for_localhost(true)?;
    // 0.0.0.0 means both families, as in Go.
    let health = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), HEALTH_PORT);
    let answer = stage.node.http_get(health, "/healthz")?;
    ensure!(matches!(answer, Some((200, _))), "{answer:?}");
    let metrics = SocketAddr::new([127, 0, 0, 1].into(), 10_249);
    let (code, configz) = stage
        .node
        .http_get(metrics, "/configz")?
        .context("/configz")?;
    ensure!(code == 200, "{configz}");
    let configz: serde_json::Value = serde_json::from_str(&configz)?;
    let proxy = &configz["kubeproxy.config.k8s.io"];
    ensure!(proxy["mode"] == "iptables", "{proxy}");
    ensure!(proxy["clusterCIDR"] == "10.244.0.0/16", "{proxy}");
    for path in ["/flagz", "/statusz"] {
        let answer = stage.node.http_get(metrics, path)?;
        ensure!(matches!(answer, Some((200, _))), "{path}: {answer:?}");
    }
    Ok(())
}

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
  "Backend": {"Type": "vxlan"}}"#;

#[scenario(Nft)]
fn flannels_pods_connect_nodes_with_only_their_image_changed() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let net_conf = stage.file(0, "net-conf");
    fs::write(&net_conf, NET_CONF)?;
    let mut daemons = Vec::new();
    for (n, node) in stage.nodes.iter().enumerate() {
        let pod = format!("kube-flannel-ds-{n}");
        api.set_pod(&format!("kube-flannel/{pod}"), node.name());
        // kube-proxy runs beside flannel.
        node.nft(&["add", "table", "ip", "kube-proxy"])?;
        let own = [
            format!("--kubeconfig-file={kubeconfig}"),
            format!("--net-config-path={net_conf}"),
            format!("--subnet-file={}", stage.file(n, "env")),
            "--overlay-cache=".to_owned(),
        ];
        let mut arguments = vec!["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"];
        arguments.extend(own.iter().map(String::as_str));
        let environment = [
            ("POD_NAME", pod.as_str()),
            ("POD_NAMESPACE", "kube-flannel"),
        ];
        daemons.push(start_as(
            node,
            "/opt/bin/flanneld",
            &[],
            &arguments,
            &environment,
        )?);
    }
    stage.wait_for_mesh()?;
    for (node, daemon) in stage.nodes.iter().zip(&daemons) {
        node.wait_until_ready(daemon, 8081, PATIENCE)?;
        let health = SocketAddr::new([127, 0, 0, 1].into(), 8081);
        wait_until("/healthz", PATIENCE, || {
            matches!(node.http_get(health, "/healthz"), Ok(Some((200, _))))
        })?;
        let tables = node.nft(&["list", "tables"])?;
        ensure!(tables.contains("table ip kube-proxy"), "{tables}");
        let services = tables.lines().any(|line| line.ends_with(" portolan"));
        ensure!(!services, "{tables}");
    }
    // kube-flannel's ClusterRole: pods get; nodes get, list, watch; nodes/status patch.
    let other = api
        .seen()
        .into_iter()
        .find(|seen| seen.resource != Resource::Nodes);
    ensure!(other.is_none(), "{other:?}");
    ensure!(api.counts().forbidden == 0, "{:?}", api.counts());
    Ok(())
}
