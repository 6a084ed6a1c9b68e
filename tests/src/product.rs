//! The product's own way from manifests to tables, in one call.
//!
//! Everything between JSON and table is the product's; nothing is decided here.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use nft::TableContents;
use serde_json::Value;
use service_model::wire::{self, ConversionContext, Object};
use service_model::{
    DetectLocal, EndpointSlice, Index, LocalInterface, NodeConfig, NodeFacts, NodePortAddress,
    ObjectEvent, Service, ServiceCidr, Suspects,
};

use crate::cluster::{self, Cluster, Detect, NodePortAddresses};

/// For the objects of a cluster.
pub fn context(cluster: &Cluster) -> ConversionContext {
    let name = cluster.settings.service_proxy_name.as_deref();
    ConversionContext::new(name.map(Arc::from))
}

/// Decodes and converts a document; `None` when nothing of it can be used.
pub fn decode<T: Object>(document: Value, context: &mut ConversionContext) -> Option<T::Model> {
    let object: T = serde_json::from_value(document).ok()?;
    Some(object.into_model(context).ok()?.object)
}

/// A Service as the product sees it.
pub fn service(service: &cluster::Service, context: &mut ConversionContext) -> Option<Service> {
    decode::<wire::Service>(service.document(), context)
}

/// A slice as the product sees it.
pub fn slice(slice: &cluster::Slice, context: &mut ConversionContext) -> Option<EndpointSlice> {
    decode::<wire::EndpointSlice>(slice.document(), context)
}

/// What the product makes of manifests written by hand, decoded as they are.
pub fn contents_of_manifests(
    yaml: &str,
    cluster: &Cluster,
    node: &cluster::Node,
) -> [TableContents; 2] {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("manifests: {error}"));
    let mut index = Index::new();
    let mut context = context(cluster);
    let mut decoded = 0;
    for document in documents {
        match document["kind"].as_str() {
            Some("Service") => {
                let service = decode::<wire::Service>(document, &mut context);
                decoded += usize::from(service.is_some());
                service
                    .into_iter()
                    .for_each(|s| index.service_event(ObjectEvent::Apply(Arc::new(s))));
            }
            Some("EndpointSlice") => {
                let slice = decode::<wire::EndpointSlice>(document, &mut context);
                slice
                    .into_iter()
                    .for_each(|s| index.slice_event(ObjectEvent::Apply(Arc::new(s))));
            }
            _ => {}
        }
    }
    assert_eq!(
        decoded,
        cluster.services.len(),
        "the product cannot use every Service"
    );
    apply_nodes(&mut index, cluster);
    planned(&index, &facts(cluster, node))
}

fn apply_nodes(index: &mut Index, cluster: &Cluster) {
    let mut context = context(cluster);
    for node in &cluster.nodes {
        if let Some(node) = decode::<wire::Node>(node.document(), &mut context) {
            index.node_event(&ObjectEvent::Apply(Arc::new(node)));
        }
    }
}

/// The suspects as the product knows them.
pub fn suspects(names: &BTreeSet<String>) -> Suspects {
    Suspects::new(names.iter().map(|name| name.as_str().into()))
}

/// An index of the suspects and of all Nodes, Services and slices that can be used, applied one by one in their order.
pub fn index(cluster: &Cluster) -> Index {
    let mut index = Index::new();
    index.set_suspects(suspects(&cluster.suspects));
    let mut context = context(cluster);
    apply_nodes(&mut index, cluster);
    for service in cluster
        .services
        .iter()
        .filter_map(|s| self::service(s, &mut context))
    {
        index.service_event(ObjectEvent::Apply(Arc::new(service)));
    }
    for slice in cluster
        .slices
        .iter()
        .filter_map(|s| self::slice(s, &mut context))
    {
        index.slice_event(ObjectEvent::Apply(Arc::new(slice)));
    }
    index
}

/// The facts about a node.
pub fn facts(cluster: &Cluster, node: &cluster::Node) -> NodeFacts {
    let settings = &cluster.settings;
    let detect_local = match &settings.detect {
        Detect::ClusterCidr(ranges) => DetectLocal::ClusterCidr(ranges.clone()),
        Detect::NodeCidr => DetectLocal::NodeCidr,
        Detect::Interface(name) => {
            DetectLocal::Interface(LocalInterface::Named(name.as_str().into()))
        }
        Detect::InterfacePrefix(prefix) => {
            DetectLocal::Interface(LocalInterface::Prefix(prefix.as_str().into()))
        }
    };
    let mut config = NodeConfig {
        detect_local,
        masquerade_all: settings.masquerade_all,
        cluster_cidrs: match &settings.detect {
            Detect::ClusterCidr(ranges) => ranges.clone(),
            Detect::NodeCidr | Detect::Interface(_) | Detect::InterfacePrefix(_) => Vec::new(),
        },
        allowed_external_ips: settings.allowed_external_ips.clone(),
        ..NodeConfig::named(node.name.as_str())
    };
    if !settings.nodeport_addresses.is_empty() {
        let items = settings.nodeport_addresses.iter();
        let items = items.map(|item| match item {
            NodePortAddresses::Primary => NodePortAddress::Primary,
            NodePortAddresses::All => NodePortAddress::All,
            NodePortAddresses::Range(range) => NodePortAddress::Cidr(*range),
        });
        config.nodeport_addresses = items.collect();
    }
    let mut context = context(cluster);
    let service_cidrs = cluster.service_cidrs.iter().filter_map(|service_cidr| {
        let document = cluster::write::service_cidr(service_cidr);
        decode::<wire::ServiceCidr>(document, &mut context)
    });
    let service_cidrs: Vec<IpNet> = service_cidrs
        .flat_map(|service_cidr: ServiceCidr| service_cidr.cidrs)
        .collect();
    match decode::<wire::Node>(node.document(), &mut context) {
        Some(object) => NodeFacts::resolve(&config, &object, &node.interfaces, &service_cidrs),
        None => panic!("the product cannot use {}", node.document()),
    }
}

/// Both tables of a node.
pub fn contents(cluster: &Cluster, node: &cluster::Node) -> [TableContents; 2] {
    planned(&index(cluster), &facts(cluster, node))
}

/// Both tables that an index needs, planned from nothing.
pub fn planned(index: &Index, facts: &NodeFacts) -> [TableContents; 2] {
    let intents = index
        .service_names()
        .filter_map(|name| Some(index.plan(name, facts)?.intent));
    service_dataplane::contents(facts, intents)
}
