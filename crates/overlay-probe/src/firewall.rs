//! Finds the rule of this node that drops a packet, and the chains that drop forwarded pod packets.
//!
//! The rule comes from a kernel trace of packets that flow meanwhile; nothing is guessed from the text of rules. Legacy
//! iptables cannot be traced, so its tables are listed. Names of foreign tables are only printed for people.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use net_types::Family;
use netfilter::{BaseChain, Ending, ForeignRuleset};
use nft::AnyFamily;
use nft::trace::{Decider, Decision, Step, Tracer};
use vxlan_overlay::Plan;

use crate::forwarding::Forwarding;
use crate::{LegacyIptables, result_of};

/// Packets that a rule of this node may drop: sent from here, or arriving here.
pub(super) use nft::trace::Packets as Suspect;

/// Steps to remember, to find the hook of the chain that dropped a packet.
const REMEMBERED: usize = 1024;

/// The rule that dropped a packet, or the policy of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocker {
    /// Family of the table.
    family: AnyFamily,
    table: String,
    chain: String,
    /// Handle of the rule; `None` where the policy of the chain did it.
    rule: Option<u64>,
    /// The hook by which the packet came there, by nft's keyword; `None` where the chain is gone by now.
    hook: Option<&'static str>,
    /// Whether the packet was queued to a program that did not accept it.
    queued: bool,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocker { family, .. } = self;
        let (table, chain) = (Escaped(&self.table), Escaped(&self.chain));
        write!(f, "table {family} {table}, chain {chain}, ")?;
        match self.rule {
            Some(handle) => write!(f, "rule handle {handle}")?,
            None => f.write_str("its policy")?,
        }
        if let Some(hook) = self.hook {
            write!(f, ", on {hook}")?;
        }
        if self.queued {
            f.write_str(", by queueing to a program")?;
        }
        if table.is_plain() && chain.is_plain() {
            write!(f, " (nft -a list chain {family} {table} {chain})")?;
        }
        Ok(())
    }
}

/// Traces packets like these for so long, while others make some flow, and says who dropped one. Blocks, until the
/// first is found or the time has passed.
///
/// What is not found was not dropped by a rule of nftables here (iptables in its nft variant included): see
/// [`untraceable`], and [`nft::trace`] for the other limits of traces.
///
/// Errors: before Linux 5.12, and without CAP_NET_ADMIN.
pub(super) fn who_drops(suspects: &[Suspect], within: Duration) -> Result<Option<Blocker>> {
    let mut tracer =
        Tracer::start(suspects).context("tracing packets through the rules (Linux 5.12)")?;
    let end = Instant::now() + within;
    let mut steps: VecDeque<Step> = VecDeque::new();
    let mut queued = None;
    while let Some(step) = tracer.wait(end.saturating_duration_since(Instant::now()))? {
        match step.decision {
            Decision::Drop => return blocker(step, &steps, false).map(Some),
            Decision::Queue => queued = Some(step.clone()),
            Decision::Accept | Decision::Continue => {
                // A program has accepted the packet.
                let goes_on = |waiting: &Step| waiting.packet == step.packet;
                queued = queued.filter(|waiting| !goes_on(waiting));
            }
        }
        if steps.len() == REMEMBERED {
            steps.pop_front();
        }
        steps.push_back(step);
    }
    queued.map(|step| blocker(step, &steps, true)).transpose()
}

fn blocker(step: Step, before: &VecDeque<Step>, queued: bool) -> Result<Blocker> {
    let chains = ForeignRuleset::open()?.base_chains()?;
    let base = |of: &Step| {
        chains.iter().find(|chain| {
            (chain.family, &chain.table, &chain.name) == (of.family, &of.table, &of.chain)
        })
    };
    let same = |other: &&Step| {
        (other.packet, other.family, &other.table) == (step.packet, step.family, &step.table)
    };
    // A chain that was jumped to comes after the rule that jumps.
    let way = std::iter::once(&step).chain(before.iter().rev().filter(same));
    let hook = way.filter_map(base).find_map(BaseChain::hook_keyword);
    let rule = match step.decider {
        Decider::Rule(handle) => Some(handle),
        Decider::Policy | Decider::Return => None,
    };
    Ok(Blocker {
        family: step.family,
        table: step.table,
        chain: step.chain,
        rule,
        hook,
        queued,
    })
}

