//! Tables, sets, chains, rules and elements as values.
//!
//! The set of statements is closed: it has only what our tables use, so that the text writer, the lowering to
//! registers, the fake and every evaluator can `match` on all of it.

mod bytes;

use std::borrow::Cow;

pub use bytes::Bytes;
pub use net_types::{Family, Protocol};

/// Name of a table, set or chain of Portolan's: never of foreign origin.
pub type Name = Cow<'static, str>;

/// A table. `comment` is at most 128 bytes (kernel: NFT_USERDATA_MAXLEN less TLV).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: Name,
    /// Fixed text shown by `nft list`.
    pub comment: Name,
}

/// One part of a set's key. Every part is padded to a multiple of 4 bytes in concatenations
/// (kernel: `NFT_REG32_SIZE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// An address of the table's family: 4 or 16 bytes, network order. As typeof: `ip daddr`.
    Address,
    /// `meta l4proto`: 1 byte.
    Protocol,
    /// `th dport`: 2 bytes, network order.
    Port,
    /// Slot number, 4 bytes in **host** order; typeof `numgen random mod 65536` (nft 1.0.6 crashes
    /// listing a map declared by `typeof ... symhash`, so it is declared by numgen and read by symhash).
    Slot,
    /// `meta priority`: 4 bytes in **host** order. Carries a number from one rule to the next within a chain; see [`Statement::SetPriority`].
    Group,
}

impl Field {
    /// Unpadded width in bytes.
    pub const fn len(self, family: Family) -> usize {
        match self {
            Field::Address => family.address_len(),
            Field::Protocol => 1,
            Field::Port => 2,
            Field::Slot | Field::Group => 4,
        }
    }

    /// Width in a concatenation: padded to 4 bytes.
    pub const fn padded_len(self, family: Family) -> usize {
        self.len(family).next_multiple_of(4)
    }
}

/// One part of a data map's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataField {
    /// `ip daddr`
    Address,
    /// `th dport`
    Port,
    /// `meta priority`
    Group,
}

/// What the elements of a set have beside their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// A plain set.
    Set,
    /// A data map, declared by `typeof` on both sides.
    Map(Vec<DataField>),
    /// A data map that only rules write ([`Statement::UpdateMap`]), and whose elements time out. They are no part of a
    /// table's contents: [`crate::Backend::dynamic_elements`] reads them.
    Dynamic(Vec<DataField>),
    /// A plain set whose elements count the packets that are looked up (Linux 5.7).
    Counters,
    /// A verdict map. Adding an element re-validates the whole map: keep it small.
    VerdictMap,
    /// Observed only: a set not in our form (other types, flags or user data). Writing one is refused.
    Unknown,
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in the table.
    pub name: Name,
    /// Parts of the key. A set with a [`Field::Slot`] is declared by `typeof`, others by `type`.
    pub key: Vec<Field>,
    /// Set, map or verdict map.
    pub kind: SetKind,
    /// `flags interval`: elements are ranges. In a key of several fields each field is a range of its own
    /// (kernel: nft_set_pipapo.c, Linux 5.6); ours differ in the last one only.
    pub interval: bool,
    /// Fixed text shown by `nft list`.
    pub comment: Name,
}

impl Set {
    /// Width of a key in bytes, as the kernel sees it: a lone field is not padded.
    pub fn key_len(&self, family: Family) -> usize {
        match self.key.as_slice() {
            [one] => one.len(family),
            many => many.iter().map(|f| f.padded_len(family)).sum(),
        }
    }
}

impl DataField {
    /// The field of a key that is written and printed alike.
    pub(crate) fn as_key(self) -> Field {
        match self {
            DataField::Address => Field::Address,
            DataField::Port => Field::Port,
            DataField::Group => Field::Group,
        }
    }
}

impl Set {
    /// Whether key and data are declared by `typeof` expressions, which nft keeps in the set's user data, or by
    /// `type` names: there is none for a slot, nor for the port of a data map as nft's `dnat` requires it.
    pub fn declared_by_typeof(&self) -> bool {
        let typed = |field: &Field| !matches!(field, Field::Slot | Field::Group);
        matches!(self.kind, SetKind::Map(_) | SetKind::Dynamic(_)) || !self.key.iter().all(typed)
    }
}

/// Size of a map of [`SetKind::Dynamic`]; when the map is full, rules add nothing until elements have timed out. The
/// kernel allocates the table of buckets at once: 512 KiB for this size, the largest for which it has 65,536 buckets.
pub(crate) const DYNAMIC_SIZE: u32 = 49_152;

