//! From a frontend to one of its endpoints: the chains that find the frontend's number of endpoints, and those that pick.

use nft::{Chain, Operand, Rule, Statement, Verdict};

use super::statements::{goto, in_set, jump};
use super::{Pick, SetId};

impl Pick {
    /// The chain that picks one of `count` backends. Its second rule catches a packet that meets a commit
    /// half way: rules are read under one generation, but each look-up reads the generation anew, so a
    /// packet may see the old count and the new elements. The first backend of every frontend is in the map that
    /// the chain for one looks up.
    pub fn chain(self, count: u32) -> Chain {
        let mut key = self.key();
        key.push(Operand::SymHash { modulus: count });
        let map = self.backends(count).name();
        let mut rules: Vec<Rule> = vec![vec![Statement::DnatMap { key, map }].into()];
        if count > 1 {
            rules.push(vec![Statement::Verdict(Verdict::Goto(self.chain_name(1)))].into());
        }
        Chain {
            name: self.chain_name(count),
            hook: None,
            comment: "One of as many endpoints as the name says, by a hash of the flow".into(),
            rules,
        }
    }

    /// From a frontend to the endpoint of its client's affinity entry, or through the sized sets to any endpoint. The
    /// `last` rules handle the rest.
    pub(super) fn dispatch(
        self,
        name: &'static str,
        comment: &'static str,
        last: Vec<Rule>,
    ) -> Chain {
        let sticky = match self.is_node_port() {
            true => SetId::StickyNodePorts,
            false => SetId::Sticky,
        };
        let keeps = Statement::SetPriority {
            key: self.key(),
            map: sticky.name(),
        };
        let count = match self.is_node_port() {
            true => jump("counting_nodeports"),
            false => jump("counting"),
        };
        let mut rules: Vec<Rule> = vec![vec![count].into(), vec![keeps, jump("sticky")].into()];
        rules.extend((1..=self.exact_counts()).map(|n| -> Rule {
            let pick = Statement::Verdict(Verdict::Goto(self.chain_name(n)));
            vec![in_set(self.key(), self.sized(n)), pick].into()
        }));
        let large = Statement::VerdictMap {
            key: self.key(),
            map: SetId::Large(self).name(),
        };
        rules.push(vec![large].into());
        let refused = match self {
            Pick::Frontend => Some(SetId::NoEndpoints),
            Pick::NodePort => Some(SetId::NodePortsNoEndpoints),
            Pick::LocalFrontend | Pick::LocalNodePort => None,
        };
        rules.extend(
            refused.map(|set| -> Rule { vec![in_set(self.key(), set), goto("refuse")].into() }),
        );
        // A packet that meets a commit half way may have missed every set.
        rules.push(vec![Statement::Verdict(Verdict::Jump(self.chain_name(1)))].into());
        rules.extend(last);
        Chain {
            name: name.into(),
            hook: None,
            comment: comment.into(),
            rules,
        }
    }
}
