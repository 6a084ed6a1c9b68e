//! The peers of an earlier run, kept in a file for a restart while no API server can be reached.
//!
//! The kernel keeps its entries in any case; with the cache a daemon that has no list of Nodes yet can repair them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use vxlan_overlay::{Annotations, Names, Node, ParsedAnnotations, Peers};

use super::{OverlayConfig, files};

/// Longest file that is read, in bytes.
const MAX_SIZE: u64 = 64 << 20;
/// Delay between a change and writing the file, which batches changes.
const DELAY: Duration = Duration::from_secs(5);

/// The file, and when to write it.
pub(super) struct PeerCache {
    config: Arc<OverlayConfig>,
    due: Option<Instant>,
}

impl PeerCache {
    pub(super) fn new(config: Arc<OverlayConfig>) -> Self {
        PeerCache { config, due: None }
    }

    /// Reads the file. Logs a warning and returns nothing if it is unreadable.
    pub(super) fn load(&self) -> Vec<Node> {
        let path = &self.config.cache;
        if path.as_os_str().is_empty() {
            return Vec::new();
        }
        read(path, self.about()).unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "ignoring an unreadable peer cache");
            Vec::new()
        })
    }

    /// Schedules a write.
    pub(super) fn mark_changed(&mut self, now: Instant) {
        self.due.get_or_insert(now + DELAY);
    }

    /// When a write is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes the file if that is due and the list of peers is complete.
    pub(super) fn save_if_due(&mut self, peers: &Peers, now: Instant) {
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        self.due = None;
        let path = &self.config.cache;
        if path.as_os_str().is_empty() || !peers.is_listed() {
            return;
        }
        let written = text(peers.nodes(), self.about())
            .and_then(|text| files::replace(path, &text).context("writing"));
        if let Err(error) = written {
            let error = format!("{error:#}");
            tracing::warn!(?path, error, "cannot write the peer cache");
        }
    }

    fn about(&self) -> (&Names, u32) {
        (&self.config.names, self.config.config.vni)
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: Arc<str>,
    /// Missing in files of earlier versions.
    #[serde(default)]
    created: Option<i64>,
    pod_cidrs: Box<[IpNet]>,
    addresses: Box<[std::net::IpAddr]>,
    annotations: Annotations,
}

/// The text of the file. VTEPs whose annotations are not kept are written as annotations again.
fn text<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    (names, vni): (&Names, u32),
) -> anyhow::Result<String> {
    let entry = |node: &Node| Entry {
        name: node.name.clone(),
        created: node.created,
        pod_cidrs: node.pod_cidrs.as_slice().into(),
        addresses: node.addresses.as_slice().into(),
        annotations: match &node.parsed {
            ParsedAnnotations::Vteps(vteps) if node.annotations.is_empty() => {
                let mut annotations = names.write(vni, vteps);
                if let Some(keys) = &node.encryption {
                    names.write_encryption(&mut annotations, keys);
                }
                if node.probes {
                    names.write_probes(&mut annotations, true);
                }
                annotations
            }
            _ => node.annotations.as_ref().clone(),
        },
    };
    // Entry by entry: a list of all entries would take several times the memory of the text.
    let mut text = Vec::new();
    serde_json::Serializer::new(&mut text).collect_seq(nodes.map(entry))?;
    Ok(String::from_utf8(text)?)
}

/// Reads the file. A missing file is an empty list.
fn read(path: &Path, about: (&Names, u32)) -> anyhow::Result<Vec<Node>> {
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(metadata) if metadata.len() > MAX_SIZE => {
            anyhow::bail!("{path:?} is too large for a list of nodes")
        }
        _ => std::fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?,
    };
    let entries: Vec<Entry> =
        serde_json::from_str(&text).with_context(|| format!("decoding {path:?}"))?;
    let node = |entry: Entry| {
        let annotations = Arc::new(entry.annotations);
        Node::new(
            (entry.name, entry.created),
            &entry.pod_cidrs,
            &entry.addresses,
            annotations,
            about,
        )
    };
    Ok(entries.into_iter().map(node).collect())
}
