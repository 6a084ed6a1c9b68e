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
mod registers;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nft::expr::{Expr, LookupResult, lower};
use nft::{Bytes, Data, Family, Hook, Set, TableContents, Verdict};
use rustc_hash::FxHashMap;

use self::flight::Flight;
use self::registers::Registers;
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

/// The fates of a packet over all values of its flow hash, each with its share of 2^32.
pub type Fates = BTreeMap<Fate, u64>;

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

/// A set with its elements.
struct Members<'a> {
    set: &'a Set,
    key_len: usize,
    elements: FxHashMap<&'a [u8], &'a Data>,
    ranges: Vec<(&'a [u8], &'a [u8])>,
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

    /// What becomes of `packet` on a node whose own addresses are `local`.
    pub fn fates(&self, packet: &Packet, local: &[IpAddr]) -> Result<Fates, String> {
        let mut moduli = BTreeSet::new();
        let mut known: BTreeMap<u32, Fate> = BTreeMap::new();
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
                    vacant.insert(self.fate(packet, local, start, &mut moduli)?);
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
            .chain([WHOLE]);
        let mut fates = Fates::new();
        for ((start, fate), end) in known.iter().zip(ends) {
            *fates.entry(*fate).or_default() += end - u64::from(*start);
        }
        Ok(fates)
    }

    fn fate(
        &self,
        packet: &Packet,
        local: &[IpAddr],
        hash: u32,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Fate, String> {
        let mut flight = Flight::new(packet, hash);
        let first = match packet.origin {
            Origin::Node => Hook::NatOutput,
            Origin::Elsewhere => Hook::NatPrerouting,
        };
        for hook in [first, Hook::NatPostrouting] {
            // What was received and is for the node itself goes up, not out again.
            let is_received = packet.origin == Origin::Elsewhere;
            if hook == Hook::NatPostrouting && is_received && local.contains(&flight.destination) {
                break;
            }
            for (_, chain) in self.hooks.iter().filter(|(at, _)| *at == hook) {
                match self.run(hook, chain, &mut flight, moduli)? {
                    End::Accepted => {}
                    End::Dropped => return Ok(Fate::Dropped),
                    End::Rejected => return Ok(Fate::Rejected),
                }
            }
        }
        Ok(match flight.is_dnat || flight.masqueraded {
            true => Fate::Translated {
                to: SocketAddr::new(flight.destination, flight.port),
                masqueraded: flight.masqueraded,
            },
            false => Fate::Passed,
        })
    }

    /// Runs one base chain.
    fn run(
        &self,
        hook: Hook,
        chain: &str,
        flight: &mut Flight,
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
        flight: &mut Flight,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Step<'r>, String> {
        let mut registers = Registers::default();
        for expr in rule {
            match expr {
                Expr::Payload { .. }
                | Expr::MetaL4Proto { .. }
                | Expr::Ct { .. }
                | Expr::Bitwise { .. } => self.load(expr, flight, &mut registers)?,
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
                    let set = self
                        .sets
                        .get(set.as_ref())
                        .ok_or_else(|| format!("no set {set}"))?;
                    let found = set.get(registers.load(*sreg, set.key_len)?);
                    match (result, found) {
                        (LookupResult::Member, Some(_)) | (LookupResult::NotMember, None) => {}
                        (LookupResult::Data(dreg), Some(Data::Value(value))) => {
                            registers.store(*dreg, value.as_slice())?;
                        }
                        (LookupResult::Verdict, Some(Data::Verdict(verdict))) => {
                            return Ok(Step::Verdict(verdict));
                        }
                        (LookupResult::Data(_) | LookupResult::Verdict, Some(data)) => {
                            return Err(format!("element of {} has data {data:?}", set.set.name));
                        }
                        _ => return Ok(Step::NextRule),
                    }
                }
                Expr::Immediate { verdict } => return Ok(Step::Verdict(verdict)),
                Expr::DestinationNat { address, port } => {
                    allowed(hook != Hook::NatPostrouting, "dnat in postrouting")?;
                    let to = registers.load(*address, self.family.address_len())?;
                    let to = Bytes::from_slice(to).and_then(|b| b.address_at(0, self.family));
                    let port = registers.load(*port, 2)?;
                    let port = u16::from_be_bytes([port[0], port[1]]);
                    flight.send_to(to.ok_or("no address")?, port);
                    return Ok(Step::End(End::Accepted));
                }
                // Services' tables have none: the packet would go on as it is.
                Expr::Counter | Expr::NoTrack => {}
                Expr::Masquerade => {
                    allowed(hook == Hook::NatPostrouting, "masquerade before routing")?;
                    flight.masqueraded = true;
                    return Ok(Step::End(End::Accepted));
                }
                Expr::Reject | Expr::RejectReset => {
                    allowed(hook != Hook::NatPostrouting, "reject in postrouting")?;
                    return Ok(Step::End(End::Rejected));
                }
                Expr::Unknown { name } => return Err(format!("unknown expression {name}")),
            }
        }
        Ok(Step::NextRule)
    }

    /// Expressions that only move data.
    fn load(&self, expr: &Expr, flight: &Flight, registers: &mut Registers) -> Result<(), String> {
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
                Expr::Lookup { set, .. } if !self.sets.contains_key(set.as_ref()) => {
                    return Err(format!("no set {set}"));
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

impl<'a> Members<'a> {
    fn new(set: &'a Set, family: Family, elements: &'a [nft::Element]) -> Result<Self, String> {
        let key_len = set.key_len(family);
        let mut members = Members {
            set,
            key_len,
            elements: FxHashMap::default(),
            ranges: Vec::new(),
        };
        for element in elements {
            let key = element.key.as_slice();
            if key.len() != key_len {
                return Err(format!(
                    "element {:?} of {}: key is not {key_len} bytes",
                    element.key, set.name
                ));
            }
            if set.interval {
                let last = element.last.as_ref().map_or(key, |last| last.as_slice());
                members.ranges.push((key, last));
            } else if members.elements.insert(key, &element.data).is_some() {
                return Err(format!(
                    "element {:?} of {} occurs twice",
                    element.key, set.name
                ));
            }
        }
        members.ranges.sort_unstable();
        if let Some(pair) = members
            .ranges
            .windows(2)
            .find(|pair| pair[0].1 >= pair[1].0)
        {
            return Err(format!("ranges of {} overlap: {pair:?}", set.name));
        }
        Ok(members)
    }

    fn get(&self, key: &[u8]) -> Option<&'a Data> {
        if self.set.interval {
            let inside = self
                .ranges
                .iter()
                .any(|(first, last)| *first <= key && key <= *last);
            return inside.then_some(&Data::None);
        }
        self.elements.get(key).copied()
    }
}
