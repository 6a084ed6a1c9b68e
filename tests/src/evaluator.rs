//! What the kernel would do with a packet, given one of our tables.
//!
//! Owns an interpreter of [`nft::expr::Expr`] after the kernel's (nf_tables_core.c, nft_lookup.c,
//! nft_payload.c, nft_hash.c, nf_nat_core.c): sixteen 32-bit registers, a stack of calling chains, NAT at
//! prerouting or output, routing, then postrouting with the connection as NAT left it. The flow's hash is
//! not a number but the whole circle of 2^32 values: every slot is tried, and each outcome comes with its
//! exact share of the circle.
//!
//! Invariant: a rule the kernel would refuse (unknown set or chain, NAT in the wrong hook, key beyond the
//! registers) is an error, never a guess.

mod flight;
mod members;
mod registers;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use nft::expr::{Expr, LookupResult, Register, lower};
use nft::{Bytes, Data, DataField, Family, Hook, Name, SetKind, TableContents, Verdict};
use rustc_hash::FxHashMap;

use self::flight::Flight;
use self::members::Members;
use self::registers::Registers;
use crate::cluster::Node;
use crate::oracle::{Origin, Packet};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// On its way to `to`, which differs from where it was sent, or with another source.
    Translated {
        /// Destination address and port after NAT.
        to: SocketAddr,
        /// The source address is the node's.
        masqueraded: bool,
    },
    /// The sender got an ICMP port unreachable.
    Rejected,
    /// Gone without an answer.
    Dropped,
    /// Untouched.
    Passed,
}

