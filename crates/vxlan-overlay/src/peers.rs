//! The nodes of the cluster as received so far, and the guard against truncated lists.
//!
//! A list that lost most of its nodes since the last one (a cache that was served empty, a folder that is being
//! replaced) would tear the network of every pod apart if it were believed. Such nodes are held: they stay peers until
//! they are deleted by name, come back, or have been away for [`HOLD`]. In a conflict they yield to every node that is
//! listed: machines that were replaced under new names may have their addresses and pod CIDRs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::annotations::{Annotations, Names, ParsedAnnotations};

/// So many addresses of a Node count, the public one included: a kubelet may write any number into its status, and
/// each costs every other node elements of sets.
pub const MAX_ADDRESSES: usize = 8;
/// How long nodes are held that a truncated list lacks.
pub const HOLD: Duration = Duration::from_secs(600);
/// How long a node may send from an address that it no longer has: it keeps the old one for a second after its Node has the new
/// one, and the Node reaches every node by its own way.
const GRACE: Duration = Duration::from_secs(5);
/// A list may lack up to this many Nodes without any being held, whatever their share.
const ALWAYS_BELIEVED: usize = 2;

/// Inline space for one value of each family: thousands of nodes lie in one allocation.
pub type Both<T> = SmallVec<[T; 2]>;

/// What is needed of a Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: Option<i64>,
    /// `spec.podCIDRs`, or `podCIDR`.
    pub pod_cidrs: Both<IpNet>,
    /// `status.addresses` of type InternalIP, then ExternalIP.
    pub addresses: Both<IpAddr>,
    /// Addresses that it had until a few seconds ago, and may still send from.
    pub former: Both<IpAddr>,
    /// What its annotations state about its VTEPs.
    pub parsed: ParsedAnnotations,
    /// Its keys for encryption, as text that is decoded by whoever encrypts.
    pub encryption: Option<Box<str>>,
    /// It says that it probes its peers.
    pub probes: bool,
    /// The annotations themselves; [`Peers`] keeps those of this node only, for texts take more room than all the rest.
    pub annotations: Arc<Annotations>,
    /// The latest list lacks it, and [`Peers`] holds it.
    pub held: bool,
    /// Its kubelet has not been heard of for long.
    pub stale: bool,
}

impl Node {
    /// A node whose annotations have these names and are about this VNI. Of what it is made from it
    /// shares these and the name.
    pub fn new(
        (name, created): (Arc<str>, Option<i64>),
        pod_cidrs: &[IpNet],
        addresses: &[IpAddr],
        annotations: Arc<Annotations>,
        (names, vni): (&Names, u32),
    ) -> Node {
        Node {
            name,
            created,
            pod_cidrs: pod_cidrs.into(),
            addresses: addresses.into(),
            former: Both::default(),
            parsed: names.read(&annotations, vni),
            encryption: names.encryption(&annotations).map(Box::from),
            probes: names.probes(&annotations),
            annotations,
            held: false,
            stale: false,
        }
    }

    /// What settles conflicts between nodes: the lesser one keeps what both claim. A held one yields to all others, a stale
    /// one to all that are neither, and an unknown age is the youngest.
    pub(crate) fn seniority(&self) -> (bool, bool, i64, &str) {
        (
            self.held,
            self.stale,
            self.created.unwrap_or(i64::MAX),
            &self.name,
        )
    }

    /// All addresses that the Node states.
    fn stated(&self) -> impl Iterator<Item = IpAddr> {
        let vteps = match &self.parsed {
            ParsedAnnotations::Vteps(vteps) => vteps.values().flatten().copied().collect(),
            _ => Vec::new(),
        };
        let public = vteps.into_iter().map(|vtep| vtep.public_ip);
        public.chain(self.addresses.iter().copied())
    }

    /// Addresses that `before` had and this does not, those of late first.
    fn former(&self, before: &Node) -> Both<IpAddr> {
        let now: Vec<IpAddr> = self.stated().collect();
        let mut former = Both::default();
        for address in before.stated().chain(before.former.iter().copied()) {
            if former.len() < MAX_ADDRESSES && !now.contains(&address) && !former.contains(&address)
            {
                former.push(address);
            }
        }
        former
    }

    fn has_vteps(&self) -> bool {
        matches!(self.parsed, ParsedAnnotations::Vteps(_))
    }
}

