//! The manifests of `deploy/` are what the chart gives for the values in its `ci/`, and a real API server accepts all of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::{ControlPlane, Lab, scenario};

/// Each generated file, the values it is made with, and the only template if it has not all of them.
const GENERATED: [(&str, &str, Option<&str>); 13] = [
    ("rbac.yaml", "proxy", Some("rbac")),
    (
        "overlay-rbac.yaml",
        "proxy-and-overlay",
        Some("overlay-rbac"),
    ),
    ("proxy/portolan.yaml", "proxy", None),
    ("kubeadm/portolan.yaml", "kubeadm", None),
    ("proxy-and-overlay/portolan.yaml", "proxy-and-overlay", None),
    ("overlay-only/portolan.yaml", "overlay-only", None),
    ("kind/portolan.yaml", "kind", None),
    ("k3s/portolan.yaml", "k3s", None),
    ("rke2/portolan.yaml", "rke2", None),
    ("talos/portolan.yaml", "talos", None),
    ("eks/portolan.yaml", "eks", None),
    ("monitoring/portolan.yaml", "monitoring", Some("monitoring")),
    ("cleanup/portolan.yaml", "cleanup", Some("cleanup")),
];

/// The part of the Prometheus operator's PodMonitor that the chart uses, so that the API server checks it.
const POD_MONITOR: &str = include_str!("pod-monitor-crd.yaml");
/// The same of its PrometheusRule.
const PROMETHEUS_RULE: &str = include_str!("prometheus-rule-crd.yaml");

fn deploy() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("the checkout")?.join("deploy"))
}

/// What Helm makes of the chart.
fn rendered(values: &Path, template: Option<&str>) -> Result<String> {
    rendered_in("kube-system", values, template)
}

fn rendered_in(namespace: &str, values: &Path, template: Option<&str>) -> Result<String> {
    let mut helm = Command::new(lab::helm()?);
    helm.arg("template").arg("portolan");
    helm.arg(deploy()?.join("helm/portolan"));
    helm.args(["--namespace", namespace, "--kube-version=1.37.0"]);
    helm.arg("--values").arg(values);
    helm.args(template.map(|name| format!("--show-only=templates/{name}.yaml")));
    let output = helm.output().context("start helm")?;
    let refusal = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{values:?}: {refusal}");
    Ok(String::from_utf8(output.stdout)?)
}

fn values(name: &str) -> Result<PathBuf> {
    Ok(deploy()?.join(format!("helm/portolan/ci/{name}.yaml")))
}

/// Folders for `kubectl apply -k`.
fn kustomizations() -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(deploy()?)? {
        let folder = entry?.path();
        if folder.join("kustomization.yaml").is_file() {
            folders.push(folder);
        }
    }
    folders.sort();
    ensure!(folders.len() >= 11, "{folders:?}");
    Ok(folders)
}

#[scenario(Helm)]
#[ignore = "needs helm"]
fn a_section_of_the_values_that_is_null_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    for section in ["image", "serviceProxy", "overlay", "cni", "rbac", "cleanup"] {
        std::fs::write(&file, format!("{section}:\n"))?;
        let refusal = rendered(&file, None).err().context(section)?.to_string();
        let named = format!("missing property '{section}'");
        ensure!(refusal.contains(&named), "{section}: {refusal}");
    }
    Ok(())
}

#[scenario(Helm)]
#[ignore = "needs helm"]
fn manifests_are_what_the_chart_gives() -> Result<()> {
    let write = std::env::var_os("PORTOLAN_EXPECTED").is_some_and(|value| value == "write");
    let mut different = Vec::new();
    for (file, name, template) in GENERATED {
        let text = format!(
            "# Generated from helm/portolan with the values of ci/{name}.yaml; a test holds the two together.\n{}",
            rendered(&values(name)?, template)?
        );
        let path = deploy()?.join(file);
        if write {
            std::fs::write(&path, &text).with_context(|| format!("write {path:?}"))?;
        }
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            different.push(file);
        }
    }
    ensure!(
        different.is_empty(),
        "{different:?} differ from the chart; PORTOLAN_EXPECTED=write writes them again"
    );
    Ok(())
}