impl Fate {
    /// Where it went, if it was translated.
    pub fn destination(&self) -> Option<SocketAddr> {
        match self {
            Fate::Translated { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// Elements that packets have written, by set and key.
pub type Memory = BTreeMap<(Name, Bytes), Bytes>;

/// How a packet met its fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// How much of the whole circle of hashes leads there.
    pub share: u64,
    /// What packets have written by then.
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

/// The whole circle of hash values.
pub const WHOLE: u64 = 1 << 32;

/// Depth of calls (include/net/netfilter/nf_tables.h: `NFT_JUMP_STACK_SIZE`).
const JUMP_STACK_SIZE: usize = 16;

/// A table made ready for packets.
pub struct Evaluator<'a> {
    family: Family,
    sets: FxHashMap<&'a str, Members<'a>>,
    chains: FxHashMap<&'a str, Vec<Vec<Expr>>>,
    hooks: Vec<(Hook, &'a str)>,
}

/// How a base chain ended.
enum End {
    Accepted,
    Dropped,
    Rejected,
}

/// How a rule ended.
enum Step<'a> {
    NextRule,
    Verdict(&'a Verdict),
    End(End),
}

impl<'a> Evaluator<'a> {
    /// Reads a table. Errors name what the kernel would refuse.
    pub fn new(contents: &'a TableContents) -> Result<Self, String> {
        let family = contents.table.family;
        let mut sets = FxHashMap::default();
        for (name, set) in &contents.sets {
            let elements = contents
                .elements
                .get(name)
                .map(Vec::as_slice)
                .unwrap_or_default();
            sets.insert(name.as_ref(), Members::new(set, family, elements)?);
        }
        if let Some(name) = contents
            .elements
            .keys()
            .find(|name| !contents.sets.contains_key(*name))
        {
            return Err(format!("elements of {name}, which is no set"));
        }
        let mut chains = FxHashMap::default();
        for (name, chain) in &contents.chains {
            let rules = chain.rules.iter().map(|rule| lower(rule, family)).collect();
            chains.insert(name.as_ref(), rules);
        }
        let hooks = contents
            .chains
            .iter()
            .filter_map(|(n, c)| Some((c.hook?, n.as_ref())));
        let evaluator = Evaluator {
            family,
            sets,
            chains,
            hooks: hooks.collect(),
        };
        evaluator.check_references()?;
        Ok(evaluator)
    }

    /// What becomes of `packet` on `node` after packets that wrote `memory`.
    pub fn fates(&self, packet: &Packet, node: &Node, memory: &Memory) -> Result<Fates, String> {
        let mut moduli = BTreeSet::new();
        let mut known: BTreeMap<u32, (Fate, Memory)> = BTreeMap::new();
        // Where slots of a modulus begin decides which hashes to try; trying may meet further moduli.
        loop {
            let starts: BTreeSet<u32> = moduli
                .iter()
                .flat_map(|m| slot_starts(*m))
                .chain([0])
                .collect();
            let met = moduli.len();
            for start in starts {
                if let Entry::Vacant(vacant) = known.entry(start) {
                    let mut flight = Flight::new(packet, node, memory, start);
                    let fate = self.fate(&mut flight, &mut moduli)?;
                    vacant.insert((fate, flight.memory));
                }
            }
            if moduli.len() == met {
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
                Entry::Occupied(_) => return Err(format!("{fate:?} is remembered in two ways")),
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
        // What was received and is for the node itself goes up, not out again.
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

    /// The packet's end, if it meets one at this hook.
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
            match self.run_rule(hook, rule, flight, moduli)? {
                Step::NextRule => {}
                Step::End(end) => return Ok(end),
                Step::Verdict(Verdict::Accept) => return Ok(End::Accepted),
                Step::Verdict(Verdict::Drop) => return Ok(End::Dropped),
                Step::Verdict(Verdict::Return) => match callers.pop() {
                    Some(caller) => rules = caller,
                    None => return Ok(End::Accepted),
                },
                Step::Verdict(Verdict::Goto(to)) => rules = self.rules(to)?.iter(),
                Step::Verdict(Verdict::Jump(to)) => {
                    callers.push(rules);
                    if callers.len() > JUMP_STACK_SIZE {
                        return Err(format!("jump to {to}: too deep"));
                    }
                    rules = self.rules(to)?.iter();
                }
            }
        }
    }

    fn run_rule<'r>(
        &'r self,
        hook: Hook,
        rule: &'r [Expr],
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Step<'r>, String> {
        let before_routing = matches!(hook, Hook::NatPrerouting | Hook::NatOutput);
        let mut registers = Registers::default();
        for expr in rule {
            match expr {
                Expr::SymHash { modulus, dreg } => {
                    moduli.insert(*modulus);
                    registers.store(*dreg, &slot(flight.hash, *modulus).to_ne_bytes())?;
                }
                Expr::Cmp { sreg, equal, data } => {
                    let held = registers.load(*sreg, data.as_slice().len())?;
                    if (held == data.as_slice()) != *equal {
                        return Ok(Step::NextRule);
                    }
                }
                Expr::Lookup { set, sreg, result } => {
                    match self.look_up(set, *sreg, result, flight, &mut registers)? {
                        Some(Step::NextRule) => return Ok(Step::NextRule),
                        Some(step) => return Ok(step),
                        None => {}
                    }
                }
                Expr::Immediate { verdict } => return Ok(Step::Verdict(verdict)),
                Expr::SetPriority { sreg } => {
                    let value = registers.load(*sreg, 4)?.try_into();
                    flight.priority = u32::from_ne_bytes(value.map_err(|_| "no word")?);
                }
                Expr::Update { map, key, data, .. } => {
                    self.update(map, *key, *data, flight, &registers)?;
                }
                Expr::DestinationNat { address, port } => {
                    allowed(before_routing, "dnat after routing")?;
                    let to = registers.load(*address, self.family.address_len())?;
                    let to = Bytes::from_slice(to).and_then(|b| b.address_at(0, self.family));
                    let port = registers.load(*port, 2)?;
                    let port = u16::from_be_bytes([port[0], port[1]]);
                    flight.send_to(to.ok_or("no address")?, port);
                    return Ok(Step::End(End::Accepted));
                }
                // Services' tables have none: the packet would go on as it is.
                Expr::Counter | Expr::NoTrack | Expr::Limit { .. } | Expr::SetTrace { .. } => {}
                Expr::Masquerade => {
                    allowed(
                        hook == Hook::NatPostrouting,
                        "masquerade elsewhere than in postrouting",
                    )?;
                    flight.masqueraded = true;
                    return Ok(Step::End(End::Accepted));
                }
                Expr::Reject | Expr::RejectReset => {
                    allowed(before_routing, "reject after routing")?;
                    return Ok(Step::End(End::Rejected));
                }
                Expr::Unknown { name } => return Err(format!("unknown expression {name}")),
                _ => self.load(expr, flight, &mut registers)?,
            }
        }
        Ok(Step::NextRule)
    }

    /// A step if the rule ends here.
    fn look_up(
        &self,
        set: &Name,
        sreg: Register,
        result: &LookupResult,
        flight: &Flight<'_>,
        registers: &mut Registers,
    ) -> Result<Option<Step<'_>>, String> {
        let members = self.members(set)?;
        let key = registers.load(sreg, members.key_len)?;
        if matches!(members.set.kind, SetKind::Learned(_)) {
            let key = Bytes::from_slice(key).ok_or("a key too long")?;
            let LookupResult::Data(dreg) = result else {
                return Err(format!("{set} holds what was learned: {result:?}"));
            };
            return match flight.memory.get(&(set.clone(), key)) {
                Some(value) => registers.store(*dreg, value.as_slice()).map(|()| None),
                None => Ok(Some(Step::NextRule)),
            };
        }
        match (result, members.get(key)) {
            (LookupResult::Member, Some(_)) | (LookupResult::NotMember, None) => Ok(None),
            (LookupResult::Data(dreg), Some(Data::Value(value))) => {
                registers.store(*dreg, value.as_slice()).map(|()| None)
            }
            (LookupResult::Verdict, Some(Data::Verdict(verdict))) => {
                Ok(Some(Step::Verdict(verdict)))
            }
            (LookupResult::Data(_) | LookupResult::Verdict, Some(data)) => {
                Err(format!("element of {set} has data {data:?}"))
            }
            _ => Ok(Some(Step::NextRule)),
        }
    }

    /// The kernel's `update`: an element that is there gets its time anew and keeps its data
    /// (nft_set_hash.c: `nft_rhash_update` finds it and makes none).
    fn update(
        &self,
        map: &Name,
        key: Register,
        data: Register,
        flight: &mut Flight<'_>,
        registers: &Registers,
    ) -> Result<(), String> {
        let members = self.members(map)?;
        let SetKind::Learned(fields) = &members.set.kind else {
            return Err(format!("{map} cannot be updated"));
        };
        let width = fields.iter().map(|field| match field {
            DataField::Address => self.family.address_len(),
            DataField::Port | DataField::Group => 4,
        });
        let width = width.sum();
        let key = Bytes::from_slice(registers.load(key, members.key_len)?);
        let value = Bytes::from_slice(registers.load(data, width)?);
        let (key, value) = key.zip(value).ok_or("an element too long")?;
        flight.memory.entry((map.clone(), key)).or_insert(value);
        Ok(())
    }

    /// Expressions that only move data.
    fn load(
        &self,
        expr: &Expr,
        flight: &Flight<'_>,
        registers: &mut Registers,
    ) -> Result<(), String> {
        match expr {
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let bytes = flight.payload(self.family, *base, *offset, *len)?;
                registers.store(*dreg, bytes.as_slice())
            }
            Expr::MetaL4Proto { dreg } => registers.store(*dreg, &[flight.protocol]),
            Expr::MetaPriority { dreg } => registers.store(*dreg, &flight.priority.to_ne_bytes()),
            Expr::MetaInputName { dreg } => registers.store(*dreg, &flight.interface_name()),
            Expr::FibType { of, dreg } => {
                let kind = flight.fib_type(*of);
                registers.store(*dreg, &kind.to_ne_bytes())
            }
            Expr::ImmediateValue { dreg, data } => registers.store(*dreg, data.as_slice()),
            Expr::Ct { key, dreg } => registers.store(*dreg, flight.connection(*key).as_slice()),
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                let (mask, xor) = (mask.as_slice(), xor.as_slice());
                let mut out = [0; 64];
                let held = registers.load(*sreg, mask.len())?.iter().zip(mask).zip(xor);
                for (out, ((held, mask), xor)) in out.iter_mut().zip(held) {
                    *out = (held & mask) ^ xor;
                }
                registers.store(*dreg, &out[..mask.len()])
            }
            other => Err(format!("{other:?} moves no data")),
        }
    }

    fn members(&self, set: &str) -> Result<&Members<'a>, String> {
        self.sets.get(set).ok_or_else(|| format!("no set {set}"))
    }

    fn rules(&self, chain: &str) -> Result<&[Vec<Expr>], String> {
        self.chains
            .get(chain)
            .map(Vec::as_slice)
            .ok_or_else(|| format!("no chain {chain}"))
    }

    /// All names that rules and elements refer to exist, whether a packet gets there or not.
    fn check_references(&self) -> Result<(), String> {
        let verdicts = self.sets.values().flat_map(|set| set.elements.values());
        for data in verdicts {
            if let Data::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) = data {
                self.rules(to)?;
            }
        }
        for expr in self.chains.values().flatten().flatten() {
            match expr {
                Expr::Lookup { set, .. } | Expr::Update { map: set, .. } => {
                    self.members(set)?;
                }
                Expr::Immediate {
                    verdict: Verdict::Jump(to) | Verdict::Goto(to),
                } => {
                    self.rules(to)?;
                }
                _ => {}
            }
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
