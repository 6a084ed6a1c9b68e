//! nft reads back what we wrote over netlink: `nft -j list`, through the `nftables` crate for plain sets, which its
//! schema knows, and as plain JSON for maps, which it does not (a verdict map or a `typeof` map does not parse).
//!
//! The product's decoder is not used; only the bytes of the intended elements are printed here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, scenario};
use nft::{Bytes, Data, DataField, Element, Family, Field, Set, SetKind, TableContents, Verdict};
use nftables::expr::{Expression, NamedExpression};
use nftables::schema::{NfListObject, NfObject, Nftables};
use portolan_tests::cluster::Generator;
use portolan_tests::written::{nft, write};
use portolan_tests::{number_from_env, product};
use serde_json::Value;
use service_dataplane::layout;

/// `nft -j list set|map FAMILY portolan NAME`, in this thread's network namespace.
fn listed(kind: &str, family: Family, name: &str) -> Result<String> {
    let family = family.keyword();
    let arguments = ["-j", "list", kind, family, layout::TABLE, name];
    nft(Path::new("nft"), &arguments)
}

/// Members of a plain set as nft lists them, parts joined by spaces.
fn members(family: Family, name: &str) -> Result<BTreeSet<String>> {
    let json = listed("set", family, name)?;
    let parsed: Nftables<'_> = serde_json::from_str(&json)?;
    let set = parsed.objects.iter().find_map(|object| match object {
        NfObject::ListObject(NfListObject::Set(set)) => Some(set),
        _ => None,
    });
    let elements = set
        .context("no set in the answer")?
        .elem
        .clone()
        .unwrap_or_default();
    elements.iter().map(expression).collect()
}

/// The same as plain JSON.
fn plain_members(family: Family, name: &str) -> Result<BTreeSet<String>> {
    let json: Value = serde_json::from_str(&listed("set", family, name)?)?;
    let objects = json["nftables"].as_array().context("no list")?;
    let set = objects.iter().find_map(|object| object.get("set"));
    let elements = set.context("no set in the answer")?["elem"].as_array();
    let elements = elements.map(Vec::as_slice).unwrap_or_default();
    elements.iter().map(plain).collect()
}

fn expression(expression: &Expression<'_>) -> Result<String> {
    Ok(match expression {
        Expression::String(text) => text.to_string(),
        Expression::Number(number) => number.to_string(),
        Expression::Named(NamedExpression::Concat(parts)) => parts
            .iter()
            .map(self::expression)
            .collect::<Result<Vec<_>>>()?
            .join(" "),
        Expression::Named(NamedExpression::Prefix(prefix)) => {
            format!("{}/{}", self::expression(&prefix.addr)?, prefix.len)
        }
        Expression::Range(range) => {
            let [first, last] = &range.range;
            format!("{}-{}", self::expression(first)?, self::expression(last)?)
        }
        // With what belongs to it, a counter.
        Expression::Named(NamedExpression::Elem(element)) => self::expression(&element.val)?,
        other => bail!("nft tells of {other:?}"),
    })
}

/// Entries of a map as nft lists them: key and value, parts joined by spaces.
fn entries(family: Family, name: &str) -> Result<BTreeSet<String>> {
    let json: Value = serde_json::from_str(&listed("map", family, name)?)?;
    let objects = json["nftables"].as_array().context("no list")?;
    // nft 1.0.6 calls a map whose data is a concatenation a set.
    let map = objects
        .iter()
        .find_map(|o| o.get("map").or(o.get("set")))
        .context("no map")?;
    let elements = map["elem"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    elements
        .iter()
        .map(|entry| Ok(format!("{} : {}", plain(&entry[0])?, plain(&entry[1])?)))
        .collect()
}

fn plain(value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Object(object) => match (object.get("concat"), object.get("goto")) {
            (Some(Value::Array(parts)), _) => parts
                .iter()
                .map(plain)
                .collect::<Result<Vec<_>>>()?
                .join(" "),
            (_, Some(goto)) => format!("goto {}", plain(&goto["target"])?),
            _ => bail!("nft tells of {value}"),
        },
        _ => bail!("nft tells of {value}"),
    })
}