/// All nodes, this one included.
///
/// Annotations that stopped making sense (another backend's for a moment, which is how a node makes flannel peers
/// read it anew; a mark that was removed) do not take the place of those that did.
#[derive(Debug)]
pub struct Peers {
    own: Arc<str>,
    no_annotations: Arc<Annotations>,
    /// What the Node of this node has at present, sense or not: what has to be written follows from it.
    own_annotations: Arc<Annotations>,
    /// Sorted by name.
    nodes: Vec<Node>,
    held: BTreeMap<Arc<str>, Instant>,
    /// Nodes with former addresses: these, and since when.
    moved: BTreeMap<Arc<str>, (Both<IpAddr>, Instant)>,
    listed: bool,
}

impl Peers {
    /// None yet; this node has the name `own`.
    pub fn new(own: Arc<str>) -> Peers {
        Peers {
            own,
            no_annotations: Arc::default(),
            own_annotations: Arc::default(),
            nodes: Vec::new(),
            held: BTreeMap::new(),
            moved: BTreeMap::new(),
            listed: false,
        }
    }

    /// A node is there, or has changed. Whether anything has.
    pub fn apply(&mut self, node: Node) -> bool {
        let was_held = self.held.remove(&node.name).is_some();
        let rewritten = self.note_own(&node);
        let place = self.place(&node.name);
        let known = place.ok().and_then(|place| self.nodes.get(place));
        let node = self.after(known, node);
        if known == Some(&node) {
            return was_held || rewritten;
        }
        if let Ok(place) = place {
            self.nodes.remove(place);
        }
        let (Ok(place) | Err(place)) = place;
        self.nodes.insert(place, node);
        true
    }

    /// Whether the annotations of this node's Node have changed.
    fn note_own(&mut self, node: &Node) -> bool {
        let changed = node.name == self.own && node.annotations != self.own_annotations;
        if changed {
            self.own_annotations = node.annotations.clone();
        }
        changed
    }

    /// The annotations that this node's Node has at present.
    pub fn own_annotations(&self) -> &Annotations {
        &self.own_annotations
    }

    /// What is remembered of a node that was `known` as it was before.
    fn after(&self, known: Option<&Node>, mut node: Node) -> Node {
        if let Some(known) = known
            && known.has_vteps()
            && !node.has_vteps()
        {
            node.parsed = known.parsed.clone();
            node.annotations = known.annotations.clone();
        }
        if let Some(known) = known.filter(|_| node.name != self.own) {
            node.former = node.former(known);
        }
        if node.name != self.own {
            node.annotations = self.no_annotations.clone();
        }
        node
    }

    /// A node was deleted, by name.
    pub fn delete(&mut self, name: &str) -> bool {
        self.held.remove(name);
        let place = self.place(name);
        place.map(|place| self.nodes.remove(place)).is_ok()
    }

    /// A complete list. Nodes that it leaves out are gone, unless they are too many, or this node is one of them.
    pub fn reset(&mut self, nodes: impl Iterator<Item = Node>, now: Instant) {
        let mut new: Vec<Node> = Vec::with_capacity(self.nodes.len());
        let mut own_annotations = None;
        new.extend(nodes.map(|node| {
            if node.name == self.own {
                own_annotations = Some(node.annotations.clone());
            }
            self.after(self.get(&node.name), node)
        }));
        if let Some(annotations) = own_annotations {
            self.own_annotations = annotations;
        }
        new.sort_by(|a, b| a.name.cmp(&b.name));
        new.dedup_by(|a, b| a.name == b.name);
        let is_new = |name: &str| new.binary_search_by(|node| (*node.name).cmp(name)).is_ok();
        let gone = self.nodes.iter().filter(|node| !is_new(&node.name)).count();
        // Where as many came as went, the nodes were replaced.
        let is_short = new.len() < self.nodes.len();
        let implausible = !self.nodes.is_empty()
            && (is_short && gone > ALWAYS_BELIEVED.max(self.nodes.len() / 2)
                || !is_new(&self.own) && self.get(&self.own).is_some());
        self.held.retain(|name, _| implausible && !is_new(name));
        if implausible {
            let mut kept = std::mem::take(&mut self.nodes);
            kept.retain(|node| !is_new(&node.name));
            for node in &mut kept {
                node.held = true;
                self.held.entry(node.name.clone()).or_insert(now);
            }
            new.extend(kept);
            new.sort_by(|a, b| a.name.cmp(&b.name));
        }
        // What thousands of Node objects consisted of is freed by now, but for their names. A name that stayed between the
        // places where the rest was would keep its page from being given back: at 5,000 nodes that was half of it all.
        let names: Vec<Arc<str>> = new.iter().map(|node| Arc::from(&*node.name)).collect();
        for (node, name) in new.iter_mut().zip(names) {
            node.name = name;
        }
        new.shrink_to_fit();
        self.nodes = new;
        self.listed = true;
    }

