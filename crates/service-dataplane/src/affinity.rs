//! Which affinity entries are stale: those that lead to an endpoint that their group no longer has.
//!
//! Rules write the map of [`SetId::Affinity`] as packets pass, and the map outlives this process; it is no part of the
//! desired state. The map may be big and can only be read whole, so a commit does not read it: the commit returns an
//! [`AffinityCheck`], a thread of the caller reads the map and finds stale entries, and [`crate::Dataplane::forget`]
//! deletes those that are still stale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nft::{Bytes, Data, Element, Family, Name, Protocol};

use crate::layout::SetId;

/// Address and port of an endpoint.
type Endpoint = (IpAddr, u16);

/// The name of the map.
pub fn map() -> Name {
    SetId::Affinity.name()
}

/// Affinity groups with entries that may lead to removed endpoints, and the endpoints that the groups have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AffinityCheck {
    pub(crate) groups: BTreeMap<(Family, u32), BTreeSet<Endpoint>>,
    /// Whether groups that are not listed have no endpoints; otherwise their entries are not judged.
    pub(crate) all: bool,
}

impl AffinityCheck {
    /// Whether nothing needs to be read.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && !self.all
    }

    /// Adds the check of a later commit.
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

    /// The stale ones of the entries that [`nft::Backend::dynamic_elements`] has read. An entry of another shape is ignored.
    pub fn stale(&self, family: Family, entries: Vec<Element>) -> Vec<Element> {
        let is_stale = |element: &Element| {
            read(family, element).is_some_and(|(group, endpoint)| {
                match self.groups.get(&(family, group)) {
                    Some(endpoints) => !endpoints.contains(&endpoint),
                    None => self.all,
                }
            })
        };
        entries.into_iter().filter(is_stale).collect()
    }
}

/// The endpoint that a client keeps by these entries of the map, if it has one.
pub fn kept(
    family: Family,
    entries: &[Element],
    client: IpAddr,
    protocol: Protocol,
    group: u32,
) -> Option<SocketAddr> {
    let key = Bytes::new().address(client).protocol(protocol).group(group);
    let entry = entries.iter().find(|entry| entry.key == key)?;
    let (_, (address, port)) = read(family, entry)?;
    Some(SocketAddr::new(address, port))
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
