//! Tables and their parts as text, as `nft list ruleset` (1.0.6) prints them.
//!
//! Owns the one spelling of every value of [`crate::model`]. What [`table`] prints, `nft -f` loads into a
//! namespace that has no such table, to the same state as the same contents committed over netlink, and
//! nft lists it back with the same lines. Nothing here reads text, and no text of foreign origin is printed:
//! names and comments are ours. What was observed and is not in our form is printed as a `#` comment.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use crate::model::{
    Chain, DYNAMIC_SIZE, Data, DataField, Element, Family, Field, Hook, Operand, Rule, Set,
    SetKind, Side, Statement, Table, Verdict,
};
use crate::transaction::TableContents;

mod transaction;

pub use transaction::TransactionText;

/// What nft puts before the second and later lines of elements.
const ELEMENTS_INDENT: &str = "\t\t\t     ";

/// A whole table as `nft list` prints it: sets and maps by name, then chains by name. Loads with `nft -f`
/// into a namespace without that table.
pub fn table(contents: &TableContents) -> String {
    contents.to_string()
}

impl fmt::Display for TableContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table {
            family,
            name,
            comment,
        } = &self.table;
        writeln!(f, "table {family} {name} {{")?;
        write_comment(f, "\t", comment)?;
        let mut separator = "";
        for set in self.sets.values() {
            f.write_str(separator)?;
            let elements = self.elements.get(&set.name).map(Vec::as_slice);
            write_set(f, *family, set, elements.unwrap_or_default())?;
            separator = "\n";
        }
        for chain in self.chains.values() {
            f.write_str(separator)?;
            write_chain(f, *family, chain)?;
            separator = "\n";
        }
        f.write_str("}\n")
    }
}

fn write_comment(f: &mut fmt::Formatter<'_>, indent: &str, comment: &str) -> fmt::Result {
    if comment.is_empty() {
        return Ok(());
    }
    writeln!(f, "{indent}comment \"{comment}\"")
}

fn write_set(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    set: &Set,
    elements: &[Element],
) -> fmt::Result {
    writeln!(f, "\t{} {} {{", set_keyword(set), set.name)?;
    writeln!(f, "\t\t{}", DeclarationText { family, set })?;
    match set.kind {
        SetKind::Dynamic(_) => {
            writeln!(f, "\t\tsize {DYNAMIC_SIZE}\n\t\tflags dynamic,timeout")?;
        }
        SetKind::Counters => writeln!(f, "\t\tcounter")?,
        _ if set.interval => writeln!(f, "\t\tflags interval")?,
        _ => {}
    }
    write_comment(f, "\t\t", &set.comment)?;
    if !elements.is_empty() {
        f.write_str("\t\telements = { ")?;
        // Two to a line or one, as nft does it (expression.c: calculate_delim).
        let per_line = match (family, set.key.as_slice(), &set.kind) {
            (Family::Ip, [Field::Address], SetKind::Set) => 2,
            _ => 1,
        };
        for (index, element) in elements.iter().enumerate() {
            match index {
                0 => {}
                _ if index % per_line == 0 => write!(f, ",\n{ELEMENTS_INDENT}")?,
                _ => f.write_str(", ")?,
            }
            write!(
                f,
                "{}",
                ElementText {
                    family,
                    set,
                    element
                }
            )?;
        }
        f.write_str(" }\n")?;
    }
    f.write_str("\t}\n")
}

fn write_chain(f: &mut fmt::Formatter<'_>, family: Family, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {} {{", chain.name)?;
    write_comment(f, "\t\t", &chain.comment)?;
    if let Some(hook) = chain.hook {
        writeln!(f, "\t\t{hook}")?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", RuleText { family, rule })?;
    }
    f.write_str("\t}\n")
}

fn set_keyword(set: &Set) -> &'static str {
    match set.kind {
        SetKind::Set | SetKind::Counters | SetKind::Unknown => "set",
        SetKind::Map(_) | SetKind::Dynamic(_) | SetKind::VerdictMap => "map",
    }
}

