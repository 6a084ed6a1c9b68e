//! What Portolan deliberately does otherwise than kube-proxy: the list, and how a disagreement is recognized as
//! one of it.
//!
//! `differences.yaml` is for people: a name, what each of the two does, and why. Here each name has its *view*: the
//! change to a cluster, or to the fate of a packet, after which the documentation says what kube-proxy does. A
//! disagreement is deliberate only if Portolan did what the reference model expects of the cluster, and kube-proxy what
//! it expects of the cluster so seen, down to backends and source addresses. Invariant: list and views have the same
//! names, but for those that have a test of their own.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Fates;
use super::fates::{are_as_expected, fits};
use crate::cluster::{Cluster, Node, Service};
use crate::field::Field;
use crate::oracle::{Expected, Packet, contestants, is_nodes_own_like_a_pods, outcome};

/// An entry of the list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Difference {
    pub name: String,
    /// What kube-proxy does.
    pub kube_proxy: String,
    /// What Portolan does.
    pub portolan: String,
    pub reason: String,
}

/// How kube-proxy's side of a difference follows from a cluster.
enum View {
    /// It sees this in place of the cluster.
    Cluster(fn(&mut Cluster)),
    /// It may do any of these in place of what is given.
    Fate(fn(&Cluster, &Node, &Packet, Vec<Expected>) -> Vec<Expected>),
}

/// Name, the first minor release that has it, and how it follows.
const VIEWS: &[(&str, u32, View)] = &[
    (
        "the-headless-label-on-a-service",
        36,
        View::Cluster(|cluster| {
            for service in &mut cluster.services {
                service.labels.retain(|(key, _)| key != HEADLESS);
            }
        }),
    ),
    (
        "the-proxy-name-label-on-a-slice",
        36,
        View::Cluster(|cluster| {
            for slice in &mut cluster.slices {
                slice.labels.retain(|(key, _)| key != PROXY_NAME);
            }
        }),
    ),
    (
        "one-external-address-of-two-services",
        0,
        View::Fate(anyone_has_it),
    ),
    (
        "the-nodes-own-source-under-a-local-policy",
        0,
        View::Fate(kept_like_a_pods),
    ),
];

/// In the list, and seen in packets that come one after the other (see [`super::affinity`]).
pub(super) const SPLIT_AFFINITY: &str = "affinity-under-a-local-policy";

const HEADLESS: &str = "service.kubernetes.io/headless";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The list as it is written.
pub fn list() -> Result<Vec<Difference>> {
    serde_saphyr::from_str(include_str!("../../differences.yaml")).context("differences.yaml")
}

/// The name of one that is about this packet, with kube-proxy 1.`minor`.
pub fn about(minor: u32, cluster: &Cluster, node: &Node, packet: &Packet) -> Option<&'static str> {
    theirs(minor, cluster, node, packet).names.first().copied()
}

/// The names of all that random clusters show with kube-proxy 1.`minor`.
pub fn shown_by_chance(minor: u32) -> impl Iterator<Item = &'static str> {
    let views = VIEWS.iter().filter(move |(_, since, _)| *since <= minor);
    views.map(|(name, ..)| *name).chain([SPLIT_AFFINITY])
}

/// What kube-proxy may make of a packet.
pub(super) struct Theirs {
    /// The cluster as it sees it.
    pub(super) cluster: Cluster,
    /// Any of these.
    pub(super) expected: Vec<Expected>,
    /// The differences that this is due to.
    pub(super) names: Vec<&'static str>,
}

/// What kube-proxy 1.`minor` may make of a packet, with all deliberate differences.
pub(super) fn theirs(minor: u32, cluster: &Cluster, node: &Node, packet: &Packet) -> Theirs {
    let mut theirs = Theirs {
        expected: vec![outcome(cluster, node, packet)],
        cluster: cluster.clone(),
        names: Vec::new(),
    };
    for (name, _, view) in VIEWS.iter().filter(|(_, since, _)| *since <= minor) {
        let expected = match view {
            View::Cluster(view) => {
                view(&mut theirs.cluster);
                vec![outcome(&theirs.cluster, node, packet)]
            }
            View::Fate(view) => view(&theirs.cluster, node, packet, theirs.expected.clone()),
        };
        if expected != theirs.expected {
            theirs.expected = expected;
            theirs.names.push(name);
        }
    }
    theirs
}

impl Theirs {
    /// Whether kube-proxy did what it may, and where that is one thing only, all of it.
    pub(super) fn explain(
        &self,
        field: &Field,
        node: &Node,
        packet: &Packet,
        fates: &Fates,
    ) -> bool {
        match self.expected.as_slice() {
            [expected] => are_as_expected(field, node, packet, expected, fates),
            several => fates.iter().all(|fate| {
                let mut several = several.iter();
                several.any(|expected| fits(field, node, packet, expected, fate))
            }),
        }
    }
}

/// Of several Services, kube-proxy gives an external address to the one that it met last in a Go map, and to another
/// one at the next sync. Source ranges guard it whoever has it.
fn anyone_has_it(
    cluster: &Cluster,
    node: &Node,
    packet: &Packet,
    expected: Vec<Expected>,
) -> Vec<Expected> {
    let contestants = contestants(cluster, node, packet);
    if contestants.len() < 2 {
        return expected;
    }
    let is = |service: &Service, other: &Service| {
        (&service.namespace, &service.name) == (&other.namespace, &other.name)
    };
    let alone = |winner: &Service| {
        let mut cluster = cluster.clone();
        let losers = contestants.iter().filter(|other| !is(other, winner));
        for loser in losers {
            let mut services = cluster.services.iter_mut();
            if let Some(service) = services.find(|service| is(service, loser)) {
                service.external_ips.clear();
                service.ingress.clear();
            }
        }
        outcome(&cluster, node, packet)
    };
    let mut all: Vec<Expected> = contestants.iter().map(|service| alone(service)).collect();
    all.dedup();
    all
}

/// Pods' packets are not masqueraded, and kube-proxy asks first whether it is one.
fn kept_like_a_pods(
    cluster: &Cluster,
    node: &Node,
    packet: &Packet,
    expected: Vec<Expected>,
) -> Vec<Expected> {
    if !is_nodes_own_like_a_pods(cluster, node, packet) {
        return expected;
    }
    let kept = |expected| match expected {
        Expected::Balanced(backends) => {
            Expected::Balanced(backends.into_keys().map(|to| (to, false)).collect())
        }
        other => other,
    };
    expected.into_iter().map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_in_the_list_is_shown_and_none_is_besides() -> Result<()> {
        // Kept out of the test, since they are left to chance, an older release does not start, or clusters have no such thing.
        const LEFT_OUT: [&str; 6] = [
            "external-ips-that-belong-to-others",
            "ports-that-processes-of-the-node-have",
            "two-entries-for-one-endpoint-before-1.36",
            "endpoints-after-a-restart-before-1.36",
            "node-port-addresses-before-1.37",
            "the-zone-at-start",
        ];
        // Shown by `service_cidr_changes_apply_at_once_unlike_kube_proxys`.
        const LATE_SERVICE_CIDRS: &str = "service-cidrs-that-change";
        let list = list()?;
        let mut listed: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        let shown = shown_by_chance(u32::MAX).chain([LATE_SERVICE_CIDRS]);
        let mut known: Vec<&str> = shown.chain(LEFT_OUT).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
        for entry in &list {
            let texts = [&entry.kube_proxy, &entry.portolan, &entry.reason];
            assert!(texts.iter().all(|text| !text.is_empty()), "{}", entry.name);
        }
        Ok(())
    }
}
