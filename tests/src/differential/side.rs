//! One of the two labs: machines, an API server, and the program that runs node 1.
//!
//! Owns what makes outcomes comparable. A machine `nowhere` has all addresses of Services that are not translated,
//! so that a packet that passes is answered and one that is dropped is not. A Service `sentinel`, changed last
//! at every switch, says by its answers when the program has come to the end of the changes before it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lab::{Client, DEFAULT_PATIENCE, Daemon, Protocol, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fates::{Fate, fate_of, observe};
use super::programs::{KubeProxy, kube_proxy_config, portolan_flags};
use super::server::{Kind, Server};
use super::supply::Supply;
use super::{Fates, GREAT_HASTE, HASTE, Planned};
use crate::cluster::space::{external_range, node_name, pod_address, service_cidr};
use crate::cluster::{Cluster, Transport};
use crate::field::Field;
use crate::oracle::{self, Origin, Packet};
use crate::stage::portolan;

/// Nodes of the lab.
pub const NODES: u8 = 2;
/// Pods of a node that may be endpoints.
pub const PODS: u8 = 6;
/// A pod of a node that is never an endpoint.
pub const CLIENT_POD: u8 = 2 + PODS;
/// Ports on which pods and nodes serve.
pub const PORTS: [u16; 3] = [8080, 8443, 53];

/// kube-proxy tries again half a minute after a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where `nowhere` answers, whatever port was asked for.
const NOWHERE_PORT: u16 = 7;
const NO_TABLES_OF_KUBE_PROXY: &str = "table ip kube-proxy
    delete table ip kube-proxy
    table ip6 kube-proxy
    delete table ip6 kube-proxy";
/// Connections that would show both of two endpoints but once in 10^6 times.
const HINTED: usize = 20;
/// Ports of the sentinel, in turn.
const SENTINEL_PORTS: [u16; 2] = [7000, 7001];

/// A lab with one node run by a program.
pub struct Side {
    /// Dropped before the lab it runs in.
    daemon: Option<Daemon>,
    supply: Supply,
    files: TempDir,
    turn: usize,
    _nowhere: Client,
    field: Field,
}

impl Side {
    pub(super) fn new(kind: Kind) -> Result<Side> {
        let field = Field::new(NODES, CLIENT_POD, &PORTS)?;
        let node = field.machine(&node_name(1))?;
        field.lead_client_to(node)?;
        // Ports of attempts come round within seconds; a datagram shall not meet an older one's translation.
        node.run(|| {
            for timeout in [
                "nf_conntrack_udp_timeout",
                "nf_conntrack_udp_timeout_stream",
            ] {
                fs::write(format!("/proc/sys/net/netfilter/{timeout}"), "2").context(timeout)?;
            }
            anyhow::Ok(())
        })??;
        for ipv4 in [true, false] {
            field.client().route_via(node, strangers(ipv4))?;
        }
        let nowhere = nowhere(&field)?;
        let server = Server::start(kind, &field, node)?;
        Ok(Side {
            daemon: None,
            supply: Supply::new(server),
            files: tempfile::tempdir()?,
            turn: 0,
            _nowhere: nowhere,
            field,
        })
    }

    pub fn field(&self) -> &Field {
        &self.field
    }

    /// What the program has said.
    pub fn log(&self) -> Vec<String> {
        self.daemon.as_ref().map(Daemon::lines).unwrap_or_default()
    }

    /// What the program answers to Prometheus.
    pub fn metrics(&self) -> Result<String> {
        crate::overlay::metrics(self.field.machine(&node_name(1))?)
    }

    /// Lines of the node's rules that name an address, for people.
    pub(super) fn rules_about(&self, address: IpAddr) -> Result<Vec<String>> {
        let ruleset = self
            .field
            .machine(&node_name(1))?
            .nft(&["list", "ruleset"])?;
        let address = address.to_string();
        let lines = ruleset.lines().filter(|line| line.contains(&address));
        Ok(lines.map(|line| line.trim().to_owned()).collect())
    }

    pub(super) fn start_kube_proxy(
        &mut self,
        kube_proxy: &KubeProxy,
        cluster: &Cluster,
    ) -> Result<()> {
        self.prepare(cluster)?;
        let config = self.files.path().join("kube-proxy.json");
        let server = self.supply.server();
        let kubeconfig = server.kubeconfig_for_kube_proxy(self.files.path())?;
        let content_type = server.content_type();
        let content = kube_proxy_config(cluster, &cluster.nodes[0], &kubeconfig, content_type);
        fs::write(&config, content.to_string())?;
        let node = self.field.machine(&cluster.nodes[0].name)?;
        if kube_proxy.minor < 36 {
            // It would take chains that its last process had emptied and not yet deleted for full ones.
            node.nft_stdin(NO_TABLES_OF_KUBE_PROXY)?;
        }
        let mut command = node.command(&kube_proxy.program);
        command.arg("--config").arg(config);
        self.daemon = Some(node.spawn("kube-proxy", command)?);
        Ok(())
    }