impl fmt::Display for Hook {
    /// `type nat hook prerouting priority dstnat; policy accept;`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // nft knows the name dstnat at prerouting only, srcnat at postrouting.
        f.write_str(match self {
            Hook::FirstPrerouting => {
                "type filter hook prerouting priority -2147483648; policy accept;"
            }
            Hook::FirstOutput => "type filter hook output priority -2147483648; policy accept;",
            Hook::NatPrerouting => "type nat hook prerouting priority dstnat; policy accept;",
            Hook::NatInput => "type nat hook input priority 100; policy accept;",
            Hook::NatOutput => "type nat hook output priority -100; policy accept;",
            Hook::NatPostrouting => "type nat hook postrouting priority srcnat; policy accept;",
            Hook::BeforeNatPostrouting => {
                "type nat hook postrouting priority srcnat - 10; policy accept;"
            }
            Hook::RawPrerouting => "type filter hook prerouting priority raw; policy accept;",
            Hook::RawOutput => "type filter hook output priority raw; policy accept;",
            Hook::FilterInput => "type filter hook input priority filter - 10; policy accept;",
            Hook::FilterForward => "type filter hook forward priority filter - 10; policy accept;",
            Hook::FilterPostrouting => {
                "type filter hook postrouting priority filter - 10; policy accept;"
            }
            Hook::Unknown => "# hooked in a way that is not ours",
        })
    }
}

/// What a set declares of its key and data: `type ipv4_addr . inet_proto` or `typeof ip daddr : th dport`.
#[derive(Clone, Copy, Debug)]
pub struct DeclarationText<'a> {
    /// Family of its table.
    pub family: Family,
    /// The set.
    pub set: &'a Set,
}

impl fmt::Display for DeclarationText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family;
        if self.set.kind == SetKind::Unknown {
            return f.write_str("# declared in a way that is not ours");
        }
        let by_typeof = self.set.declared_by_typeof();
        f.write_str(if by_typeof { "typeof " } else { "type " })?;
        write_joined(f, &self.set.key, |f, field| match (field, by_typeof) {
            (Field::Address, true) => write!(f, "{family} daddr"),
            (Field::Address, false) => f.write_str(match family {
                Family::Ip => "ipv4_addr",
                Family::Ip6 => "ipv6_addr",
            }),
            (Field::Protocol, true) => f.write_str("meta l4proto"),
            (Field::Protocol, false) => f.write_str("inet_proto"),
            (Field::Port, true) => f.write_str("th dport"),
            (Field::Port, false) => f.write_str("inet_service"),
            (Field::Slot, _) => f.write_str("numgen random mod 65536"),
            (Field::Group, _) => f.write_str("meta priority"),
        })?;
        match &self.set.kind {
            SetKind::Set | SetKind::Counters | SetKind::Unknown => Ok(()),
            SetKind::VerdictMap => f.write_str(" : verdict"),
            SetKind::Map(data) | SetKind::Dynamic(data) => {
                f.write_str(" : ")?;
                write_joined(f, data, |f, field| match field {
                    DataField::Address => write!(f, "{family} daddr"),
                    DataField::Port => f.write_str("th dport"),
                    DataField::Group => f.write_str("meta priority"),
                })
            }
        }
    }
}

/// An element as nft prints it in its set: `10.96.0.1 . tcp . 80 . 0 : 10.244.1.5 . 8080`.
/// A key or value that is not as wide as the set says is printed in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct ElementText<'a> {
    /// Family of the table.
    pub family: Family,
    /// Set or map it belongs to.
    pub set: &'a Set,
    /// The element.
    pub element: &'a Element,
}

impl fmt::Display for ElementText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, set) = (self.family, self.set);
        let first = self.element.key.as_slice();
        match &self.element.last {
            None => write_fields(f, family, &set.key, first)?,
            Some(last) => write_range(f, family, &set.key, first, last.as_slice())?,
        }
        match (&self.element.data, &set.kind) {
            // As nft prints a counter at zero.
            (Data::None, SetKind::Counters) => f.write_str(" counter packets 0 bytes 0"),
            (Data::None, _) => Ok(()),
            (Data::Verdict(verdict), _) => write!(f, " : {verdict}"),
            (Data::Value(value), SetKind::Map(data) | SetKind::Dynamic(data)) => {
                f.write_str(" : ")?;
                let fields: SmallVec<[Field; 2]> =
                    data.iter().map(|field| field.as_key()).collect();
                write_fields(f, family, &fields, value.as_slice())
            }
            (Data::Value(value), _) => write!(f, " : {value:?}"),
        }
    }
}

/// The parts of `raw`, each in its notation, joined by ` . `.
fn write_fields(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    fields: &[Field],
    raw: &[u8],
) -> fmt::Result {
    let mut rest = raw;
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            f.write_str(" . ")?;
        }
        let width = if fields.len() == 1 {
            field.len(family)
        } else {
            field.padded_len(family)
        };
        let Some((part, after)) = rest.split_at_checked(width) else {
            return write_hex(f, rest);
        };
        rest = after;
        write_field(f, *field, part.get(..field.len(family)).unwrap_or_default())?;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        write_hex(f, rest)
    }
}

