//! Rules as the kernel's register machine sees them.
//!
//! Owns the closed set of expressions and the two directions between them and [`Statement`]s:
//! [`lower`] yields exactly the registers that nft 1.0.6 chooses, so that `nft list ruleset` prints our
//! rules, and [`raise`] recognizes what [`lower`] made. How expressions look on the wire is left to
//! [`crate::wire`].
//!
//! Invariant: `raise(&lower(rule, family), family) == rule` for every rule without
//! [`Statement::Unknown`], and `raise` never invents: what it returns lowers to what it was given.

mod clamp;
mod raise;
#[cfg(test)]
mod tests;

pub use raise::raise;

use crate::model::{Bytes, Family, Name, Operand, Protocol, Rule, Side, Statement, Verdict};

/// One of the sixteen 32-bit data registers, 0 to 15. A wider value fills the following ones too.
///
/// The kernel has two names for them (`enum nft_registers`): registers 1-4 of 16 bytes and 8-23 of
/// 4 bytes, over the same memory. [`Register::number`] gives the one that nft and the kernel prefer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

impl Register {
    /// Number of registers.
    pub const COUNT: u8 = 16;

    /// The kernel's number: the 16-byte name where one starts here, else the 4-byte name.
    pub const fn number(self) -> u32 {
        let slot = self.0 as u32;
        if slot.is_multiple_of(4) {
            1 + slot / 4
        } else {
            8 + slot
        }
    }

    /// From the kernel's number; `None` for the verdict register (0) and numbers that do not exist.
    pub fn from_number(number: u32) -> Option<Register> {
        match number {
            1..=4 => u8::try_from((number - 1) * 4).ok().map(Register),
            8..=23 => u8::try_from(number - 8).ok().map(Register),
            _ => None,
        }
    }
}

/// Where a payload load counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// Start of the IPv4 or IPv6 header.
    Network,
    /// Start of the TCP, UDP or SCTP header.
    Transport,
}

/// A field of the conntrack entry (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// `NFT_CT_STATUS`: 4 bytes in host order, see [`IPS_DST_NAT`].
    Status,
    /// `NFT_CT_DST_IP` (4 bytes) or `NFT_CT_DST_IP6` (16 bytes), direction original.
    OriginalDestinationAddress,
    /// `NFT_CT_PROTO_DST`: 2 bytes in network order, direction original.
    OriginalDestinationPort,
    /// `NFT_CT_SRC_IP` (4 bytes) or `NFT_CT_SRC_IP6` (16 bytes), direction reply.
    ReplySourceAddress,
    /// `NFT_CT_PROTO_SRC`: 2 bytes in network order, direction reply.
    ReplySourcePort,
}

/// What a lookup does on a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LookupResult {
    /// Goes on with the next expression; a miss ends the rule.
    Member,
    /// A hit ends the rule (`NFT_LOOKUP_F_INV`).
    NotMember,
    /// Copies the element's data to registers from here on; a miss ends the rule.
    Data(Register),
    /// Takes the element's verdict; a miss ends the rule.
    Verdict,
}