/// The element that was meant, in the same words.
fn meant(set: &Set, element: &Element, family: Family) -> Result<String> {
    let first = parts(&element.key, &set.key, family)?;
    let words = match &element.last {
        None => first,
        Some(last) => {
            let last = parts(last, &set.key, family)?;
            let pairs = first.into_iter().zip(last);
            pairs.map(|(first, last)| range(&first, &last)).collect()
        }
    };
    let key = words.join(" ");
    Ok(match &element.data {
        Data::None => key,
        Data::Value(value) => {
            let SetKind::Map(fields) = &set.kind else {
                bail!("{} is no map", set.name)
            };
            let fields: Vec<Field> = fields
                .iter()
                .map(|field| match field {
                    DataField::Address => Field::Address,
                    DataField::Port => Field::Port,
                    DataField::Group => Field::Group,
                })
                .collect();
            format!("{key} : {}", parts(value, &fields, family)?.join(" "))
        }
        Data::Verdict(Verdict::Goto(chain)) => format!("{key} : goto {chain}"),
        Data::Verdict(other) => bail!("{other:?} is none of ours"),
    })
}

/// One value, a prefix where it is one, or a range.
fn range(first: &str, last: &str) -> String {
    let bits = |text: &str| match text.parse() {
        Ok(IpAddr::V4(a)) => (u128::from(u32::from(a)), 32),
        Ok(IpAddr::V6(a)) => (u128::from(a), 128),
        Err(_) => (0, 0),
    };
    let ((from, width), (to, _)) = (bits(first), bits(last));
    let host = from ^ to;
    if first == last {
        first.to_owned()
    } else if host & (host + 1) == 0 && from & host == 0 {
        format!("{first}/{}", width - host.count_ones())
    } else {
        format!("{first}-{last}")
    }
}

fn parts(bytes: &Bytes, fields: &[Field], family: Family) -> Result<Vec<String>> {
    let mut rest = bytes.as_slice();
    let mut words = Vec::new();
    for field in fields {
        let (part, after) = rest.split_at(field.padded_len(family).min(rest.len()));
        rest = after;
        words.push(match field {
            Field::Address => {
                let part = Bytes::from_slice(part).context("too long")?;
                let address = part.address_at(0, family);
                address.context("too short for an address")?.to_string()
            }
            Field::Protocol => match part.first() {
                Some(6) => "tcp".to_owned(),
                Some(17) => "udp".to_owned(),
                Some(132) => "sctp".to_owned(),
                other => bail!("protocol {other:?}"),
            },
            Field::Port => u16::from_be_bytes([part[0], part[1]]).to_string(),
            Field::Slot => u32::from_ne_bytes(part.try_into()?).to_string(),
            // As a traffic class.
            Field::Group => {
                let group = u32::from_ne_bytes(part.try_into()?);
                format!("{:x}:{:x}", group >> 16, group & 0xffff)
            }
        });
    }
    Ok(words)
}

/// Compares every set and map of a table; the number of elements seen.
fn compare(table: &TableContents) -> Result<usize> {
    let family = table.table.family;
    let mut seen = 0;
    for (name, set) in &table.sets {
        let elements = table
            .elements
            .get(name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let wanted: BTreeSet<String> = elements
            .iter()
            .map(|element| meant(set, element, family))
            .collect::<Result<_>>()?;
        let found = match set.kind {
            // The crate's schema has no traffic classes.
            SetKind::Set if set.key.contains(&Field::Group) => plain_members(family, name)?,
            SetKind::Set | SetKind::Counters => members(family, name)?,
            _ => entries(family, name)?,
        };
        ensure!(
            found == wanted,
            "{family} {name}: nft tells {found:?}, meant was {wanted:?}"
        );
        seen += found.len();
    }
    Ok(seen)
}

#[scenario(Nft)]
fn nft_tells_every_element_that_was_written() -> Result<()> {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let (mut seen, seeds) = (0, number_from_env("PORTOLAN_SEEDS", 5));
    for seed in seed..seed + seeds {
        let cluster = Generator::new(seed).cluster();
        let tables = product::contents(&cluster, &cluster.nodes[0]);
        seen += Namespace::new("witness")?
            .run(move || {
                write(layout::TABLE, &tables)?;
                tables.iter().map(compare).sum::<Result<usize>>()
            })?
            .with_context(|| format!("PORTOLAN_SEED={seed}"))?;
    }
    ensure!(seen as u64 > 20 * seeds, "only {seen} elements in all");
    Ok(())
}
