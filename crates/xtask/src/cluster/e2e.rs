//! `cargo xtask e2e`: Kubernetes' end-to-end tests of networking, with Portolan and with kube-proxy, and the table of both.
//!
//! Owns which tests run and why others do not. [`images`] has what the tests' pods run, [`report`] reads results and writes
//! `docs/conformance.md`.
//!
//! Invariant: both columns are of the same tests on clusters that differ in the service proxy alone.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use super::parts::{Overlay, Parts, ServiceProxy};
use super::place::Cluster;
use super::{Steps, Up, down, up};
use crate::control_plane::e2e;
use crate::run::root;

mod images;
mod report;

/// What cannot run here, as a part of the names of tests, and why.
const EXCLUDED: &[(&str, &str)] = &[
    ("LoadBalancer", "needs a load balancer"),
    ("SCTP", "needs a kernel with SCTP"),
    ("Internet", "needs the internet"),
    ("IPerf", "measures, needs an image of iperf"),
    ("NetworkPolicy", "needs a network policy controller"),
    ("Netpol", "needs a network policy controller"),
    ("Feature:Ingress", "needs an ingress controller"),
    ("NEG", "needs a cloud"),
    ("DNS", "needs images with resolvers of other systems"),
    (
        "evicted",
        "needs eviction, which the cluster's kubelets have switched off",
    ),
    ("\\[Slow\\]", "takes long"),
    ("\\[Serial\\]", "disturbs other tests"),
    ("\\[Disruptive\\]", "disturbs other tests"),
    (
        "Traffic Distribution",
        "needs three zones of two nodes each",
    ),
    (
        "Topology Hints",
        "needs a node in each zone that is no control plane",
    ),
];

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Regular expression for names of tests
    #[arg(long, default_value = r"\[sig-network\]")]
    focus: String,
    /// Tests that run at the same time
    #[arg(long, default_value_t = 4)]
    procs: u8,
    /// Run with one service proxy only; the other column is of its last run
    #[arg(long, value_enum)]
    proxy: Option<ServiceProxy>,
}

/// Runs the tests with each service proxy, and writes the table.
pub(crate) fn e2e(options: &Options) -> Result<()> {
    let both = [ServiceProxy::KubeProxy, ServiceProxy::Portolan];
    for proxy in both {
        if options.proxy.is_none_or(|wanted| wanted == proxy) {
            run_with(proxy, options)?;
        }
    }
    let [kube_proxy, portolan] = both.map(results);
    let (kube_proxy, portolan) = (kube_proxy?, portolan?);
    if kube_proxy.exists() && portolan.exists() {
        report::write(&kube_proxy, &portolan)?;
    }
    Ok(())
}

/// Where the results with a service proxy are: below the checkout, which this machine and the nodes have under one path unless it
/// is below /var or /run.
fn results(proxy: ServiceProxy) -> Result<PathBuf> {
    Ok(root()?
        .join("target/e2e")
        .join(name(proxy))
        .join("results.xml"))
}

/// Of the folder of results, and of the cluster.
fn name(proxy: ServiceProxy) -> &'static str {
    match proxy {
        ServiceProxy::Portolan => "e2eportolan",
        ServiceProxy::KubeProxy => "e2ekubeproxy",
        ServiceProxy::None => "e2enone",
    }
}

/// Makes a cluster, runs the tests in it, and deletes it.
fn run_with(proxy: ServiceProxy, options: &Options) -> Result<()> {
    let cluster = Cluster::named(name(proxy))?;
    let mut steps = Steps::start();
    let programs = steps.run("end-to-end tests", e2e::programs)?;
    steps.run("delete an older cluster", || down::down(&cluster))?;
    let wanted = Up {
        nodes: 2,
        parts: Parts {
            proxy,
            overlay: Overlay::Portolan,
        },
    };
    let extra = steps.run("images of the tests", || images::archives(&programs))?;
    let done = up(&cluster, &wanted, &extra)
        .and_then(|()| steps.run("tests", || test(&cluster, proxy, &programs, options)));
    steps.run("delete the cluster", || down::down(&cluster))?;
    done
}

/// Starts ginkgo on the first node. Failed tests are results, no error.
fn test(
    cluster: &Cluster,
    proxy: ServiceProxy,
    programs: &std::path::Path,
    options: &Options,
) -> Result<()> {
    let first = cluster.first()?;
    let results = results(proxy)?;
    let folder = results.parent().context("no folder")?;
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let skip: Vec<&str> = EXCLUDED.iter().map(|(part, _)| *part).collect();
    let log = fs::File::create(folder.join("log"))?;
    // ginkgo panics in the root folder, where commands in a node start.
    let mut ginkgo = first.command("env")?;
    ginkgo
        .arg("-C")
        .arg(folder)
        .arg(programs.join("ginkgo"))
        .arg(format!("--procs={}", options.procs))
        .arg(format!("--focus={}", options.focus))
        .arg(format!("--skip={}", skip.join("|")))
        .args(["--timeout=60m", "--keep-going", "--no-color"])
        .arg(format!("--output-dir={}", folder.display()))
        .arg("--junit-report=results.xml")
        .arg(programs.join("e2e.test"))
        .args(["--", "--kubeconfig=/etc/kubernetes/admin.conf"])
        .args(["--provider=skeleton", "--num-nodes=2"])
        .arg(format!("--report-dir={}", folder.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = ginkgo.status().context("start ginkgo")?;
    anyhow::ensure!(
        results.exists(),
        "no results ({status}); see {}",
        folder.join("log").display()
    );
    Ok(())
}
