//! User data: what nft keeps with tables, chains, sets and elements for its own use when listing.
//!
//! The kernel stores user data without reading them. nft prints `typeof` maps and comments from it, so ours is byte for byte
//! what nft 1.0.6 stores (libnftnl `udata.h`, nft `src/expression.c`). User data are a list of TLVs: a byte of
//! type, a byte of length, the value; numbers are in host order.

use crate::model::{DataField, Family, Field, Set, SetKind};

/// `NFT_USERDATA_MAXLEN`
const MAX: usize = 256;

/// Tables and chains: `NFTNL_UDATA_TABLE_COMMENT`, `NFTNL_UDATA_CHAIN_COMMENT`.
const COMMENT: u8 = 0;

/// `enum nftnl_udata_set_types`
mod set_type {
    pub(super) const KEY_BYTE_ORDER: u8 = 0;
    pub(super) const DATA_BYTE_ORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const DATA_INTERVAL: u8 = 6;
    pub(super) const COMMENT: u8 = 7;
}

/// nft's `enum byteorder`.
mod byte_order {
    /// Concatenations, verdicts, and protocols declared by `type`.
    pub(super) const NONE: u32 = 0;
    pub(super) const HOST: u32 = 1;
    pub(super) const NETWORK: u32 = 2;
}

/// nft's `enum expr_types`, with the ids of what they read.
mod expression {
    pub(super) const VERDICT: u32 = 1;
    pub(super) const PAYLOAD: u32 = 7;
    pub(super) const META: u32 = 9;
    pub(super) const CONCAT: u32 = 13;
    pub(super) const NUMGEN: u32 = 23;

    /// `enum proto_desc_id`, and the field's index in that protocol.
    pub(super) const IP_DADDR: (u32, u32) = (12, 12);
    pub(super) const IP6_DADDR: (u32, u32) = (13, 9);
    pub(super) const TH_DPORT: (u32, u32) = (11, 2);

    pub(super) const META_L4PROTO: u32 = 16;
    pub(super) const META_PRIORITY: u32 = 2;
    pub(super) const NUMGEN_RANDOM: u32 = 1;
    /// As in `numgen random mod 65536`.
    pub(super) const NUMGEN_MODULUS: u32 = 65536;
}

/// An element whose range reaches the last address: `NFTNL_UDATA_SET_ELEM_FLAGS` (1) with
/// `NFTNL_SET_ELEM_F_INTERVAL_OPEN` (1).
pub(crate) fn open_interval() -> Vec<u8> {
    let mut out = Vec::with_capacity(6);
    number(&mut out, 1, 1);
    out
}

/// User data of a table or chain; empty without comment.
pub(crate) fn comment(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_comment(&mut out, COMMENT, text);
    out
}

/// The comment in a table's or chain's user data.
pub(crate) fn read_comment(udata: &[u8]) -> Option<&str> {
    find_string(udata, COMMENT)
}

/// The comment in a set's user data.
pub(crate) fn read_set_comment(udata: &[u8]) -> Option<&str> {
    find_string(udata, set_type::COMMENT)
}

/// User data of a set.
pub(crate) fn of_set(set: &Set, family: Family) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX);
    let by_typeof = set.declared_by_typeof();
    number(
        &mut out,
        set_type::KEY_BYTE_ORDER,
        key_byte_order(&set.key, by_typeof),
    );
    match &set.kind {
        SetKind::Map(fields) | SetKind::Dynamic(fields) => {
            number(&mut out, set_type::DATA_BYTE_ORDER, data_byte_order(fields))
        }
        SetKind::VerdictMap => number(&mut out, set_type::DATA_BYTE_ORDER, byte_order::NONE),
        SetKind::Set | SetKind::Counters | SetKind::Unknown => {}
    }
    let key = match (by_typeof, set.key.as_slice()) {
        (true, [one]) => Some(key_part(*one, family)),
        (true, many) => Some(concat(many.iter().map(|field| key_part(*field, family)))),
        (false, [_]) => None,
        (false, _) => Some(concat(std::iter::empty())),
    };
    if let Some(key) = key {
        tlv(&mut out, set_type::KEY_TYPEOF, &key);
    }
    match &set.kind {
        SetKind::Map(fields) | SetKind::Dynamic(fields) => {
            let data = match fields.as_slice() {
                [one] => data_part(*one, family),
                many => concat(many.iter().map(|field| data_part(*field, family))),
            };
            tlv(&mut out, set_type::DATA_TYPEOF, &data);
        }
        SetKind::VerdictMap if by_typeof => {
            tlv(
                &mut out,
                set_type::DATA_TYPEOF,
                &typeof_expression(expression::VERDICT, &[]),
            );
        }
        _ => {}
    }
    if matches!(
        set.kind,
        SetKind::Map(_) | SetKind::Dynamic(_) | SetKind::VerdictMap
    ) {
        number(&mut out, set_type::DATA_INTERVAL, 0);
    }
    put_comment(&mut out, set_type::COMMENT, &set.comment);
    out
}