/// An expression. They run left to right; each that does not match ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Copies `len` bytes of the packet to registers; the last register is padded with zeros.
    Payload {
        /// Header.
        base: Base,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// First register written.
        dreg: Register,
    },
    /// `meta l4proto`: the protocol number as one byte, padded with zeros.
    MetaL4Proto {
        /// Register written.
        dreg: Register,
    },
    /// `meta priority`: 4 bytes in host order.
    MetaPriority {
        /// Register written.
        dreg: Register,
    },
    /// `meta iifname`: [`INTERFACE_NAME_LEN`] bytes, padded with zeros; empty where there is no interface.
    MetaInputName {
        /// First register written.
        dreg: Register,
    },
    /// `meta oifname`, like [`Expr::MetaInputName`].
    MetaOutputName {
        /// First register written.
        dreg: Register,
    },
    /// `rt mtu`: the largest TCP segment that fits the routes of the packet, 2 bytes in host order.
    RouteMaxseg {
        /// Register written.
        dreg: Register,
    },
    /// Turns 2 bytes from host to network order, in place.
    ToNetworkOrder {
        /// Register read and written.
        register: Register,
    },
    /// `tcp option maxseg size set`: from 2 bytes in network order.
    SetMaxseg {
        /// Register read.
        sreg: Register,
    },
    /// `meta priority set`: from 4 bytes in host order.
    SetPriority {
        /// Register read.
        sreg: Register,
    },
    /// `fib saddr type` or `fib daddr type`: 4 bytes in host order, see [`RTN_LOCAL`].
    FibType {
        /// Of which address.
        of: Side,
        /// Register written.
        dreg: Register,
    },
    /// Reads a field of the conntrack entry.
    Ct {
        /// Field.
        key: CtKey,
        /// First register written.
        dreg: Register,
    },
    /// Register contents equal (or not equal) to constant bytes.
    Cmp {
        /// First register compared.
        sreg: Register,
        /// `==`, else `!=`.
        equal: bool,
        /// Bytes, unpadded.
        data: Bytes,
    },
    /// `dreg = (sreg & mask) ^ xor`, over the length of the mask.
    Bitwise {
        /// First register read.
        sreg: Register,
        /// First register written.
        dreg: Register,
        /// Mask.
        mask: Bytes,
        /// Same length as the mask.
        xor: Bytes,
    },
    /// Looks the key at `sreg`, as long as the set's keys, up in a set or map.
    Lookup {
        /// Set or map.
        set: Name,
        /// First register of the key.
        sreg: Register,
        /// What a hit does.
        result: LookupResult,
    },
    /// Sets the verdict.
    Immediate {
        /// Verdict.
        verdict: Verdict,
    },
    /// Writes constant bytes to registers.
    ImmediateValue {
        /// First register written.
        dreg: Register,
        /// Bytes, unpadded.
        data: Bytes,
    },
    /// Adds an element to a map, or restarts its time-out (`NFT_DYNSET_OP_UPDATE`); a full map ends the rule.
    Update {
        /// Map.
        map: Name,
        /// First register of the key.
        key: Register,
        /// First register of the data.
        data: Register,
        /// Time-out in seconds.
        seconds: u32,
    },
    /// `symhash mod N` as 4 bytes in host order.
    SymHash {
        /// N.
        modulus: u32,
        /// Register written.
        dreg: Register,
    },
    /// Destination NAT to the address and port (network order) in registers; ends the base chain.
    DestinationNat {
        /// First register of the address.
        address: Register,
        /// Register of the port.
        port: Register,
    },
    /// Counts packets and bytes; the counter is not read.
    Counter,
    /// Exempts the packet from connection tracking.
    NoTrack,
    /// Ends the rule above this rate.
    Limit {
        /// Packets per second.
        per_second: u32,
        /// Packets at once.
        burst: u32,
    },
    /// `meta nftrace set`: from the first byte of a register.
    SetTrace {
        /// Register read.
        sreg: Register,
    },
    /// `masquerade`.
    Masquerade,
    /// Rejects with ICMP port unreachable.
    Reject,
    /// Rejects with a TCP reset.
    RejectReset,
    /// An expression outside the closed set, as the kernel names it. Never lowered, only observed.
    Unknown {
        /// `NFTA_EXPR_NAME`.
        name: String,
    },
}

/// `IPS_DST_NAT` of `nf_conntrack_common.h`: destination NAT was applied.
pub const IPS_DST_NAT: u32 = 1 << 5;

/// `RTN_LOCAL` of `linux/rtnetlink.h`: an address of this node.
pub const RTN_LOCAL: u32 = 2;

/// `IFNAMSIZ`
pub const INTERFACE_NAME_LEN: usize = 16;

/// Offset of the port in TCP, UDP and SCTP headers alike.
const DESTINATION_PORT_OFFSET: u32 = 2;

