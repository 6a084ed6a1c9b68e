//! What rules remember of clients and their endpoints, and what of it has to go.
//!
//! The map of [`SetId::Affinity`] is written by the packets' way through the kernel and outlives this process; it is no
//! part of the desired state. All that is done about it: an entry that leads to an endpoint its group has no more is
//! deleted. The map may be big and can only be read whole, so that is not done by whoever commits: a commit leads to an
//! [`AffinityCheck`], somebody else reads the map and finds what is stale, and [`crate::Dataplane::forget`] deletes it,
//! as far as it still is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nft::{Data, Element, Family, Name};

use crate::layout::SetId;

/// Address and port of an endpoint.
type Endpoint = (IpAddr, u16);

/// The name of the map.
pub fn map() -> Name {
    SetId::Affinity.name()
}

/// Groups of which entries may lead to endpoints that are no more, and the endpoints that they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AffinityCheck {
    pub(crate) groups: BTreeMap<(Family, u32), BTreeSet<Endpoint>>,
    /// Groups that are not listed have no endpoints at all. Otherwise nothing is known of them.
    pub(crate) all: bool,
}

impl AffinityCheck {
    /// Whether nothing needs to be read.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && !self.all
    }

    /// Adds what a later commit calls for.
    pub fn add(&mut self, later: AffinityCheck) {
        match later.all {
            true => *self = later,
            false => self.groups.extend(later.groups),
        }
    }

    /// Families whose map has to be read.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        let concerned = |family: &Family| self.groups.keys().any(|(of, _)| of == family);
        Family::ALL
            .into_iter()
            .filter(move |family| self.all || concerned(family))
    }

    /// The entries, as [`nft::Backend::learned`] reads them, that lead to an endpoint their group has not. What cannot
    /// be understood is not ours.
    pub fn stale(&self, family: Family, learned: Vec<Element>) -> Vec<Element> {
        let is_stale = |element: &Element| {
            read(family, element).is_some_and(|(group, endpoint)| {
                match self.groups.get(&(family, group)) {
                    Some(endpoints) => !endpoints.contains(&endpoint),
                    None => self.all,
                }
            })
        };
        learned.into_iter().filter(is_stale).collect()
    }
}

/// Client . protocol . group : endpoint address . port.
pub(crate) fn read(family: Family, element: &Element) -> Option<(u32, Endpoint)> {
    let width = family.address_len();
    let Data::Value(value) = &element.data else {
        return None;
    };
    let group = element.key.number_at(width + 4)?;
    let endpoint = (value.address_at(0, family)?, value.port_at(width)?);
    Some((group, endpoint))
}
