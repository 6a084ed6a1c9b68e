//! The table: a constant number of sets, chains and rules, whatever the size of the cluster.
//!
//! Owns names, declarations, comments and rules. [`crate::render`] says which elements a Service has.
//!
//! Four laws of the kernel shape it (nf_tables_api.c; measured on Linux 6.18): each element message walks every
//! set of the table; each commit walks every chain of the namespace; adding a verdict element re-validates its
//! whole map; and a rule that looks up a map walks all of that map when it is added, once for each chain
//! (`nf_tables_bind_set`: 34 ms at 100,000 elements). So the number of sets and chains is constant, bulk goes into
//! data maps and plain sets, and no rule is ever bound to a big map that has its elements. There are two exceptions,
//! each a [`DynamicPart`]: a *number* of endpoints above [`Pick::exact_counts`] that is in use has a map and a `pick` chain of
//! its own, reached by a verdict map whose size is the number of such frontends; and a Service with session affinity has a
//! map of its own, so that its clients cannot end the affinity of others, reached by two verdict maps whose size is the number
//! of Service ports with affinity. (The sets for counting exist only while a Service requests it.)

mod pick;
mod picking;
mod rules;
mod sets;
mod statements;

use std::collections::BTreeMap;

use ipnet::IpNet;
use nft::{Bytes, Chain, Data, Element, Family, Set, Table, TableContents, Verdict};
use service_model::NodeFacts;

pub use pick::Pick;
pub use sets::SetId;

/// Name of our table in both families.
pub const TABLE: &str = "portolan";

/// A part of the table that exists only while a frontend needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DynamicPart {
    /// The map and chain of frontends with this number of endpoints.
    Count(Pick, u32),
    /// The map of a Service's affinity entries, and the chain that reads it.
    AffinityMap(u64),
    /// The chain that writes entries of a map with this time-out, in seconds.
    AffinityWriter(u64, u32),
    /// An affinity group: leads to the chains of its Service.
    AffinityGroup {
        /// The group.
        group: u32,
        /// The Service's map.
        map: u64,
        /// Time-out of entries.
        seconds: u32,
    },
    /// The sets and rules that count new connections.
    Counting,
}

impl DynamicPart {
    /// Its sets and maps.
    pub fn sets(self) -> Vec<Set> {
        match self {
            DynamicPart::Count(pick, count) => vec![pick.backends(count).declaration()],
            DynamicPart::AffinityMap(map) => vec![SetId::Affinity(map).declaration()],
            DynamicPart::AffinityWriter(..) | DynamicPart::AffinityGroup { .. } => Vec::new(),
            DynamicPart::Counting => vec![
                SetId::Counted.declaration(),
                SetId::CountedNodePorts.declaration(),
            ],
        }
    }

    /// Its chain, if it has one.
    pub fn chain(self) -> Option<Chain> {
        match self {
            DynamicPart::Count(pick, count) => Some(pick.chain(count)),
            DynamicPart::AffinityMap(map) => Some(rules::affinity_reader(map)),
            DynamicPart::AffinityWriter(map, seconds) => Some(rules::affinity_writer(map, seconds)),
            DynamicPart::AffinityGroup { .. } | DynamicPart::Counting => None,
        }
    }

    /// Its elements in sets that are always there.
    pub fn elements(self) -> Vec<(SetId, Element)> {
        let DynamicPart::AffinityGroup {
            group,
            map,
            seconds,
        } = self
        else {
            return Vec::new();
        };
        let leads = |set, verdict| {
            let mut element = Element::member(Bytes::new().group(group));
            element.data = Data::Verdict(verdict);
            (set, element)
        };
        let reader = Verdict::Goto(rules::affinity_reader_name(map));
        let writer = Verdict::Jump(rules::affinity_writer_name(map, seconds));
        vec![
            leads(SetId::AffinityReaders, reader),
            leads(SetId::AffinityWriters, writer),
        ]
    }
}

/// The chains of the constant part whose rules depend on the dynamic parts: affinity and counting.
pub(crate) fn dependent_chains<'a>(parts: impl Iterator<Item = &'a DynamicPart>) -> Vec<Chain> {
    let (mut has_affinity, mut counts) = (false, false);
    for part in parts {
        match part {
            DynamicPart::AffinityGroup { .. } => has_affinity = true,
            DynamicPart::Counting => counts = true,
            DynamicPart::Count(..)
            | DynamicPart::AffinityMap(_)
            | DynamicPart::AffinityWriter(..) => {}
        }
    }
    let mut chains = vec![rules::remembering(has_affinity)];
    chains.extend(rules::counting(counts));
    chains
}

/// The table of `family` without Services: sets, chains, rules, and the elements that follow from `facts`.
pub fn base(family: Family, facts: &NodeFacts) -> TableContents {
    let comment =
        "Portolan: the Services of this node. Kept by its daemon, which repairs foreign changes";
    let node_addresses: Vec<Element> = facts
        .node_addresses
        .iter()
        .filter(|address| Family::of(**address) == family)
        .map(|address| Element::member(Bytes::new().address(*address)))
        .collect();
    let local_sources = ranges(family, &facts.local_sources);
    let service_cidrs = ranges(family, &facts.service_cidrs);
    let mut chains: Vec<Chain> = Pick::ALL
        .into_iter()
        .flat_map(|pick| (1..=pick.exact_counts()).map(move |count| pick.chain(count)))
        .collect();
    chains.extend(rules::chains(
        facts,
        !local_sources.is_empty(),
        !service_cidrs.is_empty(),
    ));
    chains.extend(dependent_chains(std::iter::empty()));
    let mut elements = BTreeMap::new();
    for (set, members) in [
        (SetId::NodeAddresses, node_addresses),
        (SetId::LocalSources, local_sources),
        (SetId::ServiceCidrs, service_cidrs),
    ] {
        if !members.is_empty() {
            elements.insert(set.name(), members);
        }
    }
    TableContents {
        table: Table {
            family,
            name: TABLE.into(),
            comment: comment.into(),
        },
        sets: SetId::all()
            .map(|set| (set.name(), set.declaration()))
            .collect(),
        chains: chains
            .into_iter()
            .map(|chain| (chain.name.clone(), chain))
            .collect(),
        elements,
    }
}

/// The ranges of a family as elements, sorted and disjoint.
fn ranges(family: Family, ranges: &[IpNet]) -> Vec<Element> {
    let ranges = ranges
        .iter()
        .filter(|net| Family::of(net.network()) == family);
    let ranges: Vec<IpNet> = ranges.copied().collect();
    let mut ranges = IpNet::aggregate(&ranges);
    ranges.sort_unstable();
    ranges
        .iter()
        .map(|net| {
            let (first, last) = (net.network(), net.broadcast());
            Element::range(Bytes::new().address(first), Bytes::new().address(last))
        })
        .collect()
}