fn key_byte_order(key: &[Field], by_typeof: bool) -> u32 {
    match (key, by_typeof) {
        ([Field::Address | Field::Port], _) => byte_order::NETWORK,
        ([Field::Protocol | Field::Slot | Field::Group], true) => byte_order::HOST,
        _ => byte_order::NONE,
    }
}

fn data_byte_order(data: &[DataField]) -> u32 {
    match data {
        [DataField::Group] => byte_order::HOST,
        [_] => byte_order::NETWORK,
        _ => byte_order::NONE,
    }
}

fn key_part(field: Field, family: Family) -> Vec<u8> {
    match field {
        Field::Address => data_part(DataField::Address, family),
        Field::Port => data_part(DataField::Port, family),
        Field::Protocol => meta(expression::META_L4PROTO),
        Field::Group => meta(expression::META_PRIORITY),
        Field::Slot => {
            let mut inner = Vec::new();
            number(&mut inner, 0, expression::NUMGEN_RANDOM);
            number(&mut inner, 1, expression::NUMGEN_MODULUS);
            number(&mut inner, 2, 0);
            typeof_expression(expression::NUMGEN, &inner)
        }
    }
}

fn meta(what: u32) -> Vec<u8> {
    let mut inner = Vec::new();
    number(&mut inner, 0, what);
    typeof_expression(expression::META, &inner)
}

fn data_part(field: DataField, family: Family) -> Vec<u8> {
    let (protocol, index) = match (field, family) {
        (DataField::Group, _) => return meta(expression::META_PRIORITY),
        (DataField::Address, Family::Ip) => expression::IP_DADDR,
        (DataField::Address, Family::Ip6) => expression::IP6_DADDR,
        (DataField::Port, _) => expression::TH_DPORT,
    };
    let mut inner = Vec::new();
    number(&mut inner, 0, protocol);
    number(&mut inner, 1, index);
    typeof_expression(expression::PAYLOAD, &inner)
}

/// A concatenation: its parts numbered from 0.
fn concat(parts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut inner = Vec::new();
    for (index, part) in (0u8..).zip(parts) {
        tlv(&mut inner, index, &part);
    }
    typeof_expression(expression::CONCAT, &inner)
}

/// `NFTNL_UDATA_SET_TYPEOF_EXPR` and `NFTNL_UDATA_SET_TYPEOF_DATA`
fn typeof_expression(kind: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, 0, kind);
    tlv(&mut out, 1, inner);
    out
}

fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
    tlv(out, kind, &value.to_ne_bytes());
}

/// Omits what does not fit: user data are only for listings.
fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let Ok(len) = u8::try_from(value.len()) {
        out.extend_from_slice(&[kind, len]);
        out.extend_from_slice(value);
    }
}

fn put_comment(out: &mut Vec<u8>, kind: u8, text: &str) {
    // Two bytes of header and a NUL.
    if !text.is_empty() && out.len() + text.len() + 3 <= MAX {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        tlv(out, kind, &value);
    }
}

fn find_string(mut udata: &[u8], kind: u8) -> Option<&str> {
    while let [found, len, rest @ ..] = udata {
        let value = rest.get(..usize::from(*len))?;
        if *found == kind {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        udata = rest.get(usize::from(*len)..)?;
    }
    None
}