    /// Gives up those that were held for long enough, and former addresses. Whether there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let (held, nodes) = (&mut self.held, &mut self.nodes);
        let before = nodes.len();
        held.retain(|name, since| {
            let stays = now.saturating_duration_since(*since) < HOLD;
            if !stays {
                nodes.retain(|node| node.name != *name);
            }
            stays
        });
        let gave_up = nodes.len() != before;
        self.forget_former(now) || gave_up
    }

    /// Forgets former addresses after [`GRACE`]. Whether there were any to forget.
    fn forget_former(&mut self, now: Instant) -> bool {
        let (moved, mut forgot) = (std::mem::take(&mut self.moved), false);
        for node in self.nodes.iter_mut().filter(|node| !node.former.is_empty()) {
            let known = moved.get(&node.name).filter(|(of, _)| *of == node.former);
            let since = known.map_or(now, |(_, since)| *since);
            if now.saturating_duration_since(since) >= GRACE {
                node.former = Both::default();
                forgot = true;
            } else {
                let former = (node.former.clone(), since);
                self.moved.insert(node.name.clone(), former);
            }
        }
        forgot
    }

    /// When the next former address is to be forgotten, as of the last call of [`Peers::expire`].
    pub fn due(&self) -> Option<Instant> {
        let since = self.moved.values().map(|(_, since)| *since + GRACE);
        since.min()
    }

    /// Whether there has been a complete list: nothing is deleted from the kernel before.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> + Clone {
        self.nodes.iter()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.nodes.get(self.place(name).ok()?)
    }

    /// Where it is, or where it would be.
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| (*node.name).cmp(name))
    }

    /// Names of those that are held.
    pub fn held(&self) -> impl Iterator<Item = &Arc<str>> {
        self.held.keys()
    }
}

#[cfg(test)]
mod tests {
    use net_types::PerFamily;

    use super::*;

    fn node(name: &str) -> Node {
        Node {
            name: name.into(),
            created: None,
            pod_cidrs: Both::default(),
            addresses: Both::default(),
            former: Both::default(),
            parsed: ParsedAnnotations::Absent,
            encryption: None,
            probes: false,
            annotations: Arc::default(),
            held: false,
            stale: false,
        }
    }

    fn names(peers: &Peers) -> Vec<&str> {
        peers.nodes().map(|node| &*node.name).collect()
    }

    #[test]
    fn a_list_that_lacks_half_is_believed_one_that_lacks_more_not() {
        let all = ["a", "b", "c", "d", "e", "f"];
        for (listed, believed) in [(3, true), (2, false)] {
            let (mut peers, start) = (Peers::new("a".into()), Instant::now());
            peers.reset(all.into_iter().map(node), start);
            peers.reset(all.into_iter().take(listed).map(node), start);
            let left = if believed { listed } else { all.len() };
            assert_eq!(names(&peers), all[..left]);
        }
    }

