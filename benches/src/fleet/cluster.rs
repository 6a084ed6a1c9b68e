//! etcd and kube-apiserver with a cluster's objects, the changes of a run, and the server's own figures.
//!
//! Each change replaces the first endpoint of a Service by one whose address is the change's number, so that a node's
//! version of an EndpointSlice can be read from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use lab::{AuditEvent, ControlPlane, Lab};
use serde_json::{Value, json};
use service_model::EndpointSlice;

use crate::Shape;

/// Number 0; no pod of a shape is here or above.
const FIRST_CHANGE: u32 = u32::from_be_bytes([10, 64, 0, 0]);
/// Changes that a run can make.
const CHANGES: u32 = 1 << 20;
/// Addresses of Nodes; no machine has them.
const FIRST_NODE: u32 = u32::from_be_bytes([10, 32, 0, 1]);
/// Refuses the connections of nodes as a port without listener does. The lab's own client is on the machine itself.
const CUT: &str = "table inet cut {
    chain input {
        type filter hook input priority filter
        iifname \"eth0\" tcp dport 6443 reject with tcp reset
    }
}";

/// How long changes go on before an outage, and during the outage.
const BESIDE_OUTAGE: Duration = Duration::from_secs(2);

/// When each change was sent to the API server, by its number.
pub(super) type Sent = Arc<Mutex<Vec<Instant>>>;

/// The API server and what is in it.
pub struct Cluster {
    plane: ControlPlane,
    shape: Shape,
    /// By Service, the last change.
    last: BTreeMap<u32, u32>,
    sent: Sent,
    /// Last: it ends the others.
    lab: Lab,
}

/// The API server without nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline {
    /// Its processor time in a second without changes.
    pub idle: Duration,
    /// Its processor time for a change.
    pub change: Duration,
}

/// Metrics of the API server's process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Metrics {
    pub(super) processor: Duration,
    /// Open watches of the kinds that nodes watch. The server itself has some.
    pub(super) watches: u64,
    /// Resident memory in bytes.
    pub(super) memory: u64,
}

impl Cluster {
    /// Starts the server with the objects of a shape and this number of Nodes: node-0, node-1, ...
    pub fn start(shape: Shape, nodes: u32) -> Result<Cluster> {
        let lab = Lab::new()?;
        let plane = ControlPlane::without_controllers(&lab)?;
        let mut objects: Vec<Value> = shape.objects().map(written).collect();
        // The shape's own Node; all are made alike below.
        objects.pop();
        let mut namespaces: Vec<&str> = objects
            .iter()
            .filter_map(|object| object["metadata"]["namespace"].as_str())
            .collect();
        namespaces.dedup();
        let namespaces: Vec<Value> = namespaces.into_iter().map(namespace).collect();
        plane.apply_all(&namespaces)?;
        plane.apply_all(&objects)?;
        for number in 0..nodes {
            let node = node(number);
            plane.apply(&node)?;
            plane.apply_status(&node)?;
        }
        Ok(Cluster {
            plane,
            shape,
            last: BTreeMap::new(),
            sent: Arc::new(Mutex::new(vec![Instant::now()])),
            lab,
        })
    }

