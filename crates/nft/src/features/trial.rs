//! The messages by which features are tried, all on one table of their own. Written by hand, since the model of our
//! table does not have all of them.

use netlink::{Malformed, Message, Writer, flag};

use super::Feature;
use crate::expr::Register;
use crate::kernel::delete_table;
use crate::model::Hook;
use crate::wire::abi::{self, conntrack, message};
use crate::wire::encode::{Encoder, TRIAL_TABLE, TableFlags};
use crate::wire::header::attributes;
use crate::wire::hook::chain_type;
use crate::wire::udata;

const CHAIN: &str = "trial";
const SET: &str = "trial";

/// Widths in bytes.
const ADDRESS: u32 = 4;
const PROTOCOL: u32 = 4;
const PORT: u32 = 4;

/// Messages that the kernel accepts if it has the feature, and that change nothing altogether: the last one deletes the
/// table. Each feature has a table of its own.
pub(crate) fn write(feature: Feature, out: &mut Encoder<'_>) {
    let flags = match feature {
        Feature::TableOwner => TableFlags::TIED,
        Feature::TablePersist => TableFlags::PERSISTENT,
        _ => TableFlags::default(),
    };
    out.trial_table(flags.bits(), flag::EXCL, "");
    add_contents(feature, out);
    delete_table(out);
}

fn add_contents(feature: Feature, out: &mut Encoder<'_>) {
    if matches!(feature, Feature::TableOwner | Feature::TablePersist) {
        return;
    }
    add_chain(out, None, "");
    let (first, second) = (Register(0), Register(1));
    match feature {
        Feature::SymHash => add_rule(out, |out| symhash(out, first)),
        Feature::Masquerade => add_rule(out, |out| expression(out, "masq", |_| {})),
        Feature::Fib => add_rule(out, |out| {
            expression(out, "fib", |out| {
                out.put_u32(abi::fib::DREG, first.number());
                out.put_u32(abi::fib::RESULT, abi::fib::ADDRESS_TYPE);
                out.put_u32(abi::fib::FLAGS, abi::fib::DESTINATION);
            });
        }),
        Feature::NatByMap => {
            add_set(out, abi::set::MAP, ADDRESS, Some(ADDRESS + PORT), &[]);
            add_rule(out, |out| {
                destination_address(out, first);
                expression(out, "lookup", |out| {
                    out.put_u32(abi::lookup::SREG, first.number());
                    out.put_u32(abi::lookup::DREG, first.number());
                    out.put_str(abi::lookup::SET, SET);
                });
                expression(out, "nat", |out| {
                    out.put_u32(abi::nat::TYPE, abi::nat::DESTINATION);
                    out.put_u32(abi::nat::FAMILY, 2);
                    out.put_u32(abi::nat::ADDRESS, first.number());
                    out.put_u32(abi::nat::PORT, second.number());
                });
            });
        }
        Feature::IntervalConcatenation => {
            let fields = [ADDRESS, PROTOCOL, PORT, ADDRESS];
            let flags = abi::set::INTERVAL | abi::set::CONCATENATION;
            add_set(out, flags, fields.iter().sum(), None, &fields);
        }
        Feature::DynamicMaps => {
            let flags = abi::set::MAP | abi::set::DYNAMIC | abi::set::TIMEOUT;
            add_set(out, flags, ADDRESS, Some(ADDRESS), &[]);
            add_rule(out, |out| {
                destination_address(out, first);
                destination_address(out, second);
                expression(out, "dynset", |out| {
                    out.put_str(abi::dynset::SET, SET);
                    out.put_u32(abi::dynset::OP, abi::dynset::UPDATE);
                    out.put_u32(abi::dynset::KEY, first.number());
                    out.put_u32(abi::dynset::DATA, second.number());
                });
            });
        }
        // Tried otherwise.
        Feature::TableOwner
        | Feature::TablePersist
        | Feature::RejectInNat
        | Feature::Comments
        | Feature::ConntrackFilter => {}
    }
}

/// A table that no packet reaches, with a NAT chain, both with a comment.
pub(crate) fn add_dormant(out: &mut Encoder<'_>, owner: bool) {
    let owned = if owner { TableFlags::TIED.bits() } else { 0 };
    out.trial_table(abi::table::DORMANT | owned, 0, COMMENT);
    // Hook prerouting, after all other chains.
    add_chain(out, Some((0, 1000)), COMMENT);
}

/// A rule that the kernel refuses, at the commit, at hooks where `reject` is invalid.
pub(crate) fn add_reject(out: &mut Encoder<'_>) {
    add_rule(out, |out| {
        expression(out, "reject", |out| {
            out.put_u32(abi::reject::TYPE, abi::reject::ICMP);
            out.put(abi::reject::CODE, &[abi::reject::PORT_UNREACHABLE]);
        });
    });
}

/// The name of the dormant table; in a request for chains or for the table.
pub(crate) fn put_table(out: &mut Writer) {
    out.put_str(abi::table::NAME, TRIAL_TABLE);
}

const COMMENT: &str = "Seen here, it was left by a probe that was killed";

