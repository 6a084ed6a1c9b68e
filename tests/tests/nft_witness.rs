//! nft reads back by `nft -j list` what we wrote over netlink.
//!
//! The product's decoder is not used; only the bytes of the intended elements are printed here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, scenario};
use nft::{Bytes, Data, DataField, Element, Family, Field, Set, SetKind, TableContents, Verdict};
use portolan_tests::cluster::Generator;
use portolan_tests::written::{nft, write};
use portolan_tests::{number_from_env, product};
use serde_json::Value;
use service_dataplane::layout;

/// Elements of a set or map by `nft -j list`, in this thread's network namespace.
fn listed(kind: &str, family: Family, name: &str) -> Result<Vec<Value>> {
    let arguments = ["-j", "list", kind, family.keyword(), layout::TABLE, name];
    let json: Value = serde_json::from_str(&nft(Path::new("nft"), &arguments)?)?;
    let mut objects = json["nftables"].as_array().into_iter().flatten();
    // nft 1.0.6 calls a map whose data is a concatenation a set.
    let set = objects.find_map(|o| o.get("map").or(o.get("set")));
    let elements = set.context("no set in the answer")?["elem"].as_array();
    Ok(elements.cloned().unwrap_or_default())
}

/// Members of a set as nft lists them, parts joined by spaces.
fn members(family: Family, name: &str) -> Result<BTreeSet<String>> {
    listed("set", family, name)?.iter().map(plain).collect()
}

/// Entries of a map as nft lists them: key and value, parts joined by spaces.
fn entries(family: Family, name: &str) -> Result<BTreeSet<String>> {
    let entry = |entry: &Value| Ok(format!("{} : {}", plain(&entry[0])?, plain(&entry[1])?));
    listed("map", family, name)?.iter().map(entry).collect()
}

fn plain(value: &Value) -> Result<String> {
    let (kind, inner) = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Number(number) => return Ok(number.to_string()),
        Value::Object(object) => object.iter().next().context("an empty object")?,
        _ => bail!("nft lists {value}"),
    };
    let joined = |by: &str| -> Result<String> {
        let parts = inner.as_array().into_iter().flatten().map(plain);
        Ok(parts.collect::<Result<Vec<_>>>()?.join(by))
    };
    match kind.as_str() {
        "concat" => joined(" "),
        "range" => joined("-"),
        "prefix" => Ok(format!("{}/{}", plain(&inner["addr"])?, inner["len"])),
        verdict @ ("goto" | "jump") => Ok(format!("{verdict} {}", plain(&inner["target"])?)),
        // With a counter.
        "elem" => plain(&inner["val"]),
        _ => bail!("nft lists {value}"),
    }
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
        Data::Verdict(Verdict::Jump(chain)) => format!("{key} : jump {chain}"),
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
            SetKind::Set | SetKind::Counters => members(family, name)?,
            _ => entries(family, name)?,
        };
        ensure!(
            found == wanted,
            "{family} {name}: nft lists {found:?}, meant was {wanted:?}"
        );
        seen += found.len();
    }
    Ok(seen)
}

#[scenario(Nft)]
fn nft_lists_every_element_that_was_written() -> Result<()> {
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
