//! What a client with session affinity meets: one endpoint, again and again, though not the same with both programs.
//!
//! Owns when the two agree on it: each keeps the client at one endpoint, that endpoint is one of those that the
//! Service port has for the packet, and the client meets it again by the Service port's other addresses.

use std::net::SocketAddr;

use super::differences::{SPLIT_AFFINITY, Theirs};
use super::fates::{are_as_expected, backend};
use super::{Agreement, Fate, Fates};
use crate::cluster::{Cluster, Node};
use crate::field::Field;
use crate::oracle::{
    Expected, Packet, are_to_one_port, has_affinity, has_split_affinity, outcome, outcome_after,
    outcome_after_by,
};

/// The packets of one cluster to Services with affinity, and where they went.
pub(super) struct Sessions<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) node: &'a Node,
    ours: Vec<(Packet, SocketAddr)>,
    theirs: Vec<(Packet, SocketAddr)>,
}

/// What the sender of a packet got, and perhaps which endpoint it will get again.
type Kept = Option<Option<SocketAddr>>;

impl<'a> Sessions<'a> {
    pub(super) fn new(cluster: &'a Cluster, node: &'a Node) -> Self {
        Sessions {
            cluster,
            node,
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }

    /// Whether a client may meet another endpoint with one program than with the other.
    pub(super) fn concern(&self, packet: &Packet, theirs: &Theirs) -> bool {
        let mut both = [self.cluster, &theirs.cluster].into_iter();
        both.any(|cluster| has_affinity(cluster, self.node, packet))
    }

    /// How the fates of a packet agree, if they do. Each side was asked several times.
    pub(super) fn agreement(
        &mut self,
        field: &Field,
        packet: &Packet,
        theirs: &Theirs,
        (their_fates, our_fates): (&Fates, &Fates),
    ) -> Option<Agreement> {
        let (cluster, node) = (self.cluster, self.node);
        let is_answer = |fate: &Fate| matches!(fate, Fate::Answered { .. });
        if their_fates == our_fates && !our_fates.iter().any(is_answer) {
            return Some(Agreement::Full);
        }
        let expected = outcome_after(cluster, node, &self.ours, packet);
        let our_endpoint = self.met(field, cluster, packet, &expected, our_fates)?;
        let their_endpoint = match theirs.expected.as_slice() {
            [expected] => {
                // What it learned in an earlier cluster may come to light when it looks through another list.
                let expected = match has_split_affinity(&theirs.cluster, node, packet) {
                    true => expected.clone(),
                    false => self.shared(&theirs.cluster, &self.theirs, packet),
                };
                self.met(field, &theirs.cluster, packet, &expected, their_fates)?
            }
            _ if theirs.explain(field, node, packet, their_fates) => None,
            _ => return None,
        };
        let plain = outcome(cluster, node, packet);
        let as_theirs = self.shared(cluster, &self.ours, packet);
        let split = self.met(field, cluster, packet, &as_theirs, our_fates);
        let same = self.met(field, cluster, packet, &plain, their_fates);
        self.ours.extend(our_endpoint.map(|to| (*packet, to)));
        self.theirs.extend(their_endpoint.map(|to| (*packet, to)));
        Some(match theirs.names.first() {
            Some(name) if same.is_none() => Agreement::But(name),
            _ if split.is_none() => Agreement::But(SPLIT_AFFINITY),
            _ => Agreement::Full,
        })
    }

    /// What is expected of kube-proxy, where a Service port's affinity holds for all ways to it.
    fn shared(
        &self,
        cluster: &Cluster,
        earlier: &[(Packet, SocketAddr)],
        packet: &Packet,
    ) -> Expected {
        outcome_after_by(cluster, self.node, earlier, packet, |before| {
            are_to_one_port(cluster, self.node, before, packet)
        })
    }

    /// `None` if it is not as expected.
    fn met(
        &self,
        field: &Field,
        cluster: &Cluster,
        packet: &Packet,
        expected: &Expected,
        fates: &Fates,
    ) -> Kept {
        let node = self.node;
        let is_choice = matches!(expected, Expected::Balanced(_));
        if is_choice && has_affinity(cluster, node, packet) {
            let [fate] = fates.iter().collect::<Vec<_>>()[..] else {
                return None;
            };
            return backend(field, node, packet, expected, fate).map(Some);
        }
        are_as_expected(field, node, packet, expected, fates).then_some(None)
    }
}
