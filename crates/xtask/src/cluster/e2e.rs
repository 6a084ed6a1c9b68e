//! `cargo xtask e2e`: runs Kubernetes' end-to-end tests of networking with Portolan and with kube-proxy, and compares the results.
//!
//! Owns the order of a run. [`selection`] selects tests and the cluster for each, and states why others are not run; [`images`]
//! makes the images of the tests' pods, [`registry`] what one of them serves; [`load_balancer`] is what a cloud has in front of
//! the nodes; [`report`] reads the results and writes `docs/conformance.md`.
//!
//! Invariant: both columns have the results of the same tests, in clusters that differ only in the service proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::node::run_in;
use super::parts::{Overlay, Parts, ServiceProxy};
use super::place::Cluster;
use super::{Steps, Up, down, up};
use crate::control_plane::{self, e2e};
use crate::run::root;

mod images;
mod load_balancer;
mod registry;
mod report;
mod selection;

use load_balancer::LoadBalancer;
use selection::{STAGES, Stage};

/// The folder of the gate's results, below that of all results, and its name of the cluster.
const GATE: &str = "gate";

/// Up to this many failed tests are run again, since a busy machine can cause them. More failures have another cause.
const AGAIN: usize = 30;

/// The default of `--focus`.
const ALL: &str = r"\[sig-network\]";
/// The default of `--procs`.
const PROCS: u8 = 4;

/// Options of `cargo xtask e2e`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Regular expression for names of tests
    #[arg(long, default_value = ALL)]
    focus: String,
    /// Tests that run at the same time
    #[arg(long, default_value_t = PROCS)]
    procs: u8,
    /// Run with one service proxy only; the other column is of its last run
    #[arg(long, value_enum)]
    proxy: Option<ServiceProxy>,
    /// Keep the results of earlier runs in the table, for tests that this one does not run
    #[arg(long)]
    add: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            focus: ALL.to_owned(),
            procs: PROCS,
            proxy: None,
            add: false,
        }
    }
}

/// Runs the tests with each service proxy, and writes the table. A test that fails with Portolan alone is an error.
pub(crate) fn e2e(options: &Options) -> Result<()> {
    let both = [ServiceProxy::KubeProxy, ServiceProxy::Portolan];
    let is_one = |wanted| both.contains(&wanted);
    ensure!(
        options.proxy.is_none_or(is_one),
        "--proxy is portolan or kube-proxy here"
    );
    let programs = Steps::start().run("end-to-end tests", e2e::programs)?;
    let names = selection::all(&programs)?;
    for proxy in both {
        if options.proxy.is_none_or(|wanted| wanted == proxy) {
            let run = Run::new(proxy, name(proxy), options, &programs)?;
            run.stages(&STAGES, &names, options)?;
        }
    }
    let [kube_proxy, portolan] = both.map(|proxy| results(name(proxy)));
    let (kube_proxy, portolan) = (kube_proxy?, portolan?);
    if kube_proxy.exists() && portolan.exists() {
        report::write(&kube_proxy, &portolan, &names)?;
        let worse = report::worse(&kube_proxy, &portolan)?;
        ensure!(worse.is_empty(), "{ONLY_PORTOLAN}: {worse:?}");
    }
    Ok(())
}

/// Runs the tests that need two nodes and nothing special, with Portolan. A failed test is an error unless the page has it that
/// kube-proxy fails as well. Says so, and does nothing, where the tests are not built.
pub(crate) fn gate() -> Result<()> {
    if !(e2e::is_built()? && control_plane::cluster_is_built()?) {
        eprintln!(
            "SKIPPED: end-to-end tests: they are not built, which takes half an hour with the cluster's programs; `cargo xtask e2e` builds them"
        );
        return Ok(());
    }
    let programs = e2e::programs()?;
    let options = Options::default();
    let run = Run::new(ServiceProxy::Portolan, GATE, &options, &programs)?;
    let (names, main) = (selection::all(&programs)?, &STAGES[STAGES.len() - 1..]);
    run.stages(main, &names, &options)?;
    let worse = report::worse_than_the_page(&run.folder)?;
    ensure!(worse.is_empty(), "{ONLY_PORTOLAN}: {worse:?}");
    Ok(())
}

