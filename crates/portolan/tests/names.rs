//! The binary under the names that manifests call it by: kube-proxy, flanneld, install-conf and cp.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs the binary by a name, in a network namespace without anything.
fn run(name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    // `exec -a` sets the name; it is bash's.
    command
        .args(["-n", "bash", "-c", "exec -a \"$0\" \"$@\"", name])
        .arg(env!("CARGO_BIN_EXE_portolan"))
        .args(arguments);
    for variable in ["NODE_NAME", "PORTOLAN_LOG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

#[test]
fn flannels_init_containers_install_their_file_whole() {
    let dir = TempDir::new().unwrap();
    let (from, to) = (
        path(&dir, "cni-conf.json"),
        path(&dir, "10-flannel.conflist"),
    );
    fs::write(&to, "old and longer than the new one").unwrap();
    for (name, flags) in [("/opt/bin/install-conf", &[][..]), ("cp", &["-f"][..])] {
        let content = format!("{{\"by\": \"{name}\"}}");
        fs::write(&from, &content).unwrap();
        let arguments: Vec<&str> = flags.iter().copied().chain([&*from, &*to]).collect();
        let output = run(name, &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::read_to_string(&to).unwrap(), content, "{name}");
    }
    // No draft is left for the container runtime to find.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let missing = run("install-conf", &["/nonexistent", &to]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nonexistent"));
    assert!(fs::read_to_string(&to).unwrap().contains("cp"));
    assert_eq!(run("cp", &[&from]).status.code(), Some(1));
}

#[test]
fn all_problems_of_flags_and_file_are_named_at_once() {
    let dir = TempDir::new().unwrap();
    let config = path(&dir, "config.conf");
    fs::write(
        &config,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.0.0.0/33\noomScoreAdj: 2000\n",
    )
    .unwrap();
    let config = format!("--config={config}");
    let output = run(
        "kube-proxy",
        &[
            &config,
            "--proxy-mode=ebpf",
            "--nodeport_addresses=x",
            "--sail",
        ],
    );
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for part in [
        "clusterCIDR",
        "10.0.0.0/33",
        "oomScoreAdj",
        "2000",
        "--proxy-mode",
        "ebpf",
        "--nodeport-addresses",
        "--sail",
    ] {
        assert!(errors.contains(part), "{part} not in {errors}");
    }
}

#[test]
fn what_only_the_daemon_can_check_is_refused_before_it_starts() {
    for (arguments, part) in [
        (
            &["--config=/nonexistent/config.conf"][..],
            "/nonexistent/config.conf",
        ),
        (&["--config=/dev/zero"], "longer than"),
        (&["--config=/"], "\"/\""),
        (&["--write-config-to=/nonexistent/out"], "/nonexistent/out"),
        (&["--kubeconfig=/nonexistent"], "\"/nonexistent\""),
        (&["--kubeconfig=/dev/null"], "\"/dev/null\""),
        (&["--without-features=sails"], "sails"),
        (&["--log-level=portolan=loud"], "loud"),
        (&["--manifests=/nonexistent"], "/nonexistent"),
        (&["--overlay=vxlan", "--iface-regex=("], "--iface-regex"),
        (
            &["--overlay=vxlan", "--net-config-path=/nonexistent"],
            "/nonexistent",
        ),
    ] {
        let output = run("kube-proxy", arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(part), "{part} not in {errors}");
    }
}

#[test]
fn the_written_configuration_starts_the_same_daemon() {
    let dir = TempDir::new().unwrap();
    let [first, second] = ["first", "second"].map(|name| path(&dir, name));
    let kubeadm = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../kube-proxy-config/tests/distributions/kubeadm/config");
    let config = format!("--config={}", kubeadm.display());
    let write = |config: &str, to: &str, more: &[&str]| {
        let to = format!("--write-config-to={to}");
        let arguments: Vec<&str> = [config, &*to]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let output = run("/usr/local/bin/kube-proxy", &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    write(&config, &first, &["--hostname-override=node-1"]);
    write(&format!("--config={first}"), &second, &[]);
    let written = fs::read_to_string(&first).unwrap();
    assert_eq!(written, fs::read_to_string(&second).unwrap());
    for part in [
        "hostnameOverride: node-1",
        "mode: iptables",
        "PortolanConfiguration",
    ] {
        assert!(written.contains(part), "{part} not in {written}");
    }
}

#[test]
fn help_and_version_are_those_of_the_name() {
    for (name, flag) in [
        ("kube-proxy", "--iptables-localhost-nodeports"),
        ("flanneld", "--healthz-port"),
    ] {
        let help = run(name, &["--help"]);
        assert!(help.status.success());
        let help = text(&help.stdout);
        assert!(
            help.contains(&format!("Usage: {name}")) && help.contains(flag),
            "{help}"
        );
    }
    let version = concat!("portolan ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&run("kube-proxy", &["--version"]).stdout), version);
    let raw = text(&run("kube-proxy", &["--version=raw"]).stdout);
    assert!(raw.contains("GitVersion:\"v"), "{raw}");
}

#[test]
fn run_has_kube_proxys_grammar() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    command.arg0("portolan").args(["run", "--help"]);
    let help = text(&command.output().unwrap().stdout);
    assert!(
        help.contains("Usage: portolan run") && help.contains("--overlay-filter"),
        "{help}"
    );
    let dir = TempDir::new().unwrap();
    let to = path(&dir, "written");
    let write = format!("--write_config_to={to}");
    let output = run(
        "portolan",
        &[
            "run",
            "--v=2",
            "--cluster_cidr=10.0.0.0/8",
            "--cluster-cidr",
            "10.1.0.0/16",
            "--masquerade-all=T",
            "--conntrack-udp-timeout=1.5h",
            "--hostname-override=n",
            &write,
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&to).unwrap();
    for part in ["clusterCIDR: 10.1.0.0/16", "1h30m0s", "verbosity: 2"] {
        assert!(written.contains(part), "{part} not in {written}");
    }
}

#[test]
fn json_log_lines_are_objects() {
    let dir = TempDir::new().unwrap();
    let file = path(&dir, "config.conf");
    let text_of = |own: &str| {
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nlogging: {{format: text}}\n\
             ---\napiVersion: portolan.io/v1alpha1\nkind: PortolanConfiguration\n{own}"
        )
    };
    let config = format!("--config={file}");
    for (own, flag, is_json) in [
        ("", "--logging-format=json", true),
        ("", "--log-format=json", true),
        ("logFormat: json\n", "--v=0", true),
        ("", "--v=0", false),
    ] {
        fs::write(&file, text_of(own)).unwrap();
        // Something is logged before the API server is looked for in vain.
        let output = run("kube-proxy", &[&config, flag, "--kubeconfig=/nonexistent"]);
        let said = text(&output.stderr);
        let (failures, logged): (Vec<&str>, Vec<&str>) = said
            .lines()
            .partition(|line| line.starts_with("portolan: "));
        assert!(!failures.is_empty() && !logged.is_empty(), "{said}");
        for line in logged {
            let parsed = serde_json::from_str::<serde_json::Value>(line);
            let is_object = parsed.is_ok_and(|line| line["level"] == "INFO");
            assert_eq!(is_object, is_json, "{own}{flag}: {line}");
        }
    }
}