/// Where a base chain is hooked, with its priority. `type nat` sees the first packet of each connection only,
/// `type filter` each packet; policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// filter prerouting, before all others (`NF_IP_PRI_FIRST`).
    FirstPrerouting,
    /// filter output, before all others.
    FirstOutput,
    /// nat prerouting, priority dstnat (-100).
    NatPrerouting,
    /// nat input, priority 100: what is received and stays on this node.
    NatInput,
    /// nat output, priority -100.
    NatOutput,
    /// nat postrouting, priority srcnat (100).
    NatPostrouting,
    /// nat postrouting, priority 90: the kernel asks no further chain once one has translated the source.
    BeforeNatPostrouting,
    /// filter prerouting, priority raw (-300): before connection tracking.
    RawPrerouting,
    /// filter output, priority raw (-300): before connection tracking.
    RawOutput,
    /// filter input, priority -10: before foreign filters.
    FilterInput,
    /// filter forward, priority -10: before foreign filters.
    FilterForward,
    /// filter postrouting, priority -10: each packet that leaves, of this node or forwarded, when its interface is decided.
    FilterPostrouting,
    /// Observed only: another type, hook, priority or policy. Writing one is refused.
    Unknown,
}

impl Hook {
    /// All that can be written.
    pub const KNOWN: [Hook; 12] = [
        Hook::FirstPrerouting,
        Hook::FirstOutput,
        Hook::NatPrerouting,
        Hook::NatInput,
        Hook::NatOutput,
        Hook::NatPostrouting,
        Hook::BeforeNatPostrouting,
        Hook::RawPrerouting,
        Hook::RawOutput,
        Hook::FilterInput,
        Hook::FilterForward,
        Hook::FilterPostrouting,
    ];
}

/// A chain with all its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in the table.
    pub name: Name,
    /// `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// Fixed text shown by `nft list`.
    pub comment: Name,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A rule: its statements are evaluated left to right until one does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Statements in order.
    pub statements: Vec<Statement>,
}

impl From<Vec<Statement>> for Rule {
    fn from(statements: Vec<Statement>) -> Self {
        Rule { statements }
    }
}

/// Something read from the packet or its connection, for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `ip saddr` / `ip6 saddr`
    SourceAddress,
    /// `ip daddr` / `ip6 daddr`
    DestinationAddress,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    DestinationPort,
    /// `ct original ip daddr` / `ct original ip6 daddr`
    OriginalDestinationAddress,
    /// `ct original proto-dst`; the rule must also hold [`Statement::ProtocolIs`] (nft's grammar).
    OriginalDestinationPort,
    /// `@th,OFFSET,LEN`: bytes after the start of the transport header, of which the first
    /// `prefix` bits are compared. nft lists it; in a key of several parts it does not load it (1.0.6: "datatype mismatch").
    Transport {
        /// First byte.
        offset: u8,
        /// Bytes, 1 to 16.
        len: u8,
        /// Leading bits that are read; the others are zero.
        prefix: u8,
    },
    /// `ct reply ip saddr` / `ct reply ip6 saddr`: the endpoint, after destination NAT.
    ReplySourceAddress,
    /// `ct reply proto-src`; the rule must also hold [`Statement::ProtocolIs`].
    ReplySourcePort,
    /// `meta priority`; see [`Field::Group`].
    Group,
    /// `symhash mod N`: symmetric hash of the flow, keyed per boot (kernel: nft_hash.c).
    SymHash {
        /// N, at least 1.
        modulus: u32,
    },
}

/// One of a packet's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Verdicts of rules and of verdict map elements.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// End of the base chain: the packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Call a chain.
    Jump(Name),
    /// Call a chain without coming back here.
    Goto(Name),
}

impl Verdict {
    /// The chain that is called, if any.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        }
    }
}