/// Names the rules of this node that cannot be traced, if there are any.
pub(super) fn untraceable(legacy: LegacyIptables) -> Option<String> {
    let tables = (legacy.tables)();
    (!tables.is_empty()).then(|| {
        format!(
            "rules of legacy iptables cannot be traced: {}",
            tables.join(", ")
        )
    })
}

/// Describes the forward chains that drop or reject pods' packets, of these families: as faults those that no packet passes, as
/// notes those where a rule has to accept them first.
///
/// # Errors
/// The ruleset cannot be read (CAP_NET_ADMIN).
pub fn forward_chains(legacy: LegacyIptables, families: &[Family]) -> Result<Forwarding> {
    let mut ruleset = ForeignRuleset::open()?;
    let mut found = Forwarding::default();
    let tables: Vec<AnyFamily> = [AnyFamily::INET]
        .into_iter()
        .chain(families.iter().map(|family| match family {
            Family::Ip => AnyFamily::IP,
            Family::Ip6 => AnyFamily::IP6,
        }))
        .collect();
    for chain in ruleset.base_chains()? {
        if !tables.contains(&chain.family) || chain.hook_keyword() != Some("forward") {
            continue;
        }
        let (table, name) = (Escaped(&chain.table), Escaped(&chain.name));
        let who = format!("table {} {table}, chain {name}", chain.family);
        // A chain that changes meanwhile, or has a name that is not UTF-8, is judged by its policy alone.
        let by_policy = match chain.drops {
            true => Ending::Drops,
            false => Ending::Passes,
        };
        match ruleset.ending(&chain).unwrap_or(by_policy) {
            Ending::Passes => {}
            Ending::Drops => found.notes.push(needs_a_rule(&who)),
            Ending::DropsAll => found.faults.push(format!(
                "{who} on forward lets no packet pass, so pods reach no other nodes: add a rule that accepts their packets"
            )),
        }
    }
    let programs = (legacy.dropping_forwarders)().into_iter();
    let of_legacy = programs.map(|program| needs_a_rule(&format!("{program}, chain FORWARD")));
    found.notes.extend(of_legacy);
    Ok(found)
}

fn needs_a_rule(who: &str) -> String {
    format!("{who} drops by default: pods' packets need a rule there that accepts them")
}

/// What forward chains do to the packets of pods; nothing where the ruleset cannot be read.
pub(super) async fn examine(legacy: LegacyIptables, plan: &Plan) -> Forwarding {
    let tunnels = plan.tunnels.iter();
    let families = tunnels.filter_map(|(family, tunnel)| tunnel.as_ref().map(|_| family));
    let families: Vec<Family> = families.collect();
    let read = tokio::task::spawn_blocking(move || forward_chains(legacy, &families));
    let read = result_of(read.await).unwrap_or_else(|| Ok(Forwarding::default()));
    read.unwrap_or_else(|error| {
        tracing::debug!(error = format!("{error:#}"), "cannot read chains");
        Forwarding::default()
    })
}

/// A foreign name for people to read: characters that cannot be printed are escaped.
struct Escaped<'a>(&'a str);

impl Escaped<'_> {
    /// Whether it can be pasted into a shell unquoted.
    fn is_plain(&self) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        !self.0.is_empty() && !self.0.starts_with('-') && self.0.bytes().all(plain)
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_plain() {
            true => f.write_str(self.0),
            false => write!(f, "\"{}\"", self.0.escape_default()),
        }
    }
}

#[cfg(test)]
mod tests;
