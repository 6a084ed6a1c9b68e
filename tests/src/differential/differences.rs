//! What Portolan deliberately does otherwise than kube-proxy: the list, and how a disagreement is recognised as
//! one of it.
//!
//! `differences.yaml` is for people: a name, what each of the two does, and why. Here each name has its *view*: the
//! change to a cluster after which the documentation says of it what kube-proxy does. A disagreement is deliberate
//! only if Portolan did what the reference model expects of the cluster, and kube-proxy what it expects of the
//! cluster so seen, down to backends and source addresses. Invariant: list and views have the same names.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Disagreement;
use super::fates::are_as_expected;
use crate::cluster::{Cluster, Node};
use crate::field::Field;
use crate::oracle::outcome;

/// An entry of the list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// What kube-proxy does.
    pub kube_proxy: String,
    /// What Portolan does.
    pub portolan: String,
    /// Why.
    pub reason: String,
}

/// Makes of a cluster what kube-proxy sees in it.
type View = fn(&mut Cluster);

const VIEWS: &[(&str, View)] = &[
    ("the-headless-label-on-a-service", |cluster| {
        for service in &mut cluster.services {
            service.labels.retain(|(key, _)| key != HEADLESS);
        }
    }),
    ("the-proxy-name-label-on-a-slice", |cluster| {
        for slice in &mut cluster.slices {
            slice.labels.retain(|(key, _)| key != PROXY_NAME);
        }
    }),
];

const HEADLESS: &str = "service.kubernetes.io/headless";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The list as it is written.
pub fn list() -> Result<Vec<Difference>> {
    serde_saphyr::from_str(include_str!("../../differences.yaml")).context("differences.yaml")
}

/// The cluster with all deliberate differences in it.
pub(super) fn as_kube_proxy_sees(cluster: &Cluster) -> Cluster {
    let mut seen = cluster.clone();
    VIEWS.iter().for_each(|(_, view)| view(&mut seen));
    seen
}

/// The names of the deliberate differences that this is made of; none if it is something else.
pub(super) fn deliberate(
    field: &Field,
    cluster: &Cluster,
    node: &Node,
    disagreement: &Disagreement,
) -> Vec<&'static str> {
    let packet = &disagreement.packet;
    let expected = outcome(cluster, node, packet);
    let mut seen = cluster.clone();
    let mut names = Vec::new();
    for (name, view) in VIEWS {
        let before = outcome(&seen, node, packet);
        view(&mut seen);
        if outcome(&seen, node, packet) != before {
            names.push(*name);
        }
    }
    let theirs = outcome(&seen, node, packet);
    let explained = are_as_expected(field, node, packet, &expected, &disagreement.portolan)
        && are_as_expected(field, node, packet, &theirs, &disagreement.kube_proxy);
    if explained { names } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_in_the_list_has_its_view_and_none_has_one_besides() -> Result<()> {
        let list = list()?;
        let mut listed: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        let mut known: Vec<&str> = VIEWS.iter().map(|(name, _)| *name).collect();
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