/// Offset of the source address in the IPv4 (RFC 791) and IPv6 (RFC 8200) headers.
const fn source_offset(family: Family) -> u32 {
    match family {
        Family::Ip => 12,
        Family::Ip6 => 8,
    }
}

/// Offset of the destination address.
const fn destination_offset(family: Family) -> u32 {
    source_offset(family) + family.address_len() as u32
}

impl Expr {
    /// The kernel's name of the expression's kind.
    pub fn kernel_name(&self) -> &str {
        match self {
            Expr::Payload { .. } => "payload",
            Expr::MetaL4Proto { .. }
            | Expr::MetaPriority { .. }
            | Expr::MetaInputName { .. }
            | Expr::MetaOutputName { .. }
            | Expr::SetPriority { .. }
            | Expr::SetTrace { .. } => "meta",
            Expr::Limit { .. } => "limit",
            Expr::RouteMaxseg { .. } => "rt",
            Expr::ToNetworkOrder { .. } => "byteorder",
            Expr::SetMaxseg { .. } => "exthdr",
            Expr::FibType { .. } => "fib",
            Expr::Update { .. } => "dynset",
            Expr::Ct { .. } => "ct",
            Expr::Cmp { .. } => "cmp",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Lookup { .. } => "lookup",
            Expr::Immediate { .. } | Expr::ImmediateValue { .. } => "immediate",
            Expr::SymHash { .. } => "hash",
            Expr::DestinationNat { .. } => "nat",
            Expr::Counter => "counter",
            Expr::NoTrack => "notrack",
            Expr::Masquerade => "masq",
            Expr::Reject | Expr::RejectReset => "reject",
            Expr::Unknown { name } => name,
        }
    }
}

/// Lowers a rule to the expressions that nft 1.0.6 sends for it.
///
/// Keys wider than the sixteen registers yield registers that do not exist, which the kernel refuses
/// with ERANGE. [`Statement::Unknown`] lowers to [`Expr::Unknown`], which is never sent.
pub fn lower(rule: &Rule, family: Family) -> Vec<Expr> {
    lower_placing(rule, family, |end| end.next_multiple_of(4))
}

/// [`lower`], with another register for the data of [`Statement::UpdateMap`]: a function of the first one after the key.
fn lower_placing(rule: &Rule, family: Family, data: Placement) -> Vec<Expr> {
    let mut out = Vec::with_capacity(rule.statements.len() * 4);
    for statement in &rule.statements {
        lower_statement(statement, family, data, &mut out);
    }
    out
}

type Placement = fn(u8) -> u8;

