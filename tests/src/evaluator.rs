//! What the kernel does with a packet, given one of our tables.
//!
//! Owns the way of a packet through the chains (nf_tables_core.c): calls of chains, NAT at prerouting or output, routing,
//! then postrouting with the connection after NAT. What one rule does is a [`Program`]: [`statements`] reads rules as
//! nft(8) documents them, and [`machine`] runs the expressions they are lowered to. The flow hash is unknown, so all 2^32
//! values count: every slot is tried, and each fate comes with the exact number of hash values that lead to it.
//!
//! Invariant: a rule that the kernel would refuse (unknown set or chain, NAT in the wrong hook, a key of another width) is
//! an error, never a guess.

mod flight;
mod machine;
mod members;
mod registers;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use nft::expr::Expr;
use nft::{Bytes, Data, Family, Hook, Name, Rule, TableContents, Verdict};
use rustc_hash::FxHashMap;

use self::flight::Flight;
use self::members::Members;
use crate::cluster::Node;
use crate::oracle::{Origin, Packet};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Sent on to another destination than the packet's own, or with another source.
    Translated {
        /// Destination address and port after NAT.
        to: SocketAddr,
        /// The source address is the node's.
        masqueraded: bool,
    },
    /// The sender got an ICMP port unreachable.
    Rejected,
    /// Dropped without an answer.
    Dropped,
    /// Sent on unchanged.
    Passed,
}

