//! The program as it is run: exit codes, what goes to which stream, and a whole life of `portolan run` in a
//! network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.10}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.5]}]
";

fn portolan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.env_remove("NODE_NAME").env_remove("PORTOLAN_LOG");
    command
}

fn render(dir: &Path, more: &[&str]) -> Output {
    let dir = dir.to_str().unwrap();
    portolan()
        .args([
            "render",
            "--manifests",
            dir,
            "--hostname-override",
            "node-a",
        ])
        .args(more)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn cluster() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("cluster.yaml"), CLUSTER).unwrap();
    dir
}

#[test]
fn render_prints_both_tables_or_the_one_asked_for() {
    let dir = cluster();
    let both = render(dir.path(), &[]);
    assert!(both.status.success(), "{}", text(&both.stderr));
    let v4 = text(&render(dir.path(), &["--family", "ip"]).stdout);
    let v6 = text(&render(dir.path(), &["--family=ip6"]).stdout);
    assert_eq!(text(&both.stdout), format!("{v4}{v6}"));
    for part in [
        "table ip portolan",
        "10.96.0.1",
        "10.244.1.5",
        "192.0.2.10",
        "30080",
    ] {
        assert!(v4.contains(part), "{part} not in\n{v4}");
    }
    assert!(
        v6.contains("table ip6 portolan") && !v6.contains("10.96.0.1"),
        "{v6}"
    );
}

#[test]
fn what_render_prints_loads_into_a_fresh_namespace() {
    let dir = cluster();
    let mut nft = Command::new("unshare")
        .args(["-n", "sh", "-c", "nft -f - && nft list ruleset"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(&render(dir.path(), &[]).stdout)
        .unwrap();
    let listed = nft.wait_with_output().unwrap();
    assert!(listed.status.success());
    assert!(
        text(&listed.stdout).contains("10.244.1.5 . 8080"),
        "{}",
        text(&listed.stdout)
    );
}

#[test]
fn render_names_an_ignored_object_and_prints_the_rest() {
    let dir = cluster();
    fs::write(
        dir.path().join("bad.yaml"),
        CLUSTER.replace("web", "bad").replace("30080", "80"),
    )
    .unwrap();
    let output = render(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("10.244.1.5"));
    let stderr = text(&output.stderr);
    for part in ["bad.yaml", "Service default/bad", "spec.ports[0].nodePort"] {
        assert!(stderr.contains(part), "{part} not in {stderr}");
    }
    let wider = render(dir.path(), &["--node-port-range", "1-65535"]);
    assert!(
        !text(&wider.stderr).contains("nodePort"),
        "{}",
        text(&wider.stderr)
    );
}

#[test]
fn an_unknown_command_exits_with_two_and_others_with_one() {
    let code = |args: &[&str]| portolan().args(args).output().unwrap().status.code();
    assert_eq!(code(&["run", "--cluster-cidr", "x"]), Some(1));
    assert_eq!(code(&["sail"]), Some(2));
    assert_eq!(
        code(&[
            "render",
            "--manifests",
            "/nonexistent",
            "--hostname-override",
            "n"
        ]),
        Some(1)
    );
    assert_eq!(code(&["version"]), Some(0));
    assert!(text(&portolan().arg("version").output().unwrap().stdout).starts_with("portolan 0."));
}

#[test]
fn run_without_its_directory_exits_and_changes_nothing() {
    const SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
    let run = format!(
        "{} run --manifests /nonexistent --hostname-override=n --healthz-bind-address= --metrics-bind-address=",
        env!("CARGO_BIN_EXE_portolan")
    );
    // Any rule with a conntrack match loads conntrack, whose sysctls are there then.
    let script = format!(
        "nft 'table ip t {{ chain c {{ ct state new; }}; }}'; cat {SYSCTL}; {run}; code=$?; cat {SYSCTL}; exit $code"
    );
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", &script])
        .output()
        .unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("/nonexistent"), "{errors}");
    assert_eq!(text(&output.stdout), "0\n0\n", "{errors}");
}

#[test]
fn run_serves_an_edit_and_leaves_its_rules_when_stopped() {
    let dir = cluster();
    // The children of this thread live in its namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
    assert!(
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap()
            .success()
    );
    let mut daemon = portolan()
        .args([
            "run",
            "--manifests",
            dir.path().to_str().unwrap(),
            "--hostname-override=node-a",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("the first table", || {
        get("127.0.0.1:10256", "/readyz").is_some_and(|r| r.starts_with("HTTP/1.1 200"))
    });
    assert!(ruleset().contains("10.244.1.5 . 8080"), "{}", ruleset());
    assert!(
        get("127.0.0.1:10249", "/metrics")
            .unwrap()
            .contains("portolan_services 1\n")
    );

    fs::write(
        dir.path().join("cluster.yaml"),
        CLUSTER.replace("10.244.1.5", "10.244.1.6"),
    )
    .unwrap();
    wait("the edit", || ruleset().contains("10.244.1.6 . 8080"));

    let stopped = Instant::now();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    let status = daemon.wait().unwrap();
    assert!(
        stopped.elapsed() < Duration::from_secs(2),
        "{:?}",
        stopped.elapsed()
    );
    let mut log = String::new();
    daemon
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert!(status.success(), "{log}");
    assert!(log.contains("starting"), "{log}");
    assert!(ruleset().contains("10.244.1.6 . 8080"), "{}", ruleset());
}

fn ruleset() -> String {
    text(
        &Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .unwrap()
            .stdout,
    )
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    Some(response)
}

fn wait(what: &str, done: impl FnMut() -> bool) {
    lab::wait_until(what, Duration::from_secs(5), done).unwrap();
}

#[test]
fn api_server_is_written_without_the_kubelets_credentials() {
    let dir = TempDir::new().unwrap();
    let [kubelet, missing, written] =
        ["kubelet.conf", "missing", "written"].map(|name| dir.path().join(name));
    let kubeconfig = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443'}}]
contexts: [{name: n, context: {cluster: c, user: u}}]
current-context: n
users: [{name: u, user: {token: secret}}]
";
    fs::write(&kubelet, kubeconfig).unwrap();
    let run = |from: &[&Path], to: Option<&Path>| {
        let mut command = portolan();
        command.arg("api-server");
        for path in from {
            command.arg("--from").arg(path);
        }
        command.args(to.map(|path| format!("--write-to={}", path.display())));
        command.output().unwrap()
    };
    // Nothing to find: an init container goes on, a person learns it.
    assert!(run(&[&missing], Some(&written)).status.success());
    assert!(!written.exists());
    assert_eq!(run(&[&missing], None).status.code(), Some(1));

    assert!(run(&[&missing, &kubelet], Some(&written)).status.success());
    let found = fs::read_to_string(&written).unwrap();
    assert!(found.contains("https://192.0.2.1:6443"), "{found}");
    assert!(!found.contains("secret"), "{found}");
    assert_eq!(text(&run(&[&kubelet], None).stdout), found);
}

#[test]
fn cleanup_waits_for_sigterm_when_asked_to() {
    let mut child = Command::new("unshare")
        .args(["-n", env!("CARGO_BIN_EXE_portolan"), "cleanup", "--wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !said.contains("waiting to be stopped") {
        assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    assert!(said.contains("removed: 0 nftables tables"), "{said}");
    assert!(child.try_wait().unwrap().is_none(), "it has ended");
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