    /// Whether the program drops what goes to addresses that no Service has, as it should in this cluster.
    pub(super) fn knows_service_cidrs(&mut self, cluster: &Cluster) -> Result<bool> {
        self.turn += 1;
        self.supply.finish(sentinel(self.turn, None))?;
        for ipv4 in [true, false] {
            self.wait_for_sentinel(ipv4)?;
            let packet = Packet {
                destination: unallocated_address(ipv4),
                ..packet_to_sentinel(ipv4, 80)
            };
            let expected = oracle::outcome(cluster, &cluster.nodes[0], &packet);
            let shall_drop = expected == oracle::Expected::Dropped;
            let patience = if shall_drop { HASTE } else { DEFAULT_PATIENCE };
            let is_dropped = observe(&self.field, &packet, patience)? == Fate::Silent;
            if is_dropped != shall_drop {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the program follows hints for its node's zone, if there is one.
    pub(super) fn knows_its_zone(&mut self, cluster: &Cluster) -> Result<bool> {
        let Some(zone) = &cluster.nodes[0].zone else {
            return Ok(true);
        };
        self.turn += 1;
        self.supply.finish(sentinel(self.turn, Some(zone)))?;
        for ipv4 in [true, false] {
            self.wait_for_sentinel(ipv4)?;
            let packet = packet_to_sentinel(ipv4, SENTINEL_PORTS[self.turn % 2]);
            let wanted = sentinel_server(self.turn);
            let is_other =
                |fate: &Fate| matches!(fate, Fate::Answered { server, .. } if *server != wanted);
            if self.look(&packet, HINTED, HASTE)?.iter().any(is_other) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn start_portolan(&mut self, cluster: &Cluster) -> Result<()> {
        self.prepare(cluster)?;
        let server = self.supply.server();
        let kubeconfig = server.kubeconfig_for_portolan(self.files.path())?;
        let node = self.field.machine(&cluster.nodes[0].name)?;
        let mut command = node.command(portolan()?);
        command.args(["run", "--kubeconfig"]).arg(kubeconfig);
        command.args(portolan_flags(cluster, &cluster.nodes[0]));
        self.daemon = Some(node.spawn("portolan", command)?);
        Ok(())
    }

    /// Ends the program before its Node object changes under it: kube-proxy would end by itself, and take a ServiceCIDR
    /// that goes for one that stays.
    fn prepare(&mut self, cluster: &Cluster) -> Result<()> {
        self.daemon = None;
        self.set_surroundings(cluster)
    }

    pub(super) fn set_surroundings(&self, cluster: &Cluster) -> Result<()> {
        self.supply.set_surroundings(cluster)
    }

    pub(super) fn switch_to(&mut self, cluster: &Cluster) -> Result<()> {
        self.turn += 1;
        self.supply.change_to(cluster, self.turn)?;
        self.supply.finish(sentinel(self.turn, None))?;
        for ipv4 in [true, false] {
            self.wait_for_sentinel(ipv4)?;
        }
        Ok(())
    }

    fn wait_for_sentinel(&self, ipv4: bool) -> Result<()> {
        let packet = packet_to_sentinel(ipv4, SENTINEL_PORTS[self.turn % 2]);
        let wanted = sentinel_server(self.turn);
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let runs = || self.daemon.as_ref().is_some_and(Daemon::is_running);
        let waited = wait_for(&format!("the sentinel over {family}"), PATIENCE, || {
            let fate = observe(&self.field, &packet, HASTE)?;
            let there = matches!(&fate, Fate::Answered { server, .. } if *server == wanted);
            // Who has died need not be waited for.
            ensure!(there || !runs(), "{fate:?} instead of {wanted}");
            Ok(there)
        });
        let there = waited.and_then(|there| {
            ensure!(there, "the program has ended");
            Ok(())
        });
        there.with_context(|| format!("it said\n{}", self.log().join("\n")))
    }

    /// Outcomes of packets in the planned number of attempts; those most likely without an answer are waited
    /// for beside the others.
    pub(super) fn look_at_all(&mut self, planned: &[Planned]) -> Result<Vec<Fates>> {
        let aside = planned.iter().map(|plan| match plan.is_silent {
            true => Ok(Some(self.field.send_aside(&plan.packet, GREAT_HASTE)?)),
            false => Ok(None),
        });
        let aside: Vec<_> = aside.collect::<Result<_>>()?;
        let mut all = Vec::new();
        for plan in planned {
            all.push(match plan.is_silent {
                true => Fates::new(),
                false => self.look(&plan.packet, plan.attempts, HASTE)?,
            });
        }
        for ((plan, attempt), fates) in planned.iter().zip(aside).zip(&mut all) {
            if let Some(attempt) = attempt {
                let outcome = attempt
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                fates.insert(fate_of(&self.field, &plan.packet, outcome, GREAT_HASTE)?);
            }
        }
        Ok(all)
    }

    /// The outcome of a packet in this number of attempts. Waiting for silence takes long: two silent attempts count as silence.
    pub(super) fn look(
        &mut self,
        packet: &Packet,
        attempts: usize,
        patience: Duration,
    ) -> Result<Fates> {
        let mut fates = Fates::new();
        let mut silences = 0;
        for _ in 0..attempts {
            let fate = observe(&self.field, packet, patience)?;
            silences += usize::from(fate == Fate::Silent);
            fates.insert(fate);
            if silences == 2 {
                break;
            }
        }
        Ok(fates)
    }
}

/// Addresses beside those of Services, which packets are sent to all the same.
fn strangers(ipv4: bool) -> IpNet {
    match ipv4 {
        true => Ipv4Net::new_assert([10, 97, 0, 0].into(), 16).into(),
        false => Ipv6Net::new_assert([0xfd00, 0x97, 0, 0, 0, 0, 0, 0].into(), 112).into(),
    }
}

/// A machine that answers for every address of a Service: nodes have a route for them to here.
fn nowhere(field: &Field) -> Result<Client> {
    let nowhere = field.lab().client("nowhere")?;
    nowhere.serve(Protocol::Tcp, NOWHERE_PORT)?;
    nowhere.serve(Protocol::Udp, NOWHERE_PORT)?;
    let ranges = |ipv4| [service_cidr(ipv4), external_range(ipv4), strangers(ipv4)];
    let ranges_of = |ipv4| ranges(ipv4).map(|range| range.to_string());
    for (family, via, ranges) in [("-4", 0, ranges_of(true)), ("-6", 1, ranges_of(false))] {
        let via = nowhere.addresses()[via].to_string();
        for range in &ranges {
            ip(
                &nowhere,
                &[family, "route", "add", "local", range, "dev", "lo"],
            )?;
            for node in field.machines() {
                ip(node, &["route", "add", range, "via", &via])?;
            }
        }
    }
    for node in field.machines() {
        nowhere.route_via(node, node.pod_cidr_v4().into())?;
        nowhere.route_via(node, node.pod_cidr_v6().into())?;
    }
    nowhere.nft_stdin(&format!(
        "table inet nowhere {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                ip daddr {{ {} }} meta l4proto {{ tcp, udp }} redirect to :{NOWHERE_PORT}
                ip6 daddr {{ {} }} meta l4proto {{ tcp, udp }} redirect to :{NOWHERE_PORT}
            }}
        }}",
        ranges_of(true).join(", "),
        ranges_of(false).join(", ")
    ))?;
    Ok(nowhere)
}

fn ip(host: &lab::Host, arguments: &[&str]) -> Result<()> {
    let mut command = host.command("ip");
    command.args(arguments);
    let output = host.output(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments:?}: {said}");
    Ok(())
}

fn packet_to_sentinel(ipv4: bool, port: u16) -> Packet {
    Packet {
        origin: Origin::Elsewhere,
        source: pod_address(1, CLIENT_POD, ipv4),
        destination: sentinel_address(ipv4),
        protocol: oracle::Protocol::Transport(Transport::Tcp),
        port,
    }
}

/// Among the addresses of Services, and no Service's.
fn unallocated_address(ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(10, 96, 201, 1).into(),
        false => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xc901).into(),
    }
}