fn write_field(f: &mut fmt::Formatter<'_>, field: Field, raw: &[u8]) -> fmt::Result {
    match (field, raw) {
        (Field::Address, &[a, b, c, d]) => write!(f, "{}", Ipv4Addr::new(a, b, c, d)),
        (Field::Address, raw) => match <[u8; 16]>::try_from(raw) {
            Ok(octets) => write!(f, "{}", Ipv6Addr::from(octets)),
            Err(_) => write_hex(f, raw),
        },
        (Field::Protocol, [6]) => f.write_str("tcp"),
        (Field::Protocol, [17]) => f.write_str("udp"),
        (Field::Protocol, [132]) => f.write_str("sctp"),
        (Field::Protocol, [number]) => write!(f, "{number}"),
        (Field::Port, &[high, low]) => write!(f, "{}", u16::from_be_bytes([high, low])),
        (Field::Slot, &[a, b, c, d]) => write!(f, "{}", u32::from_ne_bytes([a, b, c, d])),
        (Field::Group, &[a, b, c, d]) => write_group(f, u32::from_ne_bytes([a, b, c, d])),
        (_, raw) => write_hex(f, raw),
    }
}

/// As nft prints a traffic class (nft's meta.c: `tchandle_type_print`).
fn write_group(f: &mut fmt::Formatter<'_>, group: u32) -> fmt::Result {
    match group {
        0 => f.write_str("none"),
        u32::MAX => f.write_str("root"),
        _ => write!(f, "{:x}:{:x}", group >> 16, group & 0xffff),
    }
}

/// As nft prints a time-out (nft's datatype.c: `time_print`).
fn write_seconds(f: &mut fmt::Formatter<'_>, seconds: u32) -> fmt::Result {
    let parts = [
        (seconds / 86400, 'd'),
        (seconds / 3600 % 24, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ];
    let mut parts = parts.iter().filter(|(number, _)| *number > 0);
    parts.try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
}

fn write_hex(f: &mut fmt::Formatter<'_>, raw: &[u8]) -> fmt::Result {
    f.write_str("0x")?;
    raw.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// `first-last`, or for addresses a prefix when the range is one, or the address alone.
fn write_range(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    fields: &[Field],
    first: &[u8],
    last: &[u8],
) -> fmt::Result {
    if let ([before @ .., range], true) = (fields, fields.len() > 1) {
        let at = before.iter().map(|field| field.padded_len(family)).sum();
        let (Some((same, first)), Some((_, last))) =
            (first.split_at_checked(at), last.split_at_checked(at))
        else {
            return write_hex(f, first);
        };
        write_fields(f, family, before, same)?;
        f.write_str(" . ")?;
        return write_range(f, family, &[*range], first, last);
    }
    write_fields(f, family, fields, first)?;
    if first == last {
        return Ok(());
    }
    if fields == [Field::Address]
        && let Some(length) = prefix_length(first, last)
    {
        return write!(f, "/{length}");
    }
    f.write_str("-")?;
    write_fields(f, family, fields, last)
}

/// Length of the prefix that holds exactly the addresses from `first` to `last`, both in network order.
fn prefix_length(first: &[u8], last: &[u8]) -> Option<u32> {
    let number = |raw: &[u8]| {
        raw.iter()
            .fold(0u128, |sum, byte| (sum << 8) | u128::from(*byte))
    };
    let (low, high) = (number(first), number(last));
    let host_bits = low ^ high;
    let is_prefix = host_bits & host_bits.wrapping_add(1) == 0 && low & host_bits == 0;
    let width = 8 * u32::try_from(first.len()).ok()?;
    (is_prefix && first.len() == last.len()).then(|| width - host_bits.count_ones())
}

/// A rule as nft prints it, without line end.
#[derive(Clone, Copy, Debug)]
pub struct RuleText<'a> {
    /// Family of the table.
    pub family: Family,
    /// The rule.
    pub rule: &'a Rule,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.rule.statements.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write_statement(f, self.family, statement)?;
        }
        Ok(())
    }
}

