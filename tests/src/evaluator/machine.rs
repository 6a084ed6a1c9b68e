//! The kernel's register machine for expressions (nft_lookup.c, nft_payload.c, nft_hash.c, nf_nat_core.c).

use std::collections::BTreeSet;

use nft::expr::{Base, CtKey, Expr, IPS_DST_NAT, LookupResult, RTN_LOCAL, Register};
use nft::{Bytes, Data, Family, Hook, Name, SetKind};

use super::flight::Flight;
use super::registers::Registers;
use super::{End, Program, Sets, Step, allowed, slot};

impl Program for Vec<Expr> {
    fn run(
        &self,
        sets: &Sets<'_>,
        hook: Hook,
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Step, String> {
        let before_routing = matches!(hook, Hook::NatPrerouting | Hook::NatOutput);
        let mut registers = Registers::default();
        for expr in self {
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
                    let step = look_up(sets, set, *sreg, result, flight, &mut registers)?;
                    if let Some(step) = step {
                        return Ok(step);
                    }
                }
                Expr::Immediate { verdict } => return Ok(Step::Verdict(verdict.clone())),
                Expr::SetPriority { sreg } => {
                    let value = registers.load(*sreg, 4)?.try_into();
                    flight.priority = u32::from_ne_bytes(value.map_err(|_| "no word")?);
                }
                Expr::Update { map, key, data, .. } => {
                    update(sets, map, *key, *data, flight, &registers)?;
                }
                Expr::DestinationNat { address, port } => {
                    allowed(before_routing, "dnat after routing")?;
                    let to = registers.load(*address, sets.family.address_len())?;
                    let to = Bytes::from_slice(to).and_then(|b| b.address_at(0, sets.family));
                    let port = registers.load(*port, 2)?;
                    let port = u16::from_be_bytes([port[0], port[1]]);
                    flight.send_to(to.ok_or("no address")?, port);
                    return Ok(Step::End(End::Accepted));
                }
                // These do not change the packet, and the Service tables have none.
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
                _ => load(expr, sets.family, flight, &mut registers)?,
            }
        }
        Ok(Step::NextRule)
    }

    fn references(&self) -> (Vec<&Name>, Vec<&Name>) {
        let (mut sets, mut chains) = (Vec::new(), Vec::new());
        for expr in self {
            match expr {
                Expr::Lookup { set, .. } | Expr::Update { map: set, .. } => sets.push(set),
                Expr::Immediate { verdict } => chains.extend(verdict.target()),
                _ => {}
            }
        }
        (sets, chains)
    }
}

/// Looks up a key. Returns a step if the rule ends here.
fn look_up(
    sets: &Sets<'_>,
    set: &Name,
    sreg: Register,
    result: &LookupResult,
    flight: &Flight<'_>,
    registers: &mut Registers,
) -> Result<Option<Step>, String> {
    let members = sets.get(set)?;
    let key = registers.load(sreg, members.key_len)?;
    if matches!(members.set.kind, SetKind::Dynamic(_)) {
        let key = Bytes::from_slice(key).ok_or("a key too long")?;
        let LookupResult::Data(dreg) = result else {
            return Err(format!("{set} has values only: {result:?}"));
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
            Ok(Some(Step::Verdict(verdict.clone())))
        }
        (LookupResult::Data(_) | LookupResult::Verdict, Some(data)) => {
            Err(format!("element of {set} has data {data:?}"))
        }
        _ => Ok(Some(Step::NextRule)),
    }
}

/// The kernel's `update`: an existing element keeps its data (nft_set_hash.c: `nft_rhash_update` finds it and creates none).
fn update(
    sets: &Sets<'_>,
    map: &Name,
    key: Register,
    data: Register,
    flight: &mut Flight<'_>,
    registers: &Registers,
) -> Result<(), String> {
    let members = sets.get(map)?;
    let width = members.written_len(sets.family)?;
    let key = Bytes::from_slice(registers.load(key, members.key_len)?);
    let value = Bytes::from_slice(registers.load(data, width)?);
    let (key, value) = key.zip(value).ok_or("an element too long")?;
    flight.memory.entry((map.clone(), key)).or_insert(value);
    Ok(())
}

/// Expressions that only move data.
fn load(
    expr: &Expr,
    family: Family,
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
            let bytes = payload(flight, family, *base, *offset, *len)?;
            registers.store(*dreg, bytes.as_slice())
        }
        Expr::MetaL4Proto { dreg } => registers.store(*dreg, &[flight.protocol]),
        Expr::MetaPriority { dreg } => registers.store(*dreg, &flight.priority.to_ne_bytes()),
        Expr::MetaInputName { dreg } => registers.store(*dreg, &interface_name(flight)),
        Expr::FibType { of, dreg } => {
            // `RTN_UNICAST` (include/uapi/linux/rtnetlink.h), the only other type of the packets in tests.
            let kind = if flight.is_local_side(*of) {
                RTN_LOCAL
            } else {
                1
            };
            registers.store(*dreg, &kind.to_ne_bytes())
        }
        Expr::ImmediateValue { dreg, data } => registers.store(*dreg, data.as_slice()),
        Expr::Ct { key, dreg } => registers.store(*dreg, connection(flight, *key).as_slice()),
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

/// Bytes of the headers that rules of the Service tables may read.
fn payload(
    flight: &Flight<'_>,
    family: Family,
    base: Base,
    offset: u32,
    len: u32,
) -> Result<Bytes, String> {
    let source_at = if family == Family::Ip { 12 } else { 8 };
    let width = family.address_len() as u32;
    match (base, offset, len) {
        (Base::Network, at, len) if at == source_at && len == width => {
            Ok(Bytes::new().address(flight.source))
        }
        (Base::Network, at, len) if at == source_at + width && len == width => {
            Ok(Bytes::new().address(flight.destination))
        }
        (Base::Transport, 2, 2) => Ok(Bytes::new().port(flight.port)),
        _ => Err(format!("payload of {len} bytes at {offset} of {base:?}")),
    }
}

/// A field of the connection. Replies come from the packet's destination.
fn connection(flight: &Flight<'_>, key: CtKey) -> Bytes {
    match key {
        CtKey::Status => {
            Bytes::new().with(&(if flight.is_dnat { IPS_DST_NAT } else { 0 }).to_ne_bytes())
        }
        CtKey::OriginalDestinationAddress => Bytes::new().address(flight.original.0),
        CtKey::OriginalDestinationPort => Bytes::new().port(flight.original.1),
        CtKey::ReplySourceAddress => Bytes::new().address(flight.destination),
        CtKey::ReplySourcePort => Bytes::new().port(flight.port),
    }
}

/// The interface's name as the kernel compares it: 16 bytes (`IFNAMSIZ`), padded with zeros.
fn interface_name(flight: &Flight<'_>) -> [u8; 16] {
    let mut name = [0; 16];
    for (place, byte) in name.iter_mut().zip(flight.interface.bytes()) {
        *place = byte;
    }
    name
}
