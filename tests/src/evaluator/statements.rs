//! What statements mean, after nft(8) and the wiki of nftables.
//!
//! Written without the product's lowering and without registers. The lowering is right where [`super::machine`] gives the
//! same fates for the lowered rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nft::{Bytes, Data, Family, Hook, Name, Operand, Protocol, Rule, SetKind, Statement};

use super::flight::{Flight, TCP};
use super::members::Members;
use super::{End, Program, Sets, Step, allowed, slot};

impl Program for &Rule {
    fn run(
        &self,
        sets: &Sets<'_>,
        hook: Hook,
        flight: &mut Flight<'_>,
        moduli: &mut BTreeSet<u32>,
    ) -> Result<Step, String> {
        for statement in &self.statements {
            let goes_on = match statement {
                Statement::InSet { key, set, negate } => {
                    let key = concatenated(key, flight, moduli)?;
                    find(sets.get(set)?, &key, flight)?.is_some() != *negate
                }
                Statement::ProtocolIs(protocol) => flight.protocol == number(*protocol),
                Statement::Equals {
                    operand,
                    value,
                    negate,
                } => (read(*operand, flight, moduli)?.as_slice() == value.as_slice()) != *negate,
                Statement::ConnectionIsDnat => flight.is_dnat,
                Statement::LocalAddress { of, negate } => flight.is_local_side(*of) != *negate,
                Statement::InputInterface {
                    name,
                    prefix,
                    negate,
                } => {
                    let name: &str = name;
                    let matches = match prefix {
                        true => flight.interface.starts_with(name),
                        false => flight.interface == name,
                    };
                    matches != *negate
                }
                Statement::SetPriority { key, map } => {
                    let key = concatenated(key, flight, moduli)?;
                    match value(sets.get(map)?, &key, flight)? {
                        Some(group) => {
                            let group = group.as_slice().try_into();
                            flight.priority = u32::from_ne_bytes(group.map_err(|_| "no group")?);
                            true
                        }
                        None => false,
                    }
                }
                Statement::ClearPriority => {
                    flight.priority = 0;
                    true
                }
                Statement::UpdateMap { key, data, map, .. } => {
                    let key = concatenated(key, flight, moduli)?;
                    let data = concatenated(data, flight, moduli)?;
                    update(sets.get(map)?, sets.family, &key, &data, flight)?;
                    true
                }
                Statement::VerdictMap { key, map } => {
                    let key = concatenated(key, flight, moduli)?;
                    match find(sets.get(map)?, &key, flight)? {
                        Some(Data::Verdict(verdict)) => return Ok(Step::Verdict(verdict)),
                        Some(other) => return Err(format!("element of {map} has data {other:?}")),
                        None => false,
                    }
                }
                Statement::DnatMap { key, map } => {
                    allowed(is_before_routing(hook), "dnat after routing")?;
                    let key = concatenated(key, flight, moduli)?;
                    match value(sets.get(map)?, &key, flight)? {
                        Some(to) => {
                            let to = endpoint(to.as_slice(), sets.family)?;
                            flight.send_to(to.ip(), to.port());
                            return Ok(Step::End(End::Accepted));
                        }
                        None => false,
                    }
                }
                Statement::Masquerade => {
                    let there = hook == Hook::NatPostrouting;
                    allowed(there, "masquerade elsewhere than in postrouting")?;
                    flight.masqueraded = true;
                    return Ok(Step::End(End::Accepted));
                }
                Statement::Reject => {
                    allowed(is_before_routing(hook), "reject after routing")?;
                    return Ok(Step::End(End::Rejected));
                }
                Statement::RejectTcpReset => {
                    allowed(is_before_routing(hook), "reject after routing")?;
                    if flight.protocol == TCP {
                        return Ok(Step::End(End::Rejected));
                    }
                    false
                }
                Statement::Verdict(verdict) => return Ok(Step::Verdict(verdict.clone())),
                // These do not change the packet, and the Service tables have none.
                Statement::Counter
                | Statement::NoTrack
                | Statement::Limit { .. }
                | Statement::Trace => true,
                Statement::OutputInterface { .. } | Statement::ClampMaxseg => {
                    return Err("no packet is followed to its output interface".to_owned());
                }
                Statement::Unknown(name) => return Err(format!("unknown expression {name}")),
            };
            if !goes_on {
                return Ok(Step::NextRule);
            }
        }
        Ok(Step::NextRule)
    }

    fn references(&self) -> (Vec<&Name>, Vec<&Name>) {
        let (mut sets, mut chains) = (Vec::new(), Vec::new());
        for statement in &self.statements {
            sets.extend(statement.set());
            if let Statement::Verdict(verdict) = statement {
                chains.extend(verdict.target());
            }
        }
        (sets, chains)
    }
}