    #[test]
    fn an_address_that_a_node_had_counts_for_a_while() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        let with = |address: &str| Node {
            addresses: Both::from_slice(&[address.parse().unwrap()]),
            ..node("b")
        };
        let former = |peers: &Peers| peers.get("b").unwrap().former.to_vec();
        let addresses = |all: [&str; 2]| all.map(|address| address.parse::<IpAddr>().unwrap());
        peers.reset([node("a"), with("192.0.2.1")].into_iter(), start);
        assert!(!peers.expire(start));
        peers.apply(with("192.0.2.2"));
        assert!(!peers.expire(start));
        assert_eq!(former(&peers), addresses(["192.0.2.1"; 2])[..1]);
        peers.apply(with("192.0.2.3"));
        let later = start + GRACE / 2;
        assert!(!peers.expire(later));
        assert_eq!(former(&peers), addresses(["192.0.2.2", "192.0.2.1"]));
        assert_eq!(peers.due(), Some(later + GRACE));
        assert!(!peers.expire(start + GRACE));
        assert!(peers.expire(later + GRACE));
        assert!(former(&peers).is_empty() && peers.due().is_none());
    }

    #[test]
    fn nodes_missing_from_a_truncated_list_are_held_for_a_while() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        let all = ["a", "b", "c", "d", "e", "f"];
        peers.reset(all.into_iter().map(node), start);
        peers.reset([node("a")].into_iter(), start);
        assert_eq!(names(&peers), all);
        assert_eq!(peers.held().count(), 5);
        assert!(peers.delete("b"));
        peers.apply(node("c"));
        assert!(!peers.expire(start + HOLD / 2));
        assert!(peers.expire(start + HOLD));
        assert_eq!(names(&peers), ["a", "c"]);
    }

    #[test]
    fn a_list_as_long_as_the_last_one_replaces_its_nodes() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        peers.reset(["a", "b", "c", "d", "e", "f"].into_iter().map(node), start);
        peers.reset(["a", "b", "w", "x", "y", "z"].into_iter().map(node), start);
        assert_eq!(names(&peers), ["a", "b", "w", "x", "y", "z"]);
        assert_eq!(peers.held().count(), 0);
    }

    #[test]
    fn held_nodes_yield_to_listed_ones_until_they_are_listed() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        peers.reset(["a", "b", "c", "d", "e", "f"].into_iter().map(node), start);
        peers.reset(["a", "z"].into_iter().map(node), start);
        let seniority = |peers: &Peers, name| peers.get(name).unwrap().seniority().0;
        assert!(seniority(&peers, "b") && !seniority(&peers, "z"));
        peers.apply(node("b"));
        assert!(!seniority(&peers, "b"));
    }

    #[test]
    fn own_annotations_are_known_as_they_are_planned_as_they_were() {
        let (names, mut peers) = (Names::default(), Peers::new("own".into()));
        let told = |annotations: Annotations| {
            let annotations = Arc::new(annotations);
            Node::new(("own".into(), None), &[], &[], annotations, (&names, 1))
        };
        let good = names.write(1, &PerFamily::default());
        assert!(peers.apply(told(good.clone())));
        assert!(!peers.apply(told(good.clone())));
        assert!(peers.apply(told(Annotations::new())), "something to write");
        assert!(peers.own_annotations().is_empty());
        assert_eq!(*peers.get("own").unwrap().annotations, good);
        assert!(peers.apply(told(good.clone())));
        assert_eq!(*peers.own_annotations(), good);
    }

    #[test]
    fn invalid_annotations_leave_the_last_valid_ones_in_force() {
        let (names, mut peers) = (Names::default(), Peers::new("own".into()));
        let told = |addresses: &[&str], annotations| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let annotations = Arc::new(annotations);
            Node::new(
                ("a".into(), None),
                &[],
                &addresses,
                annotations,
                (&names, 1),
            )
        };
        peers.apply(told(&[], names.write(1, &PerFamily::default())));
        peers.apply(told(&["192.0.2.1"], Annotations::new()));
        let kept = peers.get("a").unwrap();
        assert_eq!(kept.parsed, ParsedAnnotations::Vteps(PerFamily::default()));
        assert_eq!(kept.addresses.len(), 1);
        assert!(
            kept.annotations.is_empty(),
            "only this node's texts are kept"
        );
    }

    #[test]
    fn an_empty_list_and_one_without_this_node_are_not_believed() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        peers.reset(["a", "b"].into_iter().map(node), start);
        peers.reset(std::iter::empty(), start);
        assert_eq!(names(&peers), ["a", "b"]);
        peers.reset([node("b")].into_iter(), start);
        assert_eq!(names(&peers), ["a", "b"]);
    }

    #[test]
    fn nodes_that_leave_a_few_at_a_time_are_gone_at_once() {
        let (mut peers, start) = (Peers::new("a".into()), Instant::now());
        peers.reset(["a", "b", "c", "d"].into_iter().map(node), start);
        peers.reset(["a", "b"].into_iter().map(node), start);
        assert_eq!(names(&peers), ["a", "b"]);
        assert_eq!(peers.held().count(), 0);
    }
}
