//! Peers as last told, for a restart while no API server answers. The kernel keeps what it has in any case; this is
//! what lets a daemon heal it that has not heard from the cluster yet.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use vxlan_overlay::{Annotations, Names, Node, Said};

/// More would not be a list of nodes of ours.
const MAX_SIZE: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Entry {
    name: Arc<str>,
    pod_cidrs: Box<[IpNet]>,
    addresses: Box<[std::net::IpAddr]>,
    annotations: Annotations,
}

/// The text of the file. What annotations have been understood is written as their node would.
pub(super) fn text<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    (names, vni): (&Names, u32),
) -> anyhow::Result<String> {
    let entry = |node: &Node| Entry {
        name: node.name.clone(),
        pod_cidrs: node.pod_cidrs.as_slice().into(),
        addresses: node.addresses.as_slice().into(),
        annotations: match &node.said {
            Said::Vteps(vteps) if node.annotations.is_empty() => names.write(vni, vteps),
            _ => node.annotations.as_ref().clone(),
        },
    };
    // One by one: all of them at once are several times the text.
    let mut text = Vec::new();
    serde_json::Serializer::new(&mut text).collect_seq(nodes.map(entry))?;
    Ok(String::from_utf8(text)?)
}

/// Reads the file; none is no error.
pub(super) fn read(path: &Path, about: (&Names, u32)) -> anyhow::Result<Vec<Node>> {
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(metadata) if metadata.len() > MAX_SIZE => {
            anyhow::bail!("{path:?} is too long for a list of nodes")
        }
        _ => std::fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?,
    };
    let entries: Vec<Entry> =
        serde_json::from_str(&text).with_context(|| format!("decoding {path:?}"))?;
    let node = |entry: Entry| {
        let annotations = Arc::new(entry.annotations);
        Node::new(
            entry.name,
            &entry.pod_cidrs,
            &entry.addresses,
            annotations,
            about,
        )
    };
    Ok(entries.into_iter().map(node).collect())
}
