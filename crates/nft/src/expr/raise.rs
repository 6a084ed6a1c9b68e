//! From expressions back to statements.
//!
//! A parser over the closed set: loads gather into a pending key, which the expression that uses it turns
//! into a statement. Its answer is then lowered again and compared, so that odd registers or leftovers
//! can never pass for a rule of ours.

use super::{
    Base, CtKey, DESTINATION_PORT_OFFSET, Expr, INTERFACE_NAME_LEN, LookupResult, Register,
    destination_offset, lower, lower_placing, source_offset,
};
use crate::model::{Bytes, Family, Operand, Protocol, Rule, Statement};

/// Recognises a rule that [`lower`] made. Anything else becomes a rule of one [`Statement::Unknown`],
/// which equals no rule of ours.
pub fn raise(exprs: &[Expr], family: Family) -> Rule {
    match parse(exprs, family) {
        Some(rule) if lower(&rule, family) == exprs => rule,
        // nft 1.1 loads what is learned right behind the key, as tightly as it can: the same rule.
        Some(rule) if lower_placing(&rule, family, |end| end) == exprs => rule,
        _ => Rule {
            statements: vec![Statement::Unknown(describe(exprs))],
        },
    }
}

fn parse(exprs: &[Expr], family: Family) -> Option<Rule> {
    let mut statements = Vec::new();
    let mut key = Vec::new();
    let mut rest = exprs;
    while let Some((expr, tail)) = rest.split_first() {
        rest = tail;
        let take = std::mem::take::<Vec<Operand>>;
        match expr {
            Expr::Payload {
                base, offset, len, ..
            } => {
                key.push(payload(*base, *offset, *len, family)?);
            }
            Expr::MetaL4Proto { .. } => key.push(Operand::Protocol),
            Expr::Ct {
                key: CtKey::OriginalDestinationAddress,
                ..
            } => {
                key.push(Operand::OriginalDestinationAddress);
            }
            Expr::Ct {
                key: CtKey::OriginalDestinationPort,
                ..
            } => {
                key.push(Operand::OriginalDestinationPort);
            }
            Expr::Ct {
                key: CtKey::ReplySourceAddress,
                ..
            } => key.push(Operand::ReplySourceAddress),
            Expr::Ct {
                key: CtKey::ReplySourcePort,
                ..
            } => key.push(Operand::ReplySourcePort),
            Expr::MetaPriority { .. } => key.push(Operand::Group),
            Expr::FibType { of, .. } => {
                let (equal, _) = compared(&mut rest)?;
                statements.push(Statement::LocalAddress {
                    of: *of,
                    negate: !equal,
                });
            }
            Expr::MetaInputName { .. } => {
                let (equal, data) = compared(&mut rest)?;
                let bytes = data.as_slice();
                let prefix = bytes.len() < INTERFACE_NAME_LEN;
                let name = bytes.split(|byte| *byte == 0).next()?;
                statements.push(Statement::InputInterface {
                    name: String::from_utf8(name.to_vec()).ok()?.into(),
                    prefix,
                    negate: !equal,
                });
            }
            Expr::ImmediateValue { .. } => {
                let (user, after) = rest.split_first()?;
                rest = after;
                statements.push(match user {
                    Expr::SetTrace { .. } => Statement::Trace,
                    _ => Statement::ClearGroup,
                });
            }
            Expr::Update {
                map, data, seconds, ..
            } => {
                // The loads just before, masks between them: the data's go to the registers from `data` on.
                let mut key = take(&mut key);
                let before = exprs.get(..exprs.len() - rest.len() - 1)?;
                let is_load = |expr: &&Expr| !matches!(expr, Expr::Bitwise { .. });
                let loads = before.iter().rev().filter(is_load).take(key.len());
                let of_data = loads.take_while(|load| register(load) >= Some(*data));
                let data = key.split_off(key.len().checked_sub(of_data.count())?);
                statements.push(Statement::Learn {
                    key,
                    data,
                    map: map.clone(),
                    seconds: *seconds,
                });
            }
            Expr::SymHash { modulus, .. } => key.push(Operand::SymHash { modulus: *modulus }),
            Expr::Cmp { data, equal, .. } => statements.push(match take(&mut key).as_slice() {
                [Operand::Protocol] => Statement::ProtocolIs(protocol(data.as_slice())?),
                [
                    operand @ (Operand::SourceAddress
                    | Operand::DestinationAddress
                    | Operand::DestinationPort
                    | Operand::Transport { .. }),
                ] => Statement::Equals {
                    operand: *operand,
                    value: *data,
                    negate: !equal,
                },
                _ => return None,
            }),
            Expr::Bitwise { mask, .. } => match key.last_mut()? {
                Operand::Transport { prefix, .. } => {
                    let ones = mask.as_slice().iter().map(|byte| byte.leading_ones());
                    *prefix = u8::try_from(ones.sum::<u32>()).ok()?;
                }
                _ => return None,
            },
            Expr::Ct {
                key: CtKey::Status, ..
            } => {
                rest = rest.get(2..)?;
                statements.push(Statement::ConnectionIsDnat);
            }
            Expr::Lookup { set, result, .. } => {
                let (key, set) = (take(&mut key), set.clone());
                statements.push(match result {
                    LookupResult::Member => Statement::InSet {
                        key,
                        set,
                        negate: false,
                    },
                    LookupResult::NotMember => Statement::InSet {
                        key,
                        set,
                        negate: true,
                    },
                    LookupResult::Verdict => Statement::VerdictMap { key, map: set },
                    LookupResult::Data(_) => {
                        let (user, after) = rest.split_first()?;
                        rest = after;
                        match user {
                            Expr::SetPriority { .. } => Statement::SetGroup { key, map: set },
                            _ => Statement::DnatMap { key, map: set },
                        }
                    }
                });
            }
            Expr::Immediate { verdict } => statements.push(Statement::Verdict(verdict.clone())),
            Expr::Counter => statements.push(Statement::Counter),
            Expr::NoTrack => statements.push(Statement::NoTrack),
            Expr::Limit { per_second, burst } => statements.push(Statement::Limit {
                per_second: *per_second,
                burst: *burst,
            }),
            Expr::Masquerade => statements.push(Statement::Masquerade),
            Expr::Reject => statements.push(Statement::Reject),
            Expr::RejectReset => {
                // nft wants the protocol to be known, and takes it as part of the statement.
                let for_tcp = statements.pop()? == Statement::ProtocolIs(Protocol::Tcp);
                for_tcp.then(|| statements.push(Statement::RejectTcpReset))?;
            }
            Expr::DestinationNat { .. }
            | Expr::SetPriority { .. }
            | Expr::SetTrace { .. }
            | Expr::Unknown { .. } => return None,
        }
    }
    Some(Rule { statements })
}

/// What a comparison just behind a load compares with, and whether for equality.
fn compared<'a>(rest: &mut &'a [Expr]) -> Option<(bool, &'a Bytes)> {
    let (expr, after) = rest.split_first()?;
    *rest = after;
    match expr {
        Expr::Cmp { equal, data, .. } => Some((*equal, data)),
        _ => None,
    }
}

/// The first register that an operand is loaded to.
fn register(load: &Expr) -> Option<Register> {
    match load {
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
