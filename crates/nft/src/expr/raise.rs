//! From expressions back to statements.
//!
//! A parser over the closed set: loads are collected as a key, which the expression that uses the key turns
//! into a statement. The result is then lowered again and compared, so that odd registers or leftovers
//! can never pass for a rule of Portolan's.

use super::{
    Base, CtKey, DESTINATION_PORT_OFFSET, Expr, INTERFACE_NAME_LEN, LookupResult, Register, clamp,
    destination_offset, lower, lower_placing, source_offset,
};
use crate::model::{Bytes, Family, Name, Operand, Protocol, Rule, Statement};

/// Recognizes a rule that [`lower`] made. Anything else becomes a rule of one [`Statement::Unknown`],
/// which equals no rule of Portolan's.
pub fn raise(exprs: &[Expr], family: Family) -> Rule {
    match parse(exprs, family) {
        Some(rule) if lower(&rule, family) == exprs => rule,
        // nft 1.1 loads the data of an update right after the key, without a gap: the same rule.
        Some(rule) if lower_placing(&rule, family, |end| end) == exprs => rule,
        _ => Rule {
            statements: vec![Statement::Unknown(describe(exprs))],
        },
    }
}

fn parse(exprs: &[Expr], family: Family) -> Option<Rule> {
    let mut parser = Parser {
        exprs,
        position: 0,
        key: Vec::new(),
    };
    let mut statements = Vec::new();
    while let Some(expr) = parser.next() {
        if is_load(expr) {
            parser.key.push(operand(expr, family)?);
        } else if let Expr::Bitwise { mask, .. } = expr {
            let Operand::Transport { prefix, .. } = parser.key.last_mut()? else {
                return None;
            };
            let ones = mask.as_slice().iter().map(|byte| byte.leading_ones());
            *prefix = u8::try_from(ones.sum::<u32>()).ok()?;
        } else if let Expr::RouteMaxseg { .. } = expr {
            clamp::raise(&mut statements)?;
            // The order of bytes, and the option.
            parser.position += 2;
        } else if *expr == Expr::RejectReset {
            // nft requires the protocol to be known, and takes that comparison as part of the statement.
            let tcp = statements.pop()?;
            (tcp == Statement::ProtocolIs(Protocol::Tcp)).then_some(())?;
            statements.push(Statement::RejectTcpReset);
        } else {
            statements.push(parser.statement(expr)?);
        }
    }
    Some(Rule { statements })
}

struct Parser<'a> {
    exprs: &'a [Expr],
    position: usize,
    /// Loads that no statement has used yet.
    key: Vec<Operand>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Expr> {
        let expr = self.exprs.get(self.position)?;
        self.position += 1;
        Some(expr)
    }

    fn take_key(&mut self) -> Vec<Operand> {
        std::mem::take(&mut self.key)
    }

    /// The statement that `expr` and the expressions after it make of the key.
    fn statement(&mut self, expr: &Expr) -> Option<Statement> {
        Some(match expr {
            Expr::FibType { of, .. } => {
                let (equal, _) = self.compared()?;
                Statement::LocalAddress {
                    of: *of,
                    negate: !equal,
                }
            }
            Expr::MetaInputName { .. } => {
                let (equal, data) = self.compared()?;
                let bytes = data.as_slice();
                let name = bytes.split(|byte| *byte == 0).next()?;
                Statement::InputInterface {
                    name: String::from_utf8(name.to_vec()).ok()?.into(),
                    prefix: bytes.len() < INTERFACE_NAME_LEN,
                    negate: !equal,
                }
            }
            Expr::MetaOutputName { .. } => {
                let (_, data) = self.compared()?;
                let name = data.as_slice().split(|byte| *byte == 0).next()?;
                Statement::OutputInterface {
                    name: String::from_utf8(name.to_vec()).ok()?.into(),
                }
            }
            Expr::ImmediateValue { .. } => match self.next()? {
                Expr::SetTrace { .. } => Statement::Trace,
                _ => Statement::ClearPriority,
            },
            Expr::Update {
                map, data, seconds, ..
            } => {
                let (key, data) = self.split_key(*data)?;
                Statement::UpdateMap {
                    key,
                    data,
                    map: map.clone(),
                    seconds: *seconds,
                }
            }
            Expr::Cmp { data, equal, .. } => comparison(&self.take_key(), data, *equal)?,
            Expr::Ct {
                key: CtKey::Status, ..
            } => {
                // The mask and the comparison.
                self.position += 2;
                Statement::ConnectionIsDnat
            }
            Expr::Lookup { set, result, .. } => self.lookup(set.clone(), *result)?,
            Expr::Immediate { verdict } => Statement::Verdict(verdict.clone()),
            Expr::Counter => Statement::Counter,
            Expr::NoTrack => Statement::NoTrack,
            Expr::Limit { per_second, burst } => Statement::Limit {
                per_second: *per_second,
                burst: *burst,
            },
            Expr::Masquerade => Statement::Masquerade,
            Expr::Reject => Statement::Reject,
            _ => return None,
        })
    }

    fn lookup(&mut self, set: Name, result: LookupResult) -> Option<Statement> {
        let key = self.take_key();
        Some(match result {
            LookupResult::Member | LookupResult::NotMember => Statement::InSet {
                key,
                set,
                negate: result == LookupResult::NotMember,
            },
            LookupResult::Verdict => Statement::VerdictMap { key, map: set },
            LookupResult::Data(_) => match self.next()? {
                Expr::SetPriority { .. } => Statement::SetPriority { key, map: set },
                _ => Statement::DnatMap { key, map: set },
            },
        })
    }

    /// What the next expression compares a load with, and whether for equality.
    fn compared(&mut self) -> Option<(bool, &'a Bytes)> {
        match self.next()? {
            Expr::Cmp { equal, data, .. } => Some((*equal, data)),
            _ => None,
        }
    }

    /// Splits the loads before an update: those to registers from `data` on are the data. Masks may be between them.
    fn split_key(&mut self, data: Register) -> Option<(Vec<Operand>, Vec<Operand>)> {
        let mut key = self.take_key();
        let before = self.exprs.get(..self.position.checked_sub(1)?)?;
        let is_no_mask = |expr: &&Expr| !matches!(expr, Expr::Bitwise { .. });
        let loads = before.iter().rev().filter(is_no_mask).take(key.len());
        let of_data = loads.take_while(|load| register(load) >= Some(data));
        let data = key.split_off(key.len().checked_sub(of_data.count())?);
        Some((key, data))
    }
}

