//! `portolan render`: the tables for a directory of manifests, as text for `nft -f`.
//!
//! Uses the same decoding, plan and layout as `portolan run`, without a kernel.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use service_model::{Family, Index, Node, NodeConfig, NodeFacts, ObjectEvent, ObjectName};

use crate::cli::RenderArgs;
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
    let source = ManifestsConfig {
        dir: args.manifests.clone(),
        node_ports: args.node.node_port_range.0.clone(),
        proxy_name: args.node.service_proxy_name.clone(),
    };
    let config = args.node.config()?;
    let mut view = View {
        own: config.node_name.clone(),
        index: Index::default(),
        node: None,
        service_cidrs: Vec::new(),
        problems: Vec::new(),
    };
    for event in manifests::read(&source)? {
        view.take(event);
    }
    if view.node.is_none() {
        view.problems.push(format!(
            "Node {}: not in the manifests, so its addresses and pod CIDRs are unknown; add it or set --hostname-override",
            config.node_name
        ));
    }
    let tables = view.tables(&config, &args.interface_addresses);
    let text = Family::ALL
        .into_iter()
        .zip(&tables)
        .filter(|(family, _)| args.family.is_none_or(|wanted| wanted == *family))
        .map(|(_, table)| nft::text::table(table))
        .collect();
    Ok(Rendered {
        text,
        problems: view.problems,
    })
}

/// Prints the tables, and problems to standard error. Returns false if there were problems.
pub fn run(args: &RenderArgs) -> anyhow::Result<bool> {
    let rendered = render(args)?;
    // The reader may close the pipe early (`portolan render | head`).
    let _ = std::io::stdout().write_all(rendered.text.as_bytes());
    for problem in &rendered.problems {
        let _ = writeln!(std::io::stderr(), "{problem}");
    }
    Ok(rendered.problems.is_empty())
}

struct View {
    own: Arc<str>,
    index: Index,
    node: Option<Arc<Node>>,
    service_cidrs: Vec<IpNet>,
    problems: Vec<String>,
}

impl View {
    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(event) => self.index.service_event(event),
            SourceEvent::EndpointSlice(event) => self.index.slice_event(event),
            SourceEvent::Node(ObjectEvent::Reset { objects, .. }) => {
                self.node = objects.into_iter().find(|node| node.name.name == self.own);
            }
            SourceEvent::Problem(problem) => self.problems.push(problem.to_string()),
            SourceEvent::ServiceCidr(ObjectEvent::Reset { objects, .. }) => {
                self.service_cidrs = objects
                    .into_iter()
                    .flat_map(|object| object.cidrs.clone())
                    .collect();
            }
            SourceEvent::Node(_)
            | SourceEvent::ServiceCidr(_)
            | SourceEvent::Solved { .. }
            | SourceEvent::Connection { .. } => {}
        }
    }

    fn tables(
        &mut self,
        config: &NodeConfig,
        interface_addresses: &[IpAddr],
    ) -> [nft::TableContents; 2] {
        let unknown = || Arc::new(Node::unknown(self.own.clone()));
        let facts = NodeFacts::resolve(
            config,
            &self.node.clone().unwrap_or_else(unknown),
            interface_addresses,
            &self.service_cidrs,
        )
        .with_api_servers(self.index.api_servers());
        let names: Vec<ObjectName> = self.index.service_names().cloned().collect();
        let mut intents = Vec::with_capacity(names.len());
        for plan in names
            .iter()
            .filter_map(|name| self.index.plan(name, &facts))
        {
            let ignored = plan.ignored.iter().map(ToString::to_string);
            self.problems.extend(ignored);
            intents.push(plan.intent);
        }
        service_dataplane::contents(&facts, intents)
    }
}