    /// Services and endpoints.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(super) fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    pub(super) fn server(&self) -> SocketAddr {
        self.plane.address()
    }

    pub(super) fn sent(&self) -> Sent {
        self.sent.clone()
    }

    /// By the number of the Service, the number of its last change.
    pub(super) fn last_changes(&self) -> &BTreeMap<u32, u32> {
        &self.last
    }

    /// Makes the next change.
    pub fn change(&mut self) -> Result<()> {
        let number = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.push(Instant::now());
            u32::try_from(sent.len() - 1)?
        };
        ensure!(number < CHANGES, "too many changes");
        let (service, ..) = self.shape.change(number);
        let endpoint = (0, change_address(number));
        let slice = self.shape.slice_object(service, Some(endpoint));
        self.plane.apply(&written(slice))?;
        self.last.insert(service, number);
        Ok(())
    }

    /// Makes changes at this rate a second for this long. Returns their number, which is smaller than asked for if the server
    /// is too slow.
    pub(super) fn changes(&mut self, rate: u32, during: Duration) -> Result<u32> {
        let (start, pause) = (Instant::now(), Duration::from_secs(1) / rate);
        let mut made = 0;
        while start.elapsed() < during {
            self.change()?;
            made += 1;
            let due = (pause * made).max(start.elapsed());
            sleep(due.saturating_sub(start.elapsed()));
        }
        Ok(made)
    }

    /// Processor time of the server without nodes: idle, and at this rate of changes.
    pub fn baseline(&mut self, rate: u32, during: Duration) -> Result<Baseline> {
        let before = self.metrics()?.processor;
        sleep(during);
        let idle = self.metrics()?.processor.saturating_sub(before);
        let before = self.metrics()?.processor;
        let made = self.changes(rate, during)?;
        let changes = self.metrics()?.processor.saturating_sub(before);
        Ok(Baseline {
            idle: idle.div_f64(during.as_secs_f64()),
            change: changes.saturating_sub(idle) / made.max(1),
        })
    }

    /// Kills the server, and makes changes while no node reaches it. Before the kill changes go on at `rate`, so that some are
    /// on their way then. Returns the processor time of a start of the server and of [`BESIDE_OUTAGE`] of changes without nodes.
    pub(super) fn stop_server(&mut self, rate: u32) -> Result<Duration> {
        self.changes(rate, BESIDE_OUTAGE)?;
        self.plane.stop_api_server()?;
        self.nft(CUT)?;
        self.plane.start_api_server()?;
        self.changes(rate, BESIDE_OUTAGE)?;
        let startup = self.metrics()?.processor;
        self.plane.stop_api_server()?;
        self.nft("delete table inet cut")?;
        Ok(startup)
    }

    /// Starts the server for all nodes, and waits until it is ready. Returns when its process was started.
    pub(super) fn start_server(&self) -> Result<SystemTime> {
        let since = SystemTime::now();
        self.plane.start_api_server()?;
        Ok(since)
    }

    fn nft(&self, ruleset: &str) -> Result<()> {
        self.plane.machine().nft_stdin(ruleset).map(drop)
    }

    pub(super) fn audit(&self, user: &str) -> Result<Vec<AuditEvent>> {
        self.plane.audit_of(user)
    }

    /// The server's metrics now.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let text = self.plane.get_raw("/metrics")?;
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = line.with_context(|| format!("no metric {name}"))?;
            value.trim().parse::<f64>().context("a metric")
        };
        let watched = ["services", "endpointslices", "nodes", "servicecidrs"];
        let is_watch = |line: &&str| {
            line.starts_with("apiserver_longrunning_requests{")
                && line.contains("verb=\"WATCH\"")
                && watched
                    .iter()
                    .any(|kind| line.contains(&format!("resource=\"{kind}\"")))
        };
        let watches = text.lines().filter(is_watch);
        let watches = watches
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>();
        Ok(Metrics {
            processor: Duration::from_secs_f64(value("process_cpu_seconds_total")?),
            watches: watches as u64,
            memory: value("process_resident_memory_bytes")? as u64,
        })
    }
}

/// The address that carries the number of a change.
pub(super) fn change_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_CHANGE + number)
}

/// The number of the Service of a slice, and of the slice's last change: 0 before the first one.
pub(super) fn version(slice: &EndpointSlice) -> Result<(u32, u32)> {
    let name = &slice.service.name;
    let Some(service) = name.strip_prefix("service-") else {
        bail!("not a Service of the shape: {name}");
    };
    let change = |address| match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(FIRST_CHANGE),
        IpAddr::V6(_) => None,
    };
    let addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
    let change = addresses.filter_map(change).find(|n| *n < CHANGES);
    Ok((service.parse()?, change.unwrap_or(0)))
}

/// An object as a controller would write it: without what the server adds, and with a cluster IP of the server's choice.
fn written(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels"));
    }
    if object["kind"] == "Service"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.retain(|key, _| !matches!(key.as_str(), "clusterIP" | "clusterIPs"));
    }
    object
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

pub(super) fn node_name(number: u32) -> String {
    format!("node-{number}")
}

fn node(number: u32) -> Value {
    let (name, pods) = (node_name(number), format!("10.244.{}.0/24", number % 256));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": pods, "podCIDRs": [pods] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": Ipv4Addr::from_bits(FIRST_NODE + number) },
            { "type": "Hostname", "address": name },
        ] },
    })
}