fn comparison(key: &[Operand], data: &Bytes, equal: bool) -> Option<Statement> {
    match key {
        [Operand::Protocol] => Some(Statement::ProtocolIs(protocol(data.as_slice())?)),
        [
            operand @ (Operand::SourceAddress
            | Operand::DestinationAddress
            | Operand::DestinationPort
            | Operand::Transport { .. }),
        ] => Some(Statement::Equals {
            operand: *operand,
            value: *data,
            negate: !equal,
        }),
        _ => None,
    }
}

/// Whether an expression loads a part of a key.
fn is_load(expr: &Expr) -> bool {
    register(expr).is_some()
}

/// The operand that an expression loads.
fn operand(load: &Expr, family: Family) -> Option<Operand> {
    match load {
        Expr::Payload {
            base, offset, len, ..
        } => payload(*base, *offset, *len, family),
        Expr::MetaL4Proto { .. } => Some(Operand::Protocol),
        Expr::MetaPriority { .. } => Some(Operand::Group),
        Expr::SymHash { modulus, .. } => Some(Operand::SymHash { modulus: *modulus }),
        Expr::Ct { key, .. } => match key {
            CtKey::Status => None,
            CtKey::OriginalDestinationAddress => Some(Operand::OriginalDestinationAddress),
            CtKey::OriginalDestinationPort => Some(Operand::OriginalDestinationPort),
            CtKey::ReplySourceAddress => Some(Operand::ReplySourceAddress),
            CtKey::ReplySourcePort => Some(Operand::ReplySourcePort),
        },
        _ => None,
    }
}

/// The first register that a part of a key is loaded to.
fn register(load: &Expr) -> Option<Register> {
    match load {
        Expr::Ct {
            key: CtKey::Status, ..
        } => None,
        Expr::Payload { dreg, .. }
        | Expr::MetaL4Proto { dreg }
        | Expr::MetaPriority { dreg }
        | Expr::Ct { dreg, .. }
        | Expr::SymHash { dreg, .. } => Some(*dreg),
        _ => None,
    }
}

fn payload(base: Base, offset: u32, len: u32, family: Family) -> Option<Operand> {
    match (base, len as usize == family.address_len()) {
        (Base::Network, true) if offset == source_offset(family) => Some(Operand::SourceAddress),
        (Base::Network, true) if offset == destination_offset(family) => {
            Some(Operand::DestinationAddress)
        }
        (Base::Transport, _) if offset == DESTINATION_PORT_OFFSET && len == 2 => {
            Some(Operand::DestinationPort)
        }
        (Base::Transport, _) => {
            let len = u8::try_from(len).ok().filter(|len| *len <= 16)?;
            let (offset, prefix) = (u8::try_from(offset).ok()?, len * 8);
            Some(Operand::Transport {
                offset,
                len,
                prefix,
            })
        }
        _ => None,
    }
}

fn protocol(data: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| data == [*p as u8])
}

/// Kernel names of the expressions, for people to read.
fn describe(exprs: &[Expr]) -> String {
    let names: Vec<&str> = exprs.iter().map(Expr::kernel_name).collect();
    names.join(" ")
}
