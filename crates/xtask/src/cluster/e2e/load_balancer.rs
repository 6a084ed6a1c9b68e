//! A load balancer for the tests of Services of type LoadBalancer: a router in front of the nodes, and its controller.
//!
//! Owns what a cloud has: an address for each Service, in its status; the finalizer `service.kubernetes.io/load-balancer-cleanup`
//! (KEP-980); a route to the nodes whose health port answers 200, and for a Service with session affinity to one of them. The
//! router is the network namespace that the nodes' default route leads to. Packets arrive at the nodes with the Service's address
//! and the client's own, as from a load balancer of `ipMode: VIP` (KEP-1860). IPv4 only, since these tests are.
//!
//! Invariant: nothing but Services of type LoadBalancer without a class is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::super::network::ip;
use super::super::place::{Cluster, Node};
use crate::run::output;

/// How often Services and nodes are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// For an answer of a health port.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first three parts of the addresses of Services (RFC 5737).
const POOL: &str = "203.0.113";
/// The client's address in the router: not in the nodes' subnet, as tests expect of a client outside (RFC 5737).
const CLIENT: &str = "198.51.100.100";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The health port of the service proxy, for Services whose policy is `Cluster`.
const PROXY_HEALTH: u16 = 10256;

/// Runs until it is dropped.
pub(super) struct LoadBalancer {
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LoadBalancer {
    /// Starts it for a cluster that is up. Errors of its rounds go to the log.
    pub(super) fn start(cluster: &Cluster, log: &Path) -> Result<LoadBalancer> {
        let mut log = File::create(log)?;
        let is_ended = Arc::new(AtomicBool::new(false));
        let mut router = Router {
            wire: cluster.wire(),
            first: cluster.first()?,
            nodes: cluster.nodes(),
            addresses: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        router.prepare()?;
        let ended = Arc::clone(&is_ended);
        let thread = std::thread::spawn(move || {
            let mut round = || -> Result<()> {
                enter(&router.wire)?;
                while !ended.load(Ordering::Relaxed) {
                    if let Err(error) = router.round() {
                        writeln!(log, "{error:#}")?;
                    }
                    std::thread::sleep(PERIOD);
                }
                Ok(())
            };
            if let Err(error) = round() {
                eprintln!("the load balancer has ended: {error:#}");
            }
        });
        Ok(LoadBalancer {
            is_ended,
            thread: Some(thread),
        })
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread, and what it starts, into a network namespace.
fn enter(namespace: &str) -> Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {namespace}"))
}

struct Router {
    wire: String,
    first: Node,
    nodes: Vec<Node>,
    /// The last part of the address of each Service, by its UID.
    addresses: BTreeMap<String, u8>,
    /// The nodes that each address is routed to.
    routes: BTreeMap<String, Vec<String>>,
}

impl Router {
    /// Gives the router the client's address, and lets it choose a route by addresses and ports.
    fn prepare(&self) -> Result<()> {
        let address = format!("{CLIENT}/32");
        ip(&["-n", &self.wire, "addr", "add", &address, "dev", "lo"])?;
        let setting = "net.ipv4.fib_multipath_hash_policy=1";
        ip(&["netns", "exec", &self.wire, "sysctl", "-qw", setting])
    }

    fn round(&mut self) -> Result<()> {
        let mut list = self.first.command("kubectl")?;
        let list = output(list.args(["get", "services", "-A", "-o", "json"]))?;
        let list: Value = serde_json::from_slice(&list)?;
        let services = list["items"].as_array().context("no list of Services")?;
        let uids: BTreeSet<&str> = services.iter().filter_map(uid).collect();
        self.addresses.retain(|uid, _| uids.contains(uid.as_str()));
        let mut wanted = BTreeMap::new();
        let mut result = Ok(());
        for service in services {
            let one = self.service(service, &mut wanted);
            result = result.and(one.with_context(|| service["metadata"]["name"].to_string()));
        }
        self.route(wanted)?;
        result
    }

    /// Does for one Service what its type asks for, and adds the nodes for its address.
    fn service(
        &mut self,
        service: &Value,
        routes: &mut BTreeMap<String, Vec<String>>,
    ) -> Result<()> {
        let is_wanted = service["spec"]["type"] == "LoadBalancer"
            && service["spec"]["loadBalancerClass"].is_null()
            && service["metadata"]["deletionTimestamp"].is_null();
        let finalizers = service["metadata"]["finalizers"].as_array();
        let mut finalizers = finalizers.cloned().unwrap_or_default();
        let has_finalizer = finalizers.iter().any(|one| one == FINALIZER);
        match (is_wanted, has_finalizer) {
            (true, false) => {
                finalizers.push(FINALIZER.into());
                self.patch(
                    service,
                    &json!({"metadata": {"finalizers": finalizers}}),
                    &[],
                )?;
            }
            (false, true) => {
                self.set_address(service, None)?;
                finalizers.retain(|one| one != FINALIZER);
                self.patch(
                    service,
                    &json!({"metadata": {"finalizers": finalizers}}),
                    &[],
                )?;
            }
            _ => {}
        }
        let uid = uid(service).context("no UID")?;
        if !is_wanted {
            self.addresses.remove(uid);
            return Ok(());
        }
        let address = self.address(uid)?;
        if service["status"]["loadBalancer"]["ingress"][0]["ip"] != address {
            self.set_address(service, Some(&address))?;
        }
        routes.insert(address, self.healthy(service));
        Ok(())
    }

    /// The address of a Service, which it keeps.
    fn address(&mut self, uid: &str) -> Result<String> {
        let used: BTreeSet<u8> = self.addresses.values().copied().collect();
        let free = (1..=254).find(|last| !used.contains(last));
        let last = match self.addresses.get(uid) {
            Some(last) => *last,
            None => free.context("no free address")?,
        };
        self.addresses.insert(uid.to_owned(), last);
        Ok(format!("{POOL}.{last}"))
    }

    fn set_address(&self, service: &Value, address: Option<&str>) -> Result<()> {
        let ingress = address.map(|address| json!({"ip": address, "ipMode": "VIP"}));
        let ingress: Vec<Value> = ingress.into_iter().collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.patch(service, &status, &["--subresource=status"])
    }

    fn patch(&self, service: &Value, patch: &Value, more: &[&str]) -> Result<()> {
        let of = |key: &str| service["metadata"][key].as_str().context("no name");
        let mut command = self.first.command("kubectl")?;
        command.args(["patch", "service", "-n", of("namespace")?, of("name")?]);
        command
            .args(["--type=merge", "-p", &patch.to_string()])
            .args(more);
        output(&mut command).map(drop)
    }

    /// The addresses of the nodes that take a Service's traffic: the first of them for a Service with session affinity.
    fn healthy(&self, service: &Value) -> Vec<String> {
        let spec = &service["spec"];
        let port = match spec["externalTrafficPolicy"] == "Local" {
            true => spec["healthCheckNodePort"].as_u64(),
            false => None,
        };
        let port = port.and_then(|port| u16::try_from(port).ok());
        let port = port.unwrap_or(PROXY_HEALTH);
        let addresses = self.nodes.iter().map(|node| {
            let [address, _] = node.addresses();
            address
        });
        let healthy = addresses.filter(|address| is_healthy(address, port).unwrap_or(false));
        match spec["sessionAffinity"] == "ClientIP" {
            true => healthy.take(1).collect(),
            false => healthy.collect(),
        }
    }

    /// Changes the routes that differ. An address without nodes has none.
    fn route(&mut self, mut wanted: BTreeMap<String, Vec<String>>) -> Result<()> {
        wanted.retain(|_, nodes| !nodes.is_empty());
        for address in self.routes.keys().filter(|one| !wanted.contains_key(*one)) {
            ip(&["route", "del", &format!("{address}/32")])?;
        }
        for (address, nodes) in &wanted {
            if self.routes.get(address) == Some(nodes) {
                continue;
            }
            let address = format!("{address}/32");
            let mut args = vec!["route", "replace", &address, "src", CLIENT];
            for node in nodes {
                args.extend(["nexthop", "via", node, "dev", "br0"]);
            }
            ip(&args)?;
        }
        self.routes = wanted;
        Ok(())
    }
}

fn uid(service: &Value) -> Option<&str> {
    service["metadata"]["uid"].as_str()
}

/// Whether `/healthz` at a port answers 200.
fn is_healthy(address: &str, port: u16) -> Result<bool> {
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}
