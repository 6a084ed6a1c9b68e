//! What rules remember of clients and their endpoints, and what of it has to go.
//!
//! The map of [`SetId::Affinity`](crate::layout::SetId::Affinity) is written by the packets' way through the kernel and
//! outlives this process; it is no part of the desired state. All that is done about it here: an entry that leads to an
//! endpoint its group has no more is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nft::{Data, Element, Family};

/// Groups of which entries may lead to endpoints that are no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubtful {
    /// All there are.
    Any,
    /// These.
    Only(BTreeSet<(Family, u32)>),
}

impl Default for Doubtful {
    fn default() -> Self {
        Doubtful::Only(BTreeSet::new())
    }
}

impl Doubtful {
    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = (Family, u32)>) {
        match self {
            Doubtful::Any => {}
            Doubtful::Only(groups) => groups.extend(more),
        }
    }

    pub(crate) fn concerns(&self, family: Family, group: u32) -> bool {
        match self {
            Doubtful::Any => true,
            Doubtful::Only(groups) => groups.contains(&(family, group)),
        }
    }

    /// Families whose entries have to be looked at.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        Family::ALL.into_iter().filter(|family| match self {
            Doubtful::Any => true,
            Doubtful::Only(groups) => groups.iter().any(|(of, _)| of == family),
        })
    }
}

/// The entries of groups that `concerns` is true of, whose endpoint is none of the group's. What cannot be read is not
/// ours.
pub(crate) fn stale(
    family: Family,
    learned: Vec<Element>,
    concerns: impl Fn(u32) -> bool,
    endpoints: impl Fn(u32) -> BTreeSet<(IpAddr, u16)>,
) -> Vec<Element> {
    let mut known: BTreeMap<u32, BTreeSet<(IpAddr, u16)>> = BTreeMap::new();
    let mut is_stale = |element: &Element| {
        let read = read(family, element).filter(|(group, _)| concerns(*group));
        let Some((group, endpoint)) = read else {
            return false;
        };
        let endpoints = known.entry(group).or_insert_with(|| endpoints(group));
        !endpoints.contains(&endpoint)
    };
    learned
        .into_iter()
        .filter(|element| is_stale(element))
        .collect()
}

/// Client . protocol . group : endpoint address . port.
fn read(family: Family, element: &Element) -> Option<(u32, (IpAddr, u16))> {
    let width = family.address_len();
    let Data::Value(value) = &element.data else {
        return None;
    };
    let group = element.key.number_at(width + 4)?;
    let endpoint = (value.address_at(0, family)?, value.port_at(width)?);
    Some((group, endpoint))
}