fn lower_statement(
    statement: &Statement,
    family: Family,
    placement: Placement,
    out: &mut Vec<Expr>,
) {
    match statement {
        Statement::InSet { key, set, negate } => {
            lower_key(key, family, out);
            out.push(lookup(
                set,
                match negate {
                    true => LookupResult::NotMember,
                    false => LookupResult::Member,
                },
            ));
        }
        Statement::ProtocolIs(protocol) => {
            out.push(load(Operand::Protocol, family, FIRST));
            out.push(compare(true, protocol_byte(*protocol)));
        }
        Statement::Equals {
            operand,
            value,
            negate,
        } => {
            lower_key(&[*operand], family, out);
            out.push(compare(!negate, *value));
        }
        Statement::ConnectionIsDnat => out.extend([
            Expr::Ct {
                key: CtKey::Status,
                dreg: FIRST,
            },
            Expr::Bitwise {
                sreg: FIRST,
                dreg: FIRST,
                mask: word(IPS_DST_NAT),
                xor: word(0),
            },
            compare(false, word(0)),
        ]),
        Statement::LocalAddress { of, negate } => {
            let (of, dreg) = (*of, FIRST);
            out.push(Expr::FibType { of, dreg });
            out.push(compare(!negate, word(RTN_LOCAL)));
        }
        Statement::InputInterface {
            name,
            prefix,
            negate,
        } => {
            out.push(Expr::MetaInputName { dreg: FIRST });
            out.push(compare(!negate, interface_name(name, *prefix)));
        }
        Statement::OutputInterface { name } => {
            out.push(Expr::MetaOutputName { dreg: FIRST });
            out.push(compare(true, interface_name(name, false)));
        }
        Statement::ClampMaxseg => clamp::lower(family, out),
        Statement::SetPriority { key, map } => {
            lower_key(key, family, out);
            out.push(lookup(map, LookupResult::Data(FIRST)));
            out.push(Expr::SetPriority { sreg: FIRST });
        }
        Statement::UpdateMap {
            key,
            data,
            map,
            seconds,
        } => {
            lower_key(key, family, out);
            let after_key = Register(placement(registers(key, family)));
            lower_key_at(after_key, data, family, out);
            out.push(Expr::Update {
                map: map.clone(),
                key: FIRST,
                data: after_key,
                seconds: *seconds,
            });
        }
        Statement::VerdictMap { key, map } => {
            lower_key(key, family, out);
            out.push(lookup(map, LookupResult::Verdict));
        }
        Statement::DnatMap { key, map } => {
            lower_key(key, family, out);
            out.push(lookup(map, LookupResult::Data(FIRST)));
            out.push(Expr::DestinationNat {
                address: FIRST,
                port: Register((family.address_len() / 4) as u8),
            });
        }
        Statement::RejectTcpReset => {
            let tcp = Statement::ProtocolIs(Protocol::Tcp);
            lower_statement(&tcp, family, placement, out);
            out.push(Expr::RejectReset);
        }
        keyless => lower_keyless(keyless, out),
    }
}

/// Lowers a statement that reads nothing of the packet.
fn lower_keyless(statement: &Statement, out: &mut Vec<Expr>) {
    let value = |data| Expr::ImmediateValue { dreg: FIRST, data };
    match statement {
        Statement::Counter => out.push(Expr::Counter),
        Statement::NoTrack => out.push(Expr::NoTrack),
        Statement::Limit { per_second, burst } => out.push(Expr::Limit {
            per_second: *per_second,
            burst: *burst,
        }),
        Statement::Trace => {
            let on = Bytes::from_slice(&[1]).unwrap_or_default();
            out.extend([value(on), Expr::SetTrace { sreg: FIRST }]);
        }
        Statement::ClearPriority => {
            out.extend([value(word(0)), Expr::SetPriority { sreg: FIRST }]);
        }
        Statement::Masquerade => out.push(Expr::Masquerade),
        Statement::Reject => out.push(Expr::Reject),
        Statement::Verdict(verdict) => out.push(Expr::Immediate {
            verdict: verdict.clone(),
        }),
        Statement::Unknown(name) => out.push(Expr::Unknown { name: name.clone() }),
        // Lowered by the caller.
        _ => {}
    }
}

/// The register that keys begin at.
const FIRST: Register = Register(0);

fn lookup(set: &Name, result: LookupResult) -> Expr {
    Expr::Lookup {
        set: set.clone(),
        sreg: FIRST,
        result,
    }
}

fn compare(equal: bool, data: Bytes) -> Expr {
    Expr::Cmp {
        sreg: FIRST,
        equal,
        data,
    }
}

/// Loads the parts of a key side by side from register 0 on, as nft does.
fn lower_key(key: &[Operand], family: Family, out: &mut Vec<Expr>) {
    lower_key_at(FIRST, key, family, out);
}

fn lower_key_at(first: Register, key: &[Operand], family: Family, out: &mut Vec<Expr>) {
    let mut slot = first.0;
    for operand in key {
        out.push(load(*operand, family, Register(slot)));
        out.extend(mask(*operand, Register(slot)));
        slot = slot.saturating_add((width(*operand, family) / 4) as u8);
    }
}