/// The closed set of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `KEY @set` or, negated, `KEY != @set`.
    InSet {
        /// Parts of the key, concatenated.
        key: Vec<Operand>,
        /// Set looked in.
        set: Name,
        /// `!=`
        negate: bool,
    },
    /// `meta l4proto tcp`
    ProtocolIs(Protocol),
    /// `OPERAND VALUE` or, negated, `OPERAND != VALUE`: for operands of up to 16 bytes without a mask.
    Equals {
        /// What is compared; an address, [`Operand::DestinationPort`] or [`Operand::Transport`].
        operand: Operand,
        /// As many bytes as the operand has.
        value: Bytes,
        /// `!=`
        negate: bool,
    },
    /// `ct status dnat`: destination NAT was applied to this connection.
    ConnectionIsDnat,
    /// `counter`: counts packets and bytes. Its value is no part of the rule.
    Counter,
    /// `notrack`: no connection tracking for this packet.
    NoTrack,
    /// `limit rate N/second burst M packets`: ends the rule above this rate.
    Limit {
        /// N, at least 1.
        per_second: u32,
        /// M, at least 1.
        burst: u32,
    },
    /// `meta nftrace set 1`: the kernel reports what later rules do with this packet ([`crate::trace`]).
    Trace,
    /// `fib saddr type local`: the address is one of this node's. Negated, `!= local`.
    LocalAddress {
        /// Whose address.
        of: Side,
        /// `!=`
        negate: bool,
    },
    /// `iifname "cni0"`, or for a prefix `iifname "veth*"`. Packets that this node sends have no input interface.
    InputInterface {
        /// Name or prefix, 1 to 15 bytes.
        name: Name,
        /// Whether `name` is a prefix.
        prefix: bool,
        /// `!=`
        negate: bool,
    },
    /// `oifname "flannel.1"`: the interface that the packet leaves by.
    OutputInterface {
        /// Name, 1 to 15 bytes.
        name: Name,
    },
    /// `tcp flags syn tcp option maxseg size set rt mtu`: a connection's segments fit the routes of its packets, both ways. The
    /// kernel makes the option smaller only (`nft_exthdr_tcp_set_eval`).
    ClampMaxseg,
    /// `meta priority set KEY map @map`: stores a number for the next rules; a miss goes on with the next rule.
    ///
    /// The packet's priority is the only field besides marks that rules can write and that nft can print as part of a
    /// key. Queueing disciplines use the priority, so [`Statement::ClearPriority`] must follow before the packet
    /// leaves.
    SetPriority {
        /// Parts of the key.
        key: Vec<Operand>,
        /// Data map of [`DataField::Group`].
        map: Name,
    },
    /// `meta priority set none`
    ClearPriority,
    /// `update @map { KEY timeout Ns : DATA }`: adds an element, or restarts its time-out. A full map ends the rule.
    UpdateMap {
        /// Parts of the key.
        key: Vec<Operand>,
        /// Parts of the data.
        data: Vec<Operand>,
        /// Map of [`SetKind::Dynamic`].
        map: Name,
        /// Time-out in seconds, at least 1.
        seconds: u32,
    },
    /// `KEY vmap @map`; a miss goes on with the next rule.
    VerdictMap {
        /// Parts of the key.
        key: Vec<Operand>,
        /// Verdict map.
        map: Name,
    },
    /// `dnat ip to KEY map @map`: destination address and port from the map; a miss goes on with the
    /// next rule, a hit ends the base chain.
    DnatMap {
        /// Parts of the key.
        key: Vec<Operand>,
        /// Data map of address and port.
        map: Name,
    },
    /// `masquerade`: keeps the client's port where no other connection has it, so that a connection whose conntrack
    /// entry is lost is translated as before.
    Masquerade,
    /// `reject`: ICMP port unreachable.
    Reject,
    /// `reject with tcp reset`, for TCP only; others go on with the next rule. An ICMP error that comes back
    /// while `connect` still holds its socket counts as a soft one, and the client would wait a second for
    /// its next try (kernel: tcp_v4_err); a reset ends it at once.
    RejectTcpReset,
    /// A verdict.
    Verdict(Verdict),
    /// Observed only: a rule not in our form, as the names of its kernel expressions. Equals no statement
    /// of ours; writing one is refused.
    Unknown(String),
}

impl Statement {
    /// The set or map that the statement refers to.
    pub fn set(&self) -> Option<&Name> {
        match self {
            Statement::InSet { set, .. } => Some(set),
            Statement::VerdictMap { map, .. }
            | Statement::DnatMap { map, .. }
            | Statement::SetPriority { map, .. }
            | Statement::UpdateMap { map, .. } => Some(map),
            _ => None,
        }
    }
}

/// The data of an element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Plain set: nothing.
    None,
    /// Data map: the value, parts padded to 4 bytes.
    Value(Bytes),
    /// Verdict map.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Key; for interval sets the first value of the range.
    pub key: Bytes,
    /// Interval sets: last value of the range, inclusive. Boxed: only few elements have one.
    pub last: Option<Box<Bytes>>,
    /// Data.
    pub data: Data,
}

impl Element {
    /// A member of a plain set.
    pub fn member(key: Bytes) -> Self {
        Element {
            key,
            last: None,
            data: Data::None,
        }
    }

    /// A key of a data map with its value.
    pub fn value(key: Bytes, value: Bytes) -> Self {
        Element {
            key,
            last: None,
            data: Data::Value(value),
        }
    }

    /// A key of a verdict map.
    pub fn verdict(key: Bytes, verdict: Verdict) -> Self {
        Element {
            key,
            last: None,
            data: Data::Verdict(verdict),
        }
    }

    /// A range of an interval set, both ends inclusive.
    pub fn range(first: Bytes, last: Bytes) -> Self {
        Element {
            key: first,
            last: Some(Box::new(last)),
            data: Data::None,
        }
    }
}
