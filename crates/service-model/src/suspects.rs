//! Nodes that seem to be down while EndpointSlices still call their endpoints ready.
//!
//! Whoever measures nodes publishes the suspects as a whole ([`crate::Index::set_suspects`]); [`mod@crate::select`] decides
//! what follows.

use std::collections::BTreeSet;
use std::sync::Arc;

/// The names of suspect nodes. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects(Arc<BTreeSet<Arc<str>>>);

impl Suspects {
    /// Exactly these nodes.
    pub fn new(nodes: impl IntoIterator<Item = Arc<str>>) -> Self {
        Suspects(Arc::new(nodes.into_iter().collect()))
    }

    /// Whether the node of this name is a suspect.
    pub fn has(&self, node: &str) -> bool {
        self.0.contains(node)
    }

    /// Whether each of these is one of the others.
    pub fn are_among(&self, others: &Suspects) -> bool {
        self.0.is_subset(&others.0)
    }

    /// The nodes that are suspects in only one of both.
    pub(crate) fn difference<'a>(&'a self, other: &'a Suspects) -> BTreeSet<&'a str> {
        let names = self.0.symmetric_difference(&other.0);
        names.map(|name| &**name).collect()
    }
}