fn sentinel_address(ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::new(10, 96, 200, 1).into(),
        false => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xc801).into(),
    }
}

/// Where the sentinel's one endpoint is at a turn: port and endpoint change together, and only both new ones
/// together answer as they shall, so neither the Service nor a slice can be behind.
fn sentinel_node(turn: usize) -> usize {
    1 + turn % 2
}

/// How that endpoint calls itself.
fn sentinel_server(turn: usize) -> String {
    format!("pod-{}-2:{}", sentinel_node(turn), PORTS[0])
}

/// The sentinel's objects; with a zone, there is a second endpoint, which is hinted for another zone.
fn sentinel(turn: usize, zone: Option<&str>) -> Vec<Value> {
    let addresses = [true, false].map(sentinel_address);
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "sentinel", "name": "sentinel"},
        "spec": {
            "type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": addresses[0], "clusterIPs": addresses,
            "ports": [{"name": "main", "protocol": "TCP", "port": SENTINEL_PORTS[turn % 2]}],
        },
    })];
    objects.extend([true, false].map(|ipv4| {
        let endpoint = |turn, zone: Option<&str>| {
            let node = sentinel_node(turn) as u8;
            let zones: Vec<Value> = zone.into_iter().map(|zone| json!({"name": zone})).collect();
            json!({
                "addresses": [pod_address(node, 2, ipv4)], "nodeName": node_name(node),
                "conditions": {"ready": true}, "hints": {"forZones": zones},
            })
        };
        let mut endpoints = vec![endpoint(turn, zone)];
        endpoints.extend(zone.map(|_| endpoint(turn + 1, Some("elsewhere"))));
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "sentinel", "name": format!("sentinel-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "sentinel"},
            },
            "addressType": family,
            "ports": [{"name": "main", "protocol": "TCP", "port": PORTS[0]}],
            "endpoints": endpoints,
        })
    }));
    objects
}
