//! What Portolan deliberately does otherwise than kube-proxy: the list, and how a disagreement is recognised as
//! one of it.
//!
//! `differences.yaml` is for people: a name, what each of the two does, and why. Here each name has its predicate,
//! as narrow as can be, so that a mistake cannot hide behind it. Invariant: both have the same names.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Disagreement;
use crate::cluster::{Cluster, Node};

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

type Predicate = fn(&Cluster, &Node, &Disagreement) -> bool;

/// How each is recognised.
const PREDICATES: &[(&str, Predicate)] = &[];

/// The list as it is written.
pub fn list() -> Result<Vec<Difference>> {
    serde_saphyr::from_str(include_str!("../../differences.yaml")).context("differences.yaml")
}

/// The name of the deliberate difference that this is, if it is one.
pub(super) fn deliberate(
    cluster: &Cluster,
    node: &Node,
    disagreement: &Disagreement,
) -> Option<&'static str> {
    PREDICATES
        .iter()
        .find(|(_, is_it)| is_it(cluster, node, disagreement))
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_in_the_list_is_recognised_and_none_besides() -> Result<()> {
        let list = list()?;
        let mut listed: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        let mut known: Vec<&str> = PREDICATES.iter().map(|(name, _)| *name).collect();
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