/// What is wrong with tests that only fail with Portolan.
const ONLY_PORTOLAN: &str = "these tests pass with kube-proxy and fail with Portolan";

/// The parent folder of all runs of a name. It is below the checkout, since nodes see the checkout under the same path as this
/// machine, unless the checkout is below /var or /run.
fn results(name: &str) -> Result<PathBuf> {
    Ok(root()?.join("target/e2e").join(name))
}

/// Name of the folder of results and of the cluster.
fn name(proxy: ServiceProxy) -> &'static str {
    match proxy {
        ServiceProxy::Portolan => "e2eportolan",
        _ => "e2ekubeproxy",
    }
}

/// One run with one service proxy.
struct Run<'a> {
    proxy: ServiceProxy,
    /// Name of the cluster.
    name: &'static str,
    procs: u8,
    /// Folder for results and logs.
    folder: PathBuf,
    /// Folder with `e2e.test` and `ginkgo`.
    programs: &'a Path,
}

impl<'a> Run<'a> {
    /// Makes the folder of a run, and deletes those of earlier runs unless they are to be kept.
    fn new(
        proxy: ServiceProxy,
        name: &'static str,
        options: &Options,
        programs: &'a Path,
    ) -> Result<Run<'a>> {
        let all = results(name)?;
        if !options.add {
            let _ = fs::remove_dir_all(&all);
        }
        let now = jiff::Timestamp::now();
        let folder = all.join(now.strftime("%Y%m%d-%H%M%S").to_string());
        fs::create_dir_all(&folder)?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let about = json!({
            "commit": super::images::revision()?,
            "date": now.strftime("%Y-%m-%d").to_string(),
            "kernel": kernel.trim().split('-').next(),
            "procs": options.procs,
            "focus": options.focus,
        });
        fs::write(folder.join(report::ABOUT), about.to_string())?;
        Ok(Run {
            proxy,
            name,
            procs: options.procs,
            folder,
            programs,
        })
    }

    /// Runs the selected tests, each stage in a cluster of its own.
    fn stages(&self, stages: &[Stage], names: &[String], options: &Options) -> Result<()> {
        for stage in stages {
            let selected = selection::of_stage(stage, names, &options.focus)?;
            if !selected.is_empty() {
                self.stage(stage, &selected)?;
            }
        }
        Ok(())
    }

    /// Makes a cluster, runs the tests in it, and deletes it.
    fn stage(&self, stage: &Stage, tests: &[String]) -> Result<()> {
        let cluster = Cluster::named(self.name)?;
        let mut steps = Steps::start();
        steps.run("delete an older cluster", || down::down(&cluster))?;
        let wanted = Up {
            nodes: stage.nodes,
            parts: Parts {
                proxy: self.proxy,
                overlay: Overlay::Portolan,
                direct_routing: stage.has_zones,
                localhost_node_ports: stage.is_special,
            },
            old_version: false,
        };
        let extra = steps.run("images of the tests", || images::archives(self.programs))?;
        let done = up(&cluster, &wanted, &extra).and_then(|()| {
            if stage.has_zones {
                steps.run("zones", || label_zones(&cluster))?;
            }
            if stage.is_special && self.proxy == ServiceProxy::Portolan {
                steps.run("kube-proxy's label", || label_as_kube_proxy(&cluster))?;
            }
            let log = self.folder.join("load-balancer.log");
            let balancer = stage
                .is_outside
                .then(|| LoadBalancer::start(&cluster, &log));
            let _balancer = balancer.transpose()?;
            let what = format!("{} tests of the stage {}", tests.len(), stage.name);
            steps.run(&what, || self.tests(&cluster, stage, stage.name, tests))?;
            self.failed_again(&cluster, stage, &mut steps)
        });
        steps.run("delete the cluster", || down::down(&cluster))?;
        done
    }

    /// Runs failed tests once more, one at a time. A test that passes then had failed because of the load of the other tests.
    fn failed_again(&self, cluster: &Cluster, stage: &Stage, steps: &mut Steps) -> Result<()> {
        let failed = report::failed(&self.folder.join(format!("{}.xml", stage.name)))?;
        if failed.is_empty() || failed.len() > AGAIN {
            return Ok(());
        }
        let alone = format!("{}{}", stage.name, report::ALONE);
        let what = format!("{} failed tests again, alone", failed.len());
        let one = Run {
            procs: 1,
            folder: self.folder.clone(),
            ..*self
        };
        steps.run(&what, || one.tests(cluster, stage, &alone, &failed))
    }

    /// Starts ginkgo on the first node, or outside of the nodes. Failed tests are results, not errors.
    fn tests(&self, cluster: &Cluster, stage: &Stage, to: &str, tests: &[String]) -> Result<()> {
        let log_file = self.folder.join(format!("{to}.log"));
        let log = fs::File::create(&log_file)?;
        let reports = self.folder.join(format!("{to}-reports"));
        fs::create_dir_all(&reports)?;
        // A test that ends the service proxy runs beside no other.
        let procs = if stage.is_special { 1 } else { self.procs };
        let (mut ginkgo, kubeconfig) = client(cluster, stage)?;
        // ginkgo panics in the root folder, where commands in a node start.
        ginkgo
            .arg("-C")
            .arg(&self.folder)
            .arg(self.programs.join("ginkgo"))
            .arg(format!("--procs={procs}"))
            .arg(format!("--focus={}", selection::expression(tests)))
            .args(["--timeout=90m", "--keep-going", "--no-color"])
            .arg(format!("--output-dir={}", self.folder.display()))
            .arg(format!("--junit-report={to}.xml"))
            .arg(self.programs.join("e2e.test"))
            .arg("--")
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(["--provider=skeleton", "--disable-log-dump"])
            .arg(format!("--num-nodes={}", stage.nodes))
            .arg(format!("--report-dir={}", reports.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = ginkgo.status().context("start ginkgo")?;
        ensure!(
            self.folder.join(format!("{to}.xml")).exists(),
            "no results ({status}); see {}",
            log_file.display()
        );
        Ok(())
    }
}

/// `env` where the tests' own client is to run, and the kubeconfig that it sees there.
fn client(cluster: &Cluster, stage: &Stage) -> Result<(Command, PathBuf)> {
    let first = cluster.first()?;
    if !stage.is_outside {
        return Ok((first.command("env")?, "/etc/kubernetes/admin.conf".into()));
    }
    let mut env = Command::new("ip");
    env.args(["netns", "exec", &cluster.wire(), "env"]);
    // The tests call kubectl.
    let path = std::env::var("PATH")?;
    let programs = control_plane::newest()?;
    env.env("PATH", format!("{}:{path}", programs.display()));
    Ok((env, first.kubeconfig()))
}

/// Gives Portolan's pods the label by which a test finds kube-proxy's.
fn label_as_kube_proxy(cluster: &Cluster) -> Result<()> {
    let first = cluster.first()?;
    let label = r#"{"spec":{"template":{"metadata":{"labels":{"k8s-app":"kube-proxy"}}}}}"#;
    let kubectl = ["kubectl", "-n", "kube-system"];
    for command in [
        ["patch", "ds/portolan", "-p", label],
        ["rollout", "status", "ds/portolan", "--timeout=300s"],
    ] {
        run_in(&first, &[&kubectl[..], &command[..]].concat())?;
    }
    Ok(())
}

/// Spreads the worker nodes over three zones. The first node, with the control plane, is in one of these zones.
fn label_zones(cluster: &Cluster) -> Result<()> {
    let first = cluster.first()?;
    for node in cluster.nodes() {
        let zone = format!("topology.kubernetes.io/zone=zone{}", node.number % 3);
        run_in(&first, &["kubectl", "label", "node", &node.name(), &zone])?;
    }
    Ok(())
}