fn write_statement(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    statement: &Statement,
) -> fmt::Result {
    let text = |key| KeyText { family, key };
    let not = |negate: &bool| if *negate { "!= " } else { "" };
    match statement {
        Statement::InSet { key, set, negate } => {
            write!(f, "{} {}@{set}", text(key), not(negate))
        }
        Statement::ProtocolIs(protocol) => write!(f, "meta l4proto {}", protocol.keyword()),
        Statement::Equals {
            operand,
            value,
            negate,
        } => {
            write!(f, "{} {}", text(&[*operand]), not(negate))?;
            write_operand_value(f, *operand, value.as_slice())
        }
        Statement::Counter => f.write_str("counter"),
        Statement::NoTrack => f.write_str("notrack"),
        Statement::Limit { per_second, burst } => {
            write!(f, "limit rate {per_second}/second burst {burst} packets")
        }
        Statement::Trace => f.write_str("meta nftrace set 1"),
        Statement::ConnectionIsDnat => f.write_str("ct status dnat"),
        Statement::LocalAddress { of, negate } => {
            let side = match of {
                Side::Source => "saddr",
                Side::Destination => "daddr",
            };
            write!(f, "fib {side} type {}local", not(negate))
        }
        Statement::InputInterface {
            name,
            prefix,
            negate,
        } => {
            let star = if *prefix { "*" } else { "" };
            write!(f, "iifname {}\"{name}{star}\"", not(negate))
        }
        Statement::OutputInterface { name } => write!(f, "oifname \"{name}\""),
        Statement::ClampMaxseg => f.write_str("tcp flags syn tcp option maxseg size set rt mtu"),
        Statement::SetPriority { key, map } => {
            write!(f, "meta priority set {} map @{map}", text(key))
        }
        Statement::ClearPriority => f.write_str("meta priority set none"),
        Statement::UpdateMap {
            key,
            data,
            map,
            seconds,
        } => {
            write!(f, "update @{map} {{ {} timeout ", text(key))?;
            write_seconds(f, *seconds)?;
            write!(f, " : {} }}", text(data))
        }
        Statement::VerdictMap { key, map } => write!(f, "{} vmap @{map}", text(key)),
        Statement::DnatMap { key, map } => {
            write!(f, "dnat {family} to {} map @{map}", text(key))
        }
        Statement::Masquerade => f.write_str("masquerade"),
        Statement::Reject => f.write_str("reject"),
        Statement::RejectTcpReset => f.write_str("reject with tcp reset"),
        Statement::Verdict(verdict) => write!(f, "{verdict}"),
        Statement::Unknown(expressions) => write!(f, "# unknown rule: {expressions}"),
    }
}

/// The value that an operand is compared with.
fn write_operand_value(f: &mut fmt::Formatter<'_>, operand: Operand, value: &[u8]) -> fmt::Result {
    match operand {
        Operand::DestinationPort => write_field(f, Field::Port, value),
        Operand::SourceAddress | Operand::DestinationAddress => {
            write_field(f, Field::Address, value)
        }
        _ => {
            let fold = |sum: u128, byte: &u8| sum << 8 | u128::from(*byte);
            write!(f, "{:#x}", value.iter().fold(0, fold))
        }
    }
}

/// A concatenation of operands.
struct KeyText<'a> {
    family: Family,
    key: &'a [Operand],
}

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family;
        write_joined(f, self.key, |f, operand| match operand {
            Operand::SourceAddress => write!(f, "{family} saddr"),
            Operand::DestinationAddress => write!(f, "{family} daddr"),
            Operand::Protocol => f.write_str("meta l4proto"),
            Operand::DestinationPort => f.write_str("th dport"),
            Operand::OriginalDestinationAddress => write!(f, "ct original {family} daddr"),
            Operand::OriginalDestinationPort => f.write_str("ct original proto-dst"),
            Operand::Transport {
                offset,
                len,
                prefix,
            } => {
                let (start, bits) = (u32::from(offset) * 8, u32::from(len) * 8);
                write!(f, "@th,{start},{bits}")?;
                let masked = bits.saturating_sub(prefix.into());
                if masked > 0 && bits <= 128 {
                    let mask =
                        (u128::MAX >> (128 - bits)).checked_shr(masked).unwrap_or(0) << masked;
                    write!(f, " & {mask:#x}")?;
                }
                Ok(())
            }
            Operand::ReplySourceAddress => write!(f, "ct reply {family} saddr"),
            Operand::ReplySourcePort => f.write_str("ct reply proto-src"),
            Operand::Group => f.write_str("meta priority"),
            Operand::SymHash { modulus } => write!(f, "symhash mod {modulus}"),
        })
    }
}

/// Parts of a concatenation.
fn write_joined<T: Copy>(
    f: &mut fmt::Formatter<'_>,
    parts: &[T],
    mut write: impl FnMut(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(" . ")?;
        }
        write(f, *part)?;
    }
    Ok(())
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

#[cfg(test)]
mod tests;
