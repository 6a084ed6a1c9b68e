//! The API server of one side, and the way from one cluster's objects to the next one's.
//!
//! Invariant: at no moment do two Services claim one cluster IP, or one node port and protocol. A real API server
//! would not let them, and kube-proxy relies on it: such a transaction fails, and is tried again half a minute
//! later.

use anyhow::{Context, Result};
use lab::fake_api::Resource;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::server::{Server, set_defaults};
use crate::cluster::Cluster;

/// Kind, namespace (empty for cluster-scoped objects) and name.
type Id = (Resource, String, String);

/// What does not change in the life of an object. The last could change, but no test changes it: kube-proxy goes on serving the
/// old Service with a slice that has moved to another one.
const FIXED: [&str; 4] = [
    "/spec/clusterIP",
    "/spec/clusterIPs",
    "/addressType",
    "/metadata/labels/kubernetes.io~1service-name",
];

pub(super) struct Supply {
    server: Server,
    /// What the last cluster left in the API server, without the surroundings and the sentinel.
    objects: BTreeMap<Id, Value>,
}

impl Supply {
    pub(super) fn new(server: Server) -> Supply {
        Supply {
            server,
            objects: BTreeMap::new(),
        }
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// What stays while one program runs: nodes and ServiceCIDRs.
    pub(super) fn set_surroundings(&self, cluster: &Cluster) -> Result<()> {
        for object in cluster.documents() {
            if object["kind"] == "Node" {
                self.server.set_node(&object)?;
            }
        }
        self.server.set_service_cidrs(&cluster.service_cidrs)
    }

    /// Applies objects that are no cluster's.
    pub(super) fn finish(&self, objects: Vec<Value>) -> Result<()> {
        objects
            .iter()
            .try_for_each(|object| self.server.apply(object))
    }

    /// Leads to a cluster's objects; nodes and ServiceCIDRs stay as they are. Services or slices come first in turn.
    pub(super) fn change_to(&mut self, cluster: &Cluster, turn: usize) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for mut object in cluster.documents() {
            if object["kind"] != "Node" && object["kind"] != "ServiceCIDR" {
                set_defaults(&mut object);
                wanted.insert(id(&object)?, object);
            }
        }
        let gone: Vec<Id> = self.objects.keys().cloned().collect();
        for id in gone.into_iter().filter(|id| !wanted.contains_key(id)) {
            self.delete(&id)?;
        }
        wanted.retain(|id, object| self.objects.get(id) != Some(object));
        let (services, others): (BTreeMap<_, _>, BTreeMap<_, _>) = wanted
            .into_iter()
            .partition(|((resource, ..), _)| *resource == Resource::Services);
        if turn.is_multiple_of(2) {
            self.apply_services(services)?;
            self.apply_all(others)
        } else {
            self.apply_all(others)?;
            self.apply_services(services)
        }
    }

    /// Applies each as soon as its addresses and ports are free; where two need each other's, one is deleted first.
    fn apply_services(&mut self, mut services: BTreeMap<Id, Value>) -> Result<()> {
        while !services.is_empty() {
            let free = services
                .iter()
                .find(|(id, object)| self.is_free(id, &self.claims(object)));
            match free.map(|(id, _)| id.clone()) {
                Some(id) => {
                    let object = services.remove(&id).unwrap_or_default();
                    self.apply(id, object)?;
                }
                None => {
                    let waiting = services.keys().find(|id| self.objects.contains_key(*id));
                    let first = waiting.context("Services of one cluster claim the same")?;
                    self.delete(&first.clone())?;
                }
            }
        }
        Ok(())
    }

    fn is_free(&self, id: &Id, claimed: &BTreeSet<String>) -> bool {
        let mut others = self.objects.iter().filter(|(other, _)| *other != id);
        others.all(|(_, object)| self.claims(object).is_disjoint(claimed))
    }

    /// A real API server gives the number of a node port to one Service, for all protocols.
    fn claims(&self, object: &Value) -> BTreeSet<String> {
        let claims = claims(object).into_iter();
        match self.server {
            Server::Fake(_) => claims.collect(),
            Server::Real(_) => claims
                .map(|claim| claim.split('/').next().unwrap_or_default().to_owned())
                .collect(),
        }
    }

    fn apply_all(&mut self, objects: BTreeMap<Id, Value>) -> Result<()> {
        let mut objects = objects.into_iter();
        objects.try_for_each(|(id, object)| self.apply(id, object))
    }

    /// Writes an object, in place where a real API server lets the old one become the new one.
    fn apply(&mut self, id: Id, object: Value) -> Result<()> {
        let before = self.objects.get(&id);
        if before.is_some_and(|before| {
            FIXED
                .iter()
                .any(|at| before.pointer(at) != object.pointer(at))
        }) {
            self.delete(&id)?;
        }
        self.server.apply(&object)?;
        self.objects.insert(id, object);
        Ok(())
    }

    fn delete(&mut self, id: &Id) -> Result<()> {
        self.server.delete(id.0, &id.1, &id.2)?;
        self.objects.remove(id);
        Ok(())
    }
}

fn id(object: &Value) -> Result<Id> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let resource = Resource::ALL
        .into_iter()
        .find(|resource| resource.kind() == kind)
        .with_context(|| format!("kind {kind:?} is not served"))?;
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Ok((resource, text("namespace"), text("name")))
}

/// What no two Services can have: cluster IPs, node ports with their protocol, ports for health checks.
fn claims(object: &Value) -> BTreeSet<String> {
    let spec = &object["spec"];
    let mut claims = BTreeSet::new();
    if object["kind"] != "Service" {
        return claims;
    }
    for address in spec["clusterIPs"].as_array().into_iter().flatten() {
        if address != "None" {
            claims.insert(address.to_string());
        }
    }
    for port in spec["ports"].as_array().into_iter().flatten() {
        if port["nodePort"].as_u64().is_some_and(|port| port != 0) {
            claims.insert(format!("{}/{}", port["nodePort"], port["protocol"]));
        }
    }
    if spec["healthCheckNodePort"]
        .as_u64()
        .is_some_and(|port| port != 0)
    {
        claims.insert(format!("{}/\"TCP\"", spec["healthCheckNodePort"]));
    }
    claims
}