/// People without the Prometheus operator take them from `deploy/monitoring`.
#[test]
fn alerts_and_dashboard_are_those_of_the_chart() -> Result<()> {
    for file in ["alerts.yaml", "dashboard.json"] {
        let copy = std::fs::read_to_string(deploy()?.join("monitoring").join(file))?;
        let chart = deploy()?.join("helm/portolan/files").join(file);
        ensure!(
            copy == std::fs::read_to_string(&chart)?,
            "{file} differs from {chart:?}"
        );
    }
    Ok(())
}

/// A pod for a node that cannot run it stays pending, and `kubectl rollout status` never returns. No pod belongs on nodes of
/// Fargate, which have no DaemonSets, and of Auto Mode, where EKS runs kube-proxy.
#[test]
fn nodes_that_eks_proxies_itself_get_no_pod() -> Result<()> {
    for folder in ["eks", "cleanup"] {
        let text = std::fs::read_to_string(deploy()?.join(folder).join("portolan.yaml"))?;
        let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text)?;
        let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let affinity = &set.context("no DaemonSet")?["spec"]["template"]["spec"]["affinity"];
        let required = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        // One of the terms is enough for a node.
        let terms = required["nodeSelectorTerms"].as_array();
        let terms = terms.with_context(|| format!("{folder}: no affinity"))?;
        for kind in ["fargate", "auto"] {
            let admits = |term: &serde_json::Value| {
                let expressions = term["matchExpressions"].as_array();
                !expressions.into_iter().flatten().any(|one| {
                    let values = one["values"].as_array();
                    let has_kind = values.is_some_and(|values| values.iter().any(|v| v == kind));
                    one["key"] == "eks.amazonaws.com/compute-type"
                        && one["operator"] == "NotIn"
                        && has_kind
                })
            };
            ensure!(!terms.iter().any(admits), "{folder}: a pod for {kind}");
        }
    }
    Ok(())
}

#[scenario(Helm)]
#[ignore = "needs helm"]
fn unknown_and_contradictory_values_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    for (text, named) in [
        ("overlay: {enabeld: true}", "enabeld"),
        ("overlay: {enabled: true}", "podCidr"),
        ("serviceProxy: {enabled: false}", "nothing to run"),
        ("cni: {confName: 10-flannel.conf}", "confName"),
        ("image: {digest: 'sha256:1'}", "digest"),
        ("config: {mode: userspace}", "mode"),
        ("config: {detectLocalMode: PodCIDR}", "detectLocalMode"),
        ("podCidr: 10.244.0.0/33", "podCidr"),
        ("fullnameOverride: My_Proxy", "fullnameOverride"),
    ] {
        std::fs::write(&file, text)?;
        let Err(error) = rendered(&file, None) else {
            bail!("{text} was accepted");
        };
        let error = format!("{error:#}");
        ensure!(error.contains(named), "{text}: {error}");
    }
    // In another namespace the Service would select no pod, and the alert for a missing kube-proxy would fire.
    let Err(error) = rendered_in("monitoring", &values("monitoring")?, None) else {
        bail!("the Service for kube-prometheus-stack was accepted in another namespace");
    };
    ensure!(format!("{error:#}").contains("kube-system"), "{error:#}");
    Ok(())
}

/// As in a file of values whose lines below `config:` are all comments.
#[scenario(Helm)]
#[ignore = "needs helm"]
fn sections_without_content_leave_the_defaults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    let empty = "config:\nportolanConfig:\nresources:\ntolerations:\nimagePullSecrets:\n";
    std::fs::write(&file, empty)?;
    let empty = rendered(&file, Some("configmap"))?;
    ensure!(
        empty == rendered(&values("proxy")?, Some("configmap"))?,
        "{empty}"
    );
    Ok(())
}

