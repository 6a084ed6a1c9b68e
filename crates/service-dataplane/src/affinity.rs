//! Which affinity entries are stale: those that lead to an endpoint that their group no longer has.
//!
//! Rules write the maps of [`SetId::Affinity`], one for each Service, as packets pass, and the maps outlive this process; they
//! are no part of the desired state. A map may be big and can only be read whole, so a commit does not read it: the commit
//! returns an [`AffinityCheck`], a thread of the caller reads the maps and finds stale entries, and
//! [`crate::Dataplane::forget`] deletes those that are still stale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nft::{Bytes, Data, Element, Family, Name, Protocol};

use crate::layout::SetId;

/// Address and port of an endpoint.
type Endpoint = (IpAddr, u16);

/// The name of a Service's map.
pub fn map(map: u64) -> Name {
    SetId::Affinity(map).name()
}

/// A group in the map of its Service.
pub(crate) type Group = (Family, u64, u32);

/// Affinity groups with entries that may lead to removed endpoints, and the endpoints that the groups have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AffinityCheck {
    /// By family, map and group.
    pub(crate) groups: BTreeMap<Group, BTreeSet<Endpoint>>,
    /// Whether groups that are not listed have no endpoints; otherwise their entries are not judged.
    pub(crate) all: bool,
}

impl AffinityCheck {
    /// Whether nothing needs to be read.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Adds the check of a later commit.
    pub fn add(&mut self, later: AffinityCheck) {
        match later.all {
            true => *self = later,
            false => self.groups.extend(later.groups),
        }
    }

    /// Families and maps that have to be read.
    pub fn maps(&self) -> BTreeSet<(Family, u64)> {
        let groups = self.groups.keys();
        groups.map(|(family, map, _)| (*family, *map)).collect()
    }

    /// The stale ones of the entries that [`nft::Backend::dynamic_elements`] has read from a map. An entry of another shape
    /// is ignored.
    pub fn stale(&self, family: Family, map: u64, entries: Vec<Element>) -> Vec<Element> {
        let is_stale = |element: &Element| {
            read(family, element).is_some_and(|(group, endpoint)| {
                match self.groups.get(&(family, map, group)) {
                    Some(endpoints) => !endpoints.contains(&endpoint),
                    None => self.all,
                }
            })
        };
        entries.into_iter().filter(is_stale).collect()
    }
}

/// The endpoint that a client keeps by these entries of its Service's map, if it has one.
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
