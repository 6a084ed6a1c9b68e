//! Selects Kubernetes' tests of networking and the cluster for each, and states why others are not run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use crate::run::output;

/// Prefix of the name of every test.
pub(super) const GROUP: &str = "[sig-network] ";

/// Parts of the names of tests that cannot run here, and the reason.
const EXCLUDED: &[(&str, &str)] = &[
    ("[Feature:SCTPConnectivity]", "needs a kernel with SCTP"),
    ("Internet connection", "needs the internet"),
    // It asks for the name of 8.8.8.8.
    ("should forward PTR records", "needs the internet"),
    ("IPerf2", "measures, and needs an image of iperf"),
    (
        "[Feature:NetworkPolicy]",
        "needs a network policy controller",
    ),
    ("[Feature:Ingress", "needs an ingress controller"),
    ("[Feature:NEG", "needs a cloud"),
    ("[Provider:", "needs a cloud"),
    (
        "[Feature:KubeProxyNFAcct]",
        "needs kube-proxy in its iptables mode",
    ),
    (
        "[Feature:PerformanceDNS]",
        "measures cluster DNS with 10,000 Services",
    ),
    (
        "after restarting apiserver",
        "needs SSH to the machine of the API server",
    ),
];

/// A group of tests, and the cluster for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) nodes: u8,
    /// Three zones with equal numbers of worker nodes, and direct routing between nodes.
    pub(super) has_zones: bool,
    /// A load balancer in front of the nodes, where the tests' own client runs as well.
    pub(super) is_outside: bool,
    /// Node ports on localhost, kube-proxy's label at the service proxy's pods, and one test at a time.
    pub(super) is_special: bool,
    /// Parts of the names of its tests. Empty in the last stage, which has all other tests.
    tests: &'static [&'static str],
}

pub(super) const STAGES: [Stage; 4] = [
    Stage {
        name: "special",
        nodes: 2,
        has_zones: false,
        is_special: true,
        is_outside: false,
        tests: &[
            "[Feature:LocalhostNodePorts]",
            "after restarting kube-proxy",
        ],
    },
    Stage {
        name: "zones",
        nodes: 7,
        has_zones: true,
        is_special: false,
        is_outside: false,
        tests: &[
            "Traffic Distribution",
            "Topology Hints",
            // A node masquerades what it sends through a tunnel, as kube-proxy's rules do, and this test expects the node's address.
            "NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes",
        ],
    },
    Stage {
        name: "load-balancers",
        nodes: 2,
        has_zones: false,
        is_special: false,
        is_outside: true,
        tests: &["[Feature:LoadBalancer]"],
    },
    Stage {
        name: "main",
        nodes: 2,
        has_zones: false,
        is_special: false,
        is_outside: false,
        tests: &[],
    },
];

/// The names of all tests of networking, without their group.
pub(super) fn all(programs: &Path) -> Result<Vec<String>> {
    let mut list = Command::new(programs.join("e2e.test"));
    let text = output(list.args(["--list-tests", "--kubeconfig=/nonexistent"]))?;
    let names = names(&String::from_utf8(text)?);
    ensure!(!names.is_empty(), "e2e.test lists no test of {GROUP}");
    Ok(names)
}

/// `FILE.go:LINE: NAME` of each test in the list.
fn names(list: &str) -> Vec<String> {
    let lines = list.lines().filter_map(|line| line.split_once(": "));
    let mut names: Vec<String> = lines
        .filter_map(|(_, name)| Some(name.trim().strip_prefix(GROUP)?.to_owned()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The reason why a test cannot run here, if it cannot.
pub(super) fn excluded(name: &str) -> Option<&'static str> {
    let found = EXCLUDED.iter().find(|(part, _)| name.contains(part));
    found.map(|(_, why)| *why)
}

/// The tests of a stage that can run here and match the expression.
pub(super) fn of_stage(stage: &Stage, names: &[String], focus: &str) -> Result<Vec<String>> {
    let focus = Regex::new(focus).with_context(|| format!("--focus {focus:?}"))?;
    let selected = names.iter().filter(|name| {
        excluded(name).is_none()
            && of(name) == stage.name
            && focus.is_match(&format!("{GROUP}{name}"))
    });
    Ok(selected.cloned().collect())
}

/// The name of the stage that a test belongs to.
fn of(name: &str) -> &'static str {
    let stage = STAGES
        .iter()
        .find(|stage| stage.tests.is_empty() || stage.tests.iter().any(|part| name.contains(part)));
    stage.map_or("", |stage| stage.name)
}

/// An expression for ginkgo that matches exactly these tests.
pub(super) fn expression(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    format!(r"\[sig-network\] ({})$", names.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_in_one_stage_or_excluded_with_a_reason() -> Result<()> {
        let list = "test/e2e/network/service.go:1: [sig-network] Services should a [Conformance]\n\
                    test/e2e/network/service.go:2: [sig-network] Traffic Distribution should b\n\
                    test/e2e/network/service.go:3: [sig-network] LoadBalancers [Feature:LoadBalancer] should c [Slow]\n\
                    test/e2e/network/service.go:4: [sig-network] [Feature:NetworkPolicy] should d\n\
                    test/e2e/storage/x.go:3: [sig-storage] other\n";
        let names = names(list);
        assert_eq!(names.len(), 4);
        let [_, zones, outside, main] = &STAGES;
        let selected = of_stage(outside, &names, "sig-network")?;
        assert_eq!(
            selected,
            ["LoadBalancers [Feature:LoadBalancer] should c [Slow]"]
        );
        let selected = of_stage(main, &names, "sig-network")?;
        assert_eq!(selected, ["Services should a [Conformance]"]);
        let selected = of_stage(zones, &names, "sig-network")?;
        assert_eq!(selected, ["Traffic Distribution should b"]);
        assert!(of_stage(zones, &names, "Conformance")?.is_empty());
        let excluded: Vec<_> = names.iter().filter_map(|name| excluded(name)).collect();
        assert_eq!(excluded, ["needs a network policy controller"]);
        Ok(())
    }

    #[test]
    fn the_expression_matches_whole_names_only() -> Result<()> {
        let expression = expression(&["Services (a) [x]".to_owned(), "Proxy".to_owned()]);
        let expression = Regex::new(&expression)?;
        assert!(expression.is_match("Kubernetes e2e suite [sig-network] Services (a) [x]"));
        assert!(!expression.is_match("Kubernetes e2e suite [sig-network] Proxy b"));
        Ok(())
    }
}