/// Whether the hook may have destination NAT and rejections.
fn is_before_routing(hook: Hook) -> bool {
    matches!(hook, Hook::NatPrerouting | Hook::NatOutput)
}

/// Protocol numbers (IANA).
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Bytes of a key, on the stack: every packet of many clusters makes some.
#[derive(Clone, Copy)]
struct Key {
    bytes: [u8; 64],
    len: usize,
}

impl Key {
    fn new(bytes: &[u8]) -> Key {
        let mut key = Key {
            bytes: [0; 64],
            len: 0,
        };
        key.push(bytes);
        key
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn address(address: IpAddr) -> Key {
        match address {
            IpAddr::V4(address) => Key::new(&address.octets()),
            IpAddr::V6(address) => Key::new(&address.octets()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn to_bytes(self) -> Result<Bytes, String> {
        Bytes::from_slice(self.as_slice()).ok_or_else(|| "an element too long".to_owned())
    }
}

/// One part of a key: numbers from packets in network order, numbers that nft makes in the machine's order.
fn read(operand: Operand, flight: &Flight<'_>, moduli: &mut BTreeSet<u32>) -> Result<Key, String> {
    Ok(match operand {
        Operand::SourceAddress => Key::address(flight.source),
        Operand::DestinationAddress => Key::address(flight.destination),
        Operand::OriginalDestinationAddress => Key::address(flight.original.0),
        // Replies come from the packet's destination.
        Operand::ReplySourceAddress => Key::address(flight.destination),
        Operand::Protocol => Key::new(&[flight.protocol]),
        Operand::DestinationPort | Operand::ReplySourcePort => Key::new(&flight.port.to_be_bytes()),
        Operand::OriginalDestinationPort => Key::new(&flight.original.1.to_be_bytes()),
        Operand::Group => Key::new(&flight.priority.to_ne_bytes()),
        Operand::SymHash { modulus } => {
            moduli.insert(modulus);
            Key::new(&slot(flight.hash, modulus).to_ne_bytes())
        }
        Operand::Transport { .. } => return Err(format!("{operand:?} of a packet to a Service")),
    })
}

/// A key. Where parts are concatenated, each begins at a multiple of four bytes.
fn concatenated(
    operands: &[Operand],
    flight: &Flight<'_>,
    moduli: &mut BTreeSet<u32>,
) -> Result<Key, String> {
    if let [one] = operands {
        return read(*one, flight, moduli);
    }
    let mut key = Key::new(&[]);
    for operand in operands {
        let part = read(*operand, flight, moduli)?;
        key.push(part.as_slice());
        key.len = key.len.next_multiple_of(4);
    }
    Ok(key)
}

/// The data that a set or map has for a key. Elements that packets have written are in the packet's memory.
fn find(members: &Members<'_>, key: &Key, flight: &Flight<'_>) -> Result<Option<Data>, String> {
    if key.len != members.key_len {
        let name = &members.set.name;
        return Err(format!("a key of {} bytes for {name}", key.len));
    }
    Ok(match members.set.kind {
        SetKind::Dynamic(_) => {
            let written = (members.set.name.clone(), key.to_bytes()?);
            flight.memory.get(&written).copied().map(Data::Value)
        }
        _ => members.get(key.as_slice()).cloned(),
    })
}

/// The value that a data map has for a key.
fn value(members: &Members<'_>, key: &Key, flight: &Flight<'_>) -> Result<Option<Bytes>, String> {
    match find(members, key, flight)? {
        Some(Data::Value(value)) => Ok(Some(value)),
        Some(other) => {
            let name = &members.set.name;
            Err(format!("element of {name} has data {other:?}"))
        }
        None => Ok(None),
    }
}

/// Address and port of a map's value.
fn endpoint(value: &[u8], family: Family) -> Result<SocketAddr, String> {
    let (address, port): (IpAddr, &[u8]) = match family {
        Family::Ip => {
            let (address, port) = value.split_first_chunk::<4>().ok_or("no address")?;
            ((*address).into(), port)
        }
        Family::Ip6 => {
            let (address, port) = value.split_first_chunk::<16>().ok_or("no address")?;
            ((*address).into(), port)
        }
    };
    let (port, _) = port.split_first_chunk::<2>().ok_or("no port")?;
    Ok(SocketAddr::new(address, u16::from_be_bytes(*port)))
}

/// The statement `update`: an existing element keeps its data (nft_set_hash.c: `nft_rhash_update` finds it and creates
/// none).
fn update(
    members: &Members<'_>,
    family: Family,
    key: &Key,
    data: &Key,
    flight: &mut Flight<'_>,
) -> Result<(), String> {
    let name = &members.set.name;
    if data.len != members.written_len(family)? || key.len != members.key_len {
        return Err(format!("an element of another width for {name}"));
    }
    let element = (name.clone(), key.to_bytes()?);
    flight.memory.entry(element).or_insert(data.to_bytes()?);
    Ok(())
}