/// Whether a message shows our table or our chain with its comment.
pub(crate) fn has_comment(message: &Message<'_>) -> Result<bool, Malformed> {
    let attribute = match message.kind {
        message::NEW_TABLE => abi::table::USERDATA,
        message::NEW_CHAIN => abi::chain::USERDATA,
        _ => return Ok(false),
    };
    // Both name their table in attribute 1.
    let table = attributes(message)?.find(abi::table::NAME)?;
    let ours = table.and_then(|name| name.strip_suffix(&[0])) == Some(TRIAL_TABLE.as_bytes());
    let udata = attributes(message)?.find(attribute)?.unwrap_or_default();
    Ok(ours && udata::read_comment(udata).is_some_and(|comment| comment == COMMENT))
}

/// A filter that no connection matches.
pub(crate) fn conntrack_filter(out: &mut Writer) {
    use conntrack::{filter, protocol, tuple};
    out.nest(conntrack::TUPLE_ORIGINAL, |out| {
        out.nest(tuple::ADDRESSES, |out| {
            out.put(tuple::SOURCE4, &[0; 4]);
            out.put(tuple::DESTINATION4, &[0; 4]);
        });
        out.nest(tuple::PROTOCOL, |out| {
            out.put(protocol::NUMBER, &[17]);
            out.put(protocol::SOURCE_PORT, &[0; 2]);
            out.put(protocol::DESTINATION_PORT, &[0; 2]);
        });
    });
    out.nest(conntrack::FILTER, |out| {
        let addresses = filter::BY_SOURCE | filter::BY_DESTINATION;
        out.put(filter::ORIGINAL_FLAGS, &addresses.to_ne_bytes());
        out.put(filter::REPLY_FLAGS, &0u32.to_ne_bytes());
    });
}

pub(crate) fn add_chain(out: &mut Encoder<'_>, hook: Option<(u32, u32)>, comment: &str) {
    let table = out.table;
    out.message(message::NEW_CHAIN, flag::CREATE, |out| {
        out.put_str(abi::chain::TABLE, table);
        out.put_str(abi::chain::NAME, CHAIN);
        if let Some((number, priority)) = hook {
            out.put_str(abi::chain::TYPE, chain_type(Hook::NatPrerouting));
            out.nest(abi::chain::HOOK, |out| {
                out.put_u32(abi::chain::HOOK_NUMBER, number);
                out.put_u32(abi::chain::HOOK_PRIORITY, priority);
            });
        }
        put_comment(abi::chain::USERDATA, comment, out);
    });
}

fn put_comment(kind: u16, comment: &str, out: &mut Writer) {
    if !comment.is_empty() {
        out.put(kind, &udata::comment(comment));
    }
}

/// A set; `fields` are the widths of a concatenation with ranges.
fn add_set(out: &mut Encoder<'_>, flags: u32, key: u32, data: Option<u32>, fields: &[u32]) {
    let table = out.table;
    out.message(message::NEW_SET, flag::CREATE, |out| {
        out.put_str(abi::set::TABLE, table);
        out.put_str(abi::set::NAME, SET);
        out.put_u32(abi::set::FLAGS, flags);
        // A type is a number that only nft reads.
        out.put_u32(abi::set::KEY_TYPE, 0);
        out.put_u32(abi::set::KEY_LEN, key);
        if let Some(data) = data {
            out.put_u32(abi::set::DATA_TYPE, 0);
            out.put_u32(abi::set::DATA_LEN, data);
        }
        out.put_u32(abi::set::ID, 1);
        if !fields.is_empty() {
            out.nest(abi::set::DESC, |out| {
                out.nest(abi::set::DESC_CONCATENATION, |out| {
                    for field in fields {
                        out.nest(abi::LIST_ITEM, |out| {
                            out.put_u32(abi::set::FIELD_LEN, *field)
                        });
                    }
                });
            });
        }
    });
}

fn add_rule(out: &mut Encoder<'_>, expressions: impl FnOnce(&mut Writer)) {
    let table = out.table;
    out.message(message::NEW_RULE, flag::CREATE | flag::APPEND, |out| {
        out.put_str(abi::rule::TABLE, table);
        out.put_str(abi::rule::CHAIN, CHAIN);
        out.nest(abi::rule::EXPRESSIONS, expressions);
    });
}

fn expression(out: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    out.nest(abi::LIST_ITEM, |out| {
        out.put_str(abi::expr::NAME, name);
        out.nest(abi::expr::DATA, fill);
    });
}

/// `ip daddr`
fn destination_address(out: &mut Writer, to: Register) {
    expression(out, "payload", |out| {
        out.put_u32(abi::payload::DREG, to.number());
        out.put_u32(abi::payload::BASE, abi::payload::NETWORK_HEADER);
        out.put_u32(abi::payload::OFFSET, 16);
        out.put_u32(abi::payload::LEN, ADDRESS);
    });
}

/// `symhash mod 2`
fn symhash(out: &mut Writer, to: Register) {
    expression(out, "hash", |out| {
        out.put_u32(abi::hash::DREG, to.number());
        out.put_u32(abi::hash::MODULUS, 2);
        out.put_u32(abi::hash::OFFSET, 0);
        out.put_u32(abi::hash::TYPE, abi::hash::SYMMETRIC);
    });
}