/// How many registers a key fills.
fn registers(key: &[Operand], family: Family) -> u8 {
    let bytes: usize = key.iter().map(|operand| width(*operand, family)).sum();
    u8::try_from(bytes / 4).unwrap_or(Register::COUNT)
}

/// Width of an operand in registers, in bytes.
fn width(operand: Operand, family: Family) -> usize {
    match operand {
        Operand::SourceAddress
        | Operand::DestinationAddress
        | Operand::OriginalDestinationAddress
        | Operand::ReplySourceAddress => family.address_len(),
        Operand::Protocol
        | Operand::DestinationPort
        | Operand::OriginalDestinationPort
        | Operand::ReplySourcePort
        | Operand::Group
        | Operand::SymHash { .. } => 4,
        Operand::Transport { len, .. } => usize::from(len).next_multiple_of(4),
    }
}

/// The expression that masks an operand to its prefix, if needed.
fn mask(operand: Operand, register: Register) -> Option<Expr> {
    let Operand::Transport { len, prefix, .. } = operand else {
        return None;
    };
    let bits = |byte: u8| prefix.saturating_sub(byte.saturating_mul(8)).min(8);
    let bytes: Vec<u8> = (0..len)
        .map(|byte| 0xff_u8.checked_shl(8 - u32::from(bits(byte))).unwrap_or(0))
        .collect();
    bytes
        .iter()
        .any(|byte| *byte != 0xff)
        .then(|| Expr::Bitwise {
            sreg: register,
            dreg: register,
            xor: Bytes::from_slice(&vec![0; bytes.len()]).unwrap_or_default(),
            mask: Bytes::from_slice(&bytes).unwrap_or_default(),
        })
}

/// The expression that loads an operand.
fn load(operand: Operand, family: Family, dreg: Register) -> Expr {
    let len = family.address_len() as u32;
    let address = |offset| Expr::Payload {
        base: Base::Network,
        offset,
        len,
        dreg,
    };
    let ct = |key| Expr::Ct { key, dreg };
    match operand {
        Operand::SourceAddress => address(source_offset(family)),
        Operand::DestinationAddress => address(destination_offset(family)),
        Operand::Protocol => Expr::MetaL4Proto { dreg },
        Operand::DestinationPort => Expr::Payload {
            base: Base::Transport,
            offset: DESTINATION_PORT_OFFSET,
            len: 2,
            dreg,
        },
        Operand::OriginalDestinationAddress => ct(CtKey::OriginalDestinationAddress),
        Operand::OriginalDestinationPort => ct(CtKey::OriginalDestinationPort),
        Operand::ReplySourceAddress => ct(CtKey::ReplySourceAddress),
        Operand::ReplySourcePort => ct(CtKey::ReplySourcePort),
        Operand::Group => Expr::MetaPriority { dreg },
        Operand::Transport { offset, len, .. } => Expr::Payload {
            base: Base::Transport,
            offset: offset.into(),
            len: len.into(),
            dreg,
        },
        Operand::SymHash { modulus } => Expr::SymHash { modulus, dreg },
    }
}

/// A protocol number as one unpadded byte.
fn protocol_byte(protocol: Protocol) -> Bytes {
    Bytes::from_slice(&[protocol as u8]).unwrap_or_default()
}

/// A complete name is compared with the zeros after it, a prefix without.
fn interface_name(name: &str, prefix: bool) -> Bytes {
    let mut padded = [0; INTERFACE_NAME_LEN];
    let len = name.len().min(INTERFACE_NAME_LEN - 1);
    padded
        .iter_mut()
        .zip(name.bytes().take(len))
        .for_each(|(place, byte)| *place = byte);
    let compared = padded.get(..if prefix { len } else { INTERFACE_NAME_LEN });
    compared.and_then(Bytes::from_slice).unwrap_or_default()
}

/// A 32-bit value in host order.
fn word(value: u32) -> Bytes {
    Bytes::from_slice(&value.to_ne_bytes()).unwrap_or_default()
}
