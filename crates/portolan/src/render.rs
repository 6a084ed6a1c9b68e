//! `portolan render`: the tables for a directory of manifests, as text for `nft -f`.
//!
//! Uses the same decoding, plan and layout as `portolan run`, without a kernel. With `--live`, the tables of the kernel as
//! the same text.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use nft::{Backend, Kernel};
use service_dataplane::layout;
use service_model::Family;

use crate::cli::RenderArgs;
use crate::config::{self, Configuration};
use crate::control::ClusterView;
use object_source::SourceEvent;
use object_source::manifests::{self, ManifestsConfig};

/// Result of rendering a directory.
#[derive(Debug)]
pub struct Rendered {
    /// The tables of the requested families.
    pub text: String,
    /// Ignored objects and fields, one line each.
    pub problems: Vec<String>,
}

/// Reads and renders the directory. Fails when the directory cannot be listed or the node has no name.
pub fn render(args: &RenderArgs) -> anyhow::Result<Rendered> {
    let configuration = Configuration::read(args.node.line())?;
    let effective = configuration.effective();
    let (first, last) = effective.api_server.node_port_range;
    let proxy_name = effective.services.service_proxy_name.as_deref();
    let source = ManifestsConfig {
        dir: args.manifests.clone().unwrap_or_default(),
        node_ports: first..=last,
        proxy_name: proxy_name.map(Arc::from),
    };
    let node_name = config::static_node_name(effective)?;
    let config = config::node(effective, node_name.clone());
    let mut view = ClusterView::new(config);
    let mut problems = Vec::new();
    for event in manifests::read(&source)? {
        if let SourceEvent::Problem(problem) = &event {
            problems.push(problem.to_string());
        }
        view.event(event);
    }
    if !view.node_exists() {
        problems.push(format!(
            "Node {node_name}: not in the manifests, so its addresses and pod CIDRs are unknown; add it or set --hostname-override"
        ));
    }
    let facts = view.facts(&args.interface_addresses);
    let planned = view.updates(&facts, true, |_| true, |_| None);
    let ignored = planned.ignored.iter().chain(&planned.over_budget);
    problems.extend(ignored.map(ToString::to_string));
    let intents = planned
        .updates
        .into_iter()
        .filter_map(|update| update.intent);
    let tables = service_dataplane::contents(&facts, intents.map(Arc::unwrap_or_clone));
    let text = Family::ALL
        .into_iter()
        .zip(&tables)
        .filter(|(family, _)| args.family.is_none_or(|wanted| wanted == *family))
        .map(|(_, table)| nft::text::table(table))
        .collect();
    Ok(Rendered { text, problems })
}

/// Reads the tables of the kernel. A missing one is a problem, except for the overlay's, which not every node has.
///
/// # Errors
/// The kernel refuses to list tables, as without CAP_NET_ADMIN.
pub fn live(only: Option<Family>) -> anyhow::Result<Rendered> {
    let (mut text, mut problems) = (String::new(), Vec::new());
    for name in [layout::TABLE, vxlan_overlay::TABLE] {
        let mut kernel = Kernel::open_to_read(name.into()).context("cannot open nftables")?;
        for family in Family::ALL {
            if only.is_some_and(|only| only != family) {
                continue;
            }
            let listed = kernel.list(family);
            let table = listed.with_context(|| format!("cannot read table {family} {name}"))?;
            match table {
                Some(table) => text.push_str(&nft::text::table(&table)),
                None if name == layout::TABLE => problems.push(format!(
                    "table {family} {name}: not there, or another program has added rules that cannot be read"
                )),
                None => {}
            }
        }
    }
    Ok(Rendered { text, problems })
}

/// Prints the tables, and problems to standard error. Returns false if there were problems.
pub fn run(args: &RenderArgs) -> anyhow::Result<bool> {
    let rendered = match args.live {
        true => live(args.family)?,
        false => render(args)?,
    };
    // The reader may close the pipe early (`portolan render | head`).
    let _ = std::io::stdout().write_all(rendered.text.as_bytes());
    for problem in &rendered.problems {
        let _ = writeln!(std::io::stderr(), "{problem}");
    }
    Ok(rendered.problems.is_empty())
}