impl Fate {
    /// The destination after NAT, if the packet was translated.
    pub fn destination(&self) -> Option<SocketAddr> {
        match self {
            Fate::Translated { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// Elements that packets have written, by set and key.
pub type Memory = BTreeMap<(Name, Bytes), Bytes>;

/// What belongs to one fate of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// The number of hash values that lead to the fate.
    pub share: u64,
    /// Elements that packets have written, this one included.
    pub memory: Memory,
}

impl Default for Course {
    fn default() -> Self {
        Course {
            share: WHOLE,
            memory: Memory::new(),
        }
    }
}

/// The fates of a packet over all values of its flow hash.
pub type Fates = BTreeMap<Fate, Course>;

/// The number of all hash values.
pub const WHOLE: u64 = 1 << 32;

/// Depth of calls (include/net/netfilter/nf_tables.h: `NFT_JUMP_STACK_SIZE`).
const JUMP_STACK_SIZE: usize = 16;

/// A table made ready for packets, with rules of one form.
pub struct Evaluator<'a, R = &'a Rule> {
    sets: Sets<'a>,
    chains: FxHashMap<&'a str, Vec<R>>,
    hooks: Vec<(Hook, &'a str)>,
}

/// The sets of a table with their elements.
struct Sets<'a> {
    family: Family,
    members: FxHashMap<&'a str, Members<'a>>,
}

impl<'a> Sets<'a> {
    fn get(&self, set: &str) -> Result<&Members<'a>, String> {
        self.members.get(set).ok_or_else(|| format!("no set {set}"))
    }
}

/// A rule in some form.
trait Program {
    /// What the rule does with a packet at a hook. Moduli of hashes that it reads are added to `moduli`.
    fn run(
        &self,
        sets: &Sets<'_>,
        hook: Hook,
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Step, String>;

    /// The sets and chains that the rule names.
    fn references(&self) -> (Vec<&Name>, Vec<&Name>);
}

/// How a base chain ended.
enum End {
    Accepted,
    Dropped,
    Rejected,
}

/// How a rule ended.
enum Step {
    NextRule,
    Verdict(Verdict),
    End(End),
}

impl<'a> Evaluator<'a> {
    /// Reads a table by the meaning of its statements. Errors name what the kernel would refuse.
    pub fn new(contents: &'a TableContents) -> Result<Self, String> {
        Evaluator::of_rules(contents, |rule| rule)
    }
}

impl<'a> Evaluator<'a, Vec<Expr>> {
    /// Reads a table as what `lower` makes of its rules.
    pub fn lowered(
        contents: &'a TableContents,
        lower: impl Fn(&Rule, Family) -> Vec<Expr>,
    ) -> Result<Self, String> {
        Evaluator::of_rules(contents, |rule| lower(rule, contents.table.family))
    }
}

// The trait is private: these two forms are all.
#[allow(private_bounds)]
impl<'a, R: Program> Evaluator<'a, R> {
    fn of_rules(
        contents: &'a TableContents,
        program: impl Fn(&'a Rule) -> R,
    ) -> Result<Self, String> {
        let family = contents.table.family;
        let mut members = FxHashMap::default();
        for (name, set) in &contents.sets {
            let elements = contents
                .elements
                .get(name)
                .map(Vec::as_slice)
                .unwrap_or_default();
            members.insert(name.as_ref(), Members::new(set, family, elements)?);
        }
        let mut names = contents.elements.keys();
        if let Some(name) = names.find(|name| !contents.sets.contains_key(*name)) {
            return Err(format!("elements of {name}, which is no set"));
        }
        let chains = contents.chains.iter().map(|(name, chain)| {
            let rules = chain.rules.iter().map(&program).collect();
            (name.as_ref(), rules)
        });
        let hooks = contents
            .chains
            .iter()
            .filter_map(|(n, c)| Some((c.hook?, n.as_ref())));
        let evaluator = Evaluator {
            sets: Sets { family, members },
            chains: chains.collect(),
            hooks: hooks.collect(),
        };
        evaluator.check_references()?;
        Ok(evaluator)
    }

    /// What becomes of `packet` on `node` after packets that wrote `memory`.
    pub fn fates(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Fates, String> {
        let mut moduli = BTreeSet::new();
        let mut known: BTreeMap<u32, (Fate, Memory)> = BTreeMap::new();
        // Hashes in the same slot of every modulus have the same fate, so only the first hash of each slot is tried. A packet
        // may then reach rules with further moduli, whose slots are tried next.
        loop {
            let starts: BTreeSet<u32> = moduli
                .iter()
                .flat_map(|m| slot_starts(*m))
                .chain([0])
                .collect();
            let tried = moduli.len();
            for start in starts {
                if let Entry::Vacant(vacant) = known.entry(start) {
                    let mut flight = Flight::new(packet, node, memory, start);
                    let fate = self.fate(&mut flight, &mut moduli)?;
                    vacant.insert((fate, flight.memory));
                }
            }
            if moduli.len() == tried {
                break;
            }
        }
        let ends = known
            .keys()
            .skip(1)
            .map(|start| u64::from(*start))
            .chain([WHOLE])
            .collect::<Vec<_>>();
        let mut fates = Fates::new();
        for ((start, (fate, memory)), end) in known.into_iter().zip(ends) {
            let share = end - u64::from(start);
            match fates.entry(fate) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Course { share, memory });
                }
                Entry::Occupied(mut course) if course.get().memory == memory => {
                    course.get_mut().share += share;
                }
                Entry::Occupied(_) => {
                    return Err(format!("{fate:?} with different written elements"));
                }
            }
        }
        Ok(fates)
    }

    fn fate(&self, flight: &mut Flight<'_>, moduli: &mut BTreeSet<u32>) -> Result<Fate, String> {
        let first = match flight.origin {
            Origin::Node => Hook::NatOutput,
            Origin::Elsewhere => Hook::NatPrerouting,
        };
        if let Some(fate) = self.pass(first, flight, moduli)? {
            return Ok(fate);
        }
        // A received packet for the node itself is delivered, not sent out again.
        let last = match flight.origin == Origin::Elsewhere && flight.is_local(flight.destination) {
            true => Hook::NatInput,
            false => Hook::NatPostrouting,
        };
        if let Some(fate) = self.pass(last, flight, moduli)? {
            return Ok(fate);
        }
        Ok(match flight.is_dnat || flight.masqueraded {
            true => Fate::Translated {
                to: SocketAddr::new(flight.destination, flight.port),
                masqueraded: flight.masqueraded,
            },
            false => Fate::Passed,
        })
    }

    /// The packet's fate, if the chains at this hook end its way.
    fn pass(
        &self,
        hook: Hook,
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Option<Fate>, String> {
        for (_, chain) in self.hooks.iter().filter(|(at, _)| *at == hook) {
            match self.run(hook, chain, flight, moduli)? {
                End::Accepted => {}
                End::Dropped => return Ok(Some(Fate::Dropped)),
                End::Rejected => return Ok(Some(Fate::Rejected)),
            }
        }
        Ok(None)
    }

    /// Runs one base chain.
    fn run(
        &self,
        hook: Hook,
        chain: &str,
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<End, String> {
        let mut rules = self.rules(chain)?.iter();
        let mut callers = Vec::new();
        loop {
            let Some(rule) = rules.next() else {
                match callers.pop() {
                    Some(caller) => rules = caller,
                    None => return Ok(End::Accepted),
                }
                continue;
            };
            match rule.run(&self.sets, hook, flight, moduli)? {
                Step::NextRule => {}
                Step::End(end) => return Ok(end),
                Step::Verdict(Verdict::Accept) => return Ok(End::Accepted),
                Step::Verdict(Verdict::Drop) => return Ok(End::Dropped),
                Step::Verdict(Verdict::Return) => match callers.pop() {
                    Some(caller) => rules = caller,
                    None => return Ok(End::Accepted),
                },
                Step::Verdict(Verdict::Goto(to)) => rules = self.rules(&to)?.iter(),
                Step::Verdict(Verdict::Jump(to)) => {
                    callers.push(rules);
                    if callers.len() > JUMP_STACK_SIZE {
                        return Err(format!("jump to {to}: too deep"));
                    }
                    rules = self.rules(&to)?.iter();
                }
            }
        }
    }

    fn rules(&self, chain: &str) -> Result<&[R], String> {
        self.chains
            .get(chain)
            .map(Vec::as_slice)
            .ok_or_else(|| format!("no chain {chain}"))
    }

    /// All names that rules and elements refer to exist, whether a packet gets there or not.
    fn check_references(&self) -> Result<(), String> {
        let verdicts = self
            .sets
            .members
            .values()
            .flat_map(|set| set.elements.values());
        for data in verdicts {
            if let Data::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) = data {
                self.rules(to)?;
            }
        }
        for rule in self.chains.values().flatten() {
            let (sets, chains) = rule.references();
            sets.into_iter()
                .try_for_each(|set| self.sets.get(set).map(drop))?;
            chains
                .into_iter()
                .try_for_each(|chain| self.rules(chain).map(drop))?;
        }
        Ok(())
    }
}

fn allowed(condition: bool, otherwise: &str) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

/// The kernel's `reciprocal_scale`.
fn slot(hash: u32, modulus: u32) -> u32 {
    ((u64::from(hash) * u64::from(modulus)) >> 32) as u32
}

/// The least hash of every slot.
fn slot_starts(modulus: u32) -> impl Iterator<Item = u32> {
    let modulus = u64::from(modulus.max(1));
    (0..modulus).map(move |slot| ((slot << 32).div_ceil(modulus)) as u32)
}