/// The release of the way back may stand beside the one that it cleans up after.
#[scenario(Helm)]
#[ignore = "needs helm"]
fn a_cleanup_release_has_a_daemonset_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    let text = "{cleanup: {enabled: true}, overlay: {enabled: true}, podCidr: 10.244.0.0/16, \
                podMonitor: {enabled: true}, kubeProxyService: {enabled: true}, \
                prometheusRule: {enabled: true}, grafanaDashboards: {enabled: true}}";
    std::fs::write(&file, text)?;
    let manifests = rendered(&file, None)?;
    let kinds: Vec<_> = manifests
        .lines()
        .filter_map(|line| line.strip_prefix("kind: "))
        .collect();
    ensure!(kinds == ["DaemonSet"], "{kinds:?}");
    Ok(())
}

#[scenario(Helm)]
#[ignore = "needs helm"]
fn probes_ask_where_the_health_endpoint_listens() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    for (address, host, port) in [
        ("0.0.0.0:10256", "127.0.0.1", 10_256),
        ("[::]:7000", "127.0.0.1", 7_000),
        ("", "127.0.0.1", 10_256),
        ("10.0.0.7", "10.0.0.7", 10_256),
        ("10.0.0.7:7000", "10.0.0.7", 7_000),
        ("2001:db8::7", "2001:db8::7", 10_256),
        ("[2001:db8::7]:7000", "2001:db8::7", 7_000),
    ] {
        std::fs::write(
            &file,
            format!("config: {{healthzBindAddress: '{address}'}}"),
        )?;
        let manifest = rendered(&file, Some("daemonset"))?;
        let daemon_set: serde_json::Value = serde_saphyr::from_str(&manifest)?;
        let pod = &daemon_set["spec"]["template"]["spec"]["containers"][0];
        for probe in ["livenessProbe", "readinessProbe"] {
            let asked = &pod[probe]["httpGet"];
            ensure!(
                asked["host"] == host && asked["port"] == port,
                "{address}: {asked}"
            );
        }
    }
    Ok(())
}

#[scenario(ControlPlane, Helm)]
#[ignore = "needs a control plane and helm"]
fn a_real_api_server_accepts_every_manifest() -> Result<()> {
    let lab = Lab::new()?;
    let plane = ControlPlane::without_controllers(&lab)?;
    let established = ["wait", "--for=condition=Established", "--timeout=60s"];
    for (kind, definition) in [
        ("podmonitors", POD_MONITOR),
        ("prometheusrules", PROMETHEUS_RULE),
    ] {
        plane.kubectl_stdin(&["apply", "-f", "-"], definition)?;
        let name = format!("crd/{kind}.monitoring.coreos.com");
        plane.kubectl(&[&established[..], &[&name]].concat())?;
    }

    for folder in kustomizations()? {
        let text = plane.kubectl(&["kustomize", &folder.display().to_string()])?;
        accepted(&plane, &text).with_context(|| format!("{folder:?}"))?;
    }
    let mut files = 0;
    for entry in std::fs::read_dir(deploy()?.join("helm/portolan/ci"))? {
        let values = entry?.path();
        accepted(&plane, &rendered(&values, None)?).with_context(|| format!("{values:?}"))?;
        files += 1;
    }
    ensure!(files >= 11, "{files} files of values");
    Ok(())
}

/// Unknown fields are refused as well (strict validation).
fn accepted(plane: &ControlPlane, manifests: &str) -> Result<()> {
    let apply = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
    let said = plane.kubectl_stdin(&[&apply[..], &["--validate=strict"]].concat(), manifests)?;
    let objects = manifests.lines().filter(|line| line.starts_with("kind: "));
    let (objects, lines) = (objects.count(), said.lines().count());
    ensure!(objects > 0 && objects == lines, "{objects} objects: {said}");
    Ok(())
}
