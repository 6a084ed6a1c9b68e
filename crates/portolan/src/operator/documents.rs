//! The documents that the daemon sends to commands, which print them or pass them on as JSON (`--output json`).
//!
//! Additions are compatible; a field is never renamed or given another meaning within `/v1`. Durations are seconds, times
//! RFC 3339. Text from objects of the cluster is on one line, without control characters.

pub use super::encryption::EncryptionDocument;
use serde::{Deserialize, Serialize};

/// `GET /v1/status`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Time since the daemon started.
    pub uptime_seconds: f64,
    /// The verdict.
    pub state: State,
    /// Why the state is not `ok`, one sentence each.
    pub reasons: Vec<String>,
    /// What an operator should know though all is well.
    pub remarks: Vec<String>,
    /// Where objects come from.
    pub source: Source,
    /// The service proxy; absent with `--service-proxy=off`.
    pub services: Option<ServicesStatus>,
    /// Objects, or parts of them, that are ignored; the first of them.
    pub ignored: Vec<String>,
    /// How many there are.
    pub ignored_count: usize,
    /// Services that the kernel refused or that are over their budget, with the reason. Their last good rules serve, if they have any.
    pub quarantined: Vec<String>,
    /// Frontends that two Services request; the first of them.
    pub conflicts: Vec<String>,
    /// How many there are.
    pub conflict_count: usize,
    /// The overlay; absent without one.
    pub overlay: Option<OverlayStatus>,
    /// Kernel features that are missing, and what is done instead.
    pub fallbacks: Vec<String>,
    /// Addresses that the daemon listens on.
    pub listeners: Vec<Listener>,
}

/// The verdict of [`Status`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Everything known is in the kernel, and everything is watched.
    Ok,
    /// The first sync is not complete.
    #[default]
    Starting,
    /// Another daemon of this node owns the tables.
    Standby,
    /// Part of the node's work is not done: see the reasons.
    Degraded,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `API server` or `directory`.
    pub kind: String,
    /// URLs of API servers, the one that is asked first at the front; or the path of the directory.
    pub addresses: Vec<String>,
    /// Kinds that are not being watched at present, and why.
    pub outages: Vec<String>,
    /// Time since the last object was received.
    pub last_event_seconds: Option<f64>,
}

/// `GET /v1/checks`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeChecks {
    pub node: String,
    /// Whether the daemon has an overlay.
    pub overlay: bool,
    /// The daemon has an overlay, and the overlay's probes are off.
    #[serde(default)]
    pub probes_off: bool,
    pub checks: Vec<NodeCheck>,
}

/// One examination of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeCheck {
    /// What was examined.
    pub check: String,
    /// What drops traffic or misleads it, each with what to do.
    pub faults: Vec<String>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// The service proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// Number of Services.
    pub services: usize,
    /// Number of endpoints.
    pub endpoints: usize,
    /// The first sync is complete.
    pub synced: bool,
    /// Kinds whose first list is missing.
    pub waiting_for: Vec<String>,
    /// Age of the oldest change that is not in the kernel yet.
    pub pending_seconds: Option<f64>,
    /// Time since the last commit.
    pub last_commit_seconds: Option<f64>,
    /// Commits since the start.
    pub commits: u64,
    /// Commits that failed.
    pub failed: u64,
    /// Durations of the last 1,000 commits.
    pub commit_latency: Option<Latency>,
    /// From the change of an EndpointSlice to its commit, for the last 1,000 changes whose time is known.
    pub programming_latency: Option<Latency>,
    /// Foreign changes of the tables that were repaired.
    pub repairs: u64,
    /// Time since the last repair.
    pub last_repair_seconds: Option<f64>,
}

/// Quantiles in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are shorter.
    pub median_seconds: f64,
    /// One of a hundred is longer.
    pub p99_seconds: f64,
    /// The longest.
    pub longest_seconds: f64,
}

/// The overlay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverlayStatus {
    /// The kernel has been as planned at least once.
    pub ready: bool,
    /// Tunnel devices, one for each family in use.
    pub devices: Vec<String>,
    /// Number of peers in the family that has more.
    pub peers: usize,
    /// Steps that repaired foreign changes.
    pub repairs: u64,
    /// Peers that probes find broken, one sentence each.
    pub findings: Vec<String>,
    /// Nodes that are skipped, and why; the first of them.
    pub problems: Vec<String>,
    /// Peers kept although the latest Node list lacks them.
    pub held: Vec<String>,
    /// Encryption between nodes, unless it is off.
    #[serde(default)]
    pub encryption: Option<EncryptionDocument>,
}

/// A listener of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `health` or `metrics`.
    pub name: String,
    /// The address; absent while it is not bound.
    pub address: Option<String>,
}

/// `GET /v1/services`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Services {
    pub node: String,
    /// Why connections could not be counted, if so.
    pub uncounted: Option<String>,
    /// Whether the kernel counts bytes and packets of connections (`net.netfilter.nf_conntrack_acct`).
    pub counts_bytes: bool,
    /// In the order of their names.
    pub services: Vec<Service>,
}

/// A Service on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`
    pub name: String,
    /// `spec.type`
    #[serde(rename = "type")]
    pub kind: String,
    /// `spec.internalTrafficPolicy`
    pub internal_policy: String,
    /// `spec.externalTrafficPolicy`
    pub external_policy: String,
    /// Time-out of session affinity, if the Service has it.
    pub affinity_seconds: Option<u32>,
    /// Why nothing is programmed for the Service, if so: headless, ExternalName, another proxy's.
    pub unprogrammed: Option<String>,
    /// Why the Service is quarantined, if so. The frontends are those of its last good rules, if it has any.
    pub quarantined: Option<String>,
    /// Addresses and ports that clients connect to.
    pub frontends: Vec<Frontend>,
    /// Number of endpoints of all ports and families.
    pub endpoint_count: usize,
    /// How many of them take new connections under policy Cluster.
    pub used_count: usize,
    /// Endpoints of each port and family; only in the answer about one Service.
    pub endpoints: Vec<Endpoint>,
    /// What this node ignores of the Service's objects.
    pub ignored: Vec<String>,
    /// Conntrack entries to the Service now.
    pub traffic: Traffic,
    /// Connections, packets and bytes that were added since requests with `measure=1` began; 0 without such requests.
    pub measured: Traffic,
}

/// Connections in conntrack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Number of entries.
    pub connections: u64,
    /// Their packets so far, both directions; 0 where the kernel does not count.
    pub packets: u64,
    /// Their bytes so far, both directions.
    pub bytes: u64,
}

/// An address and port that clients connect to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Frontend {
    /// `cluster IP`, `external IP`, `load balancer IP` or `node port`.
    pub kind: String,
    /// The address; absent for node ports.
    pub address: Option<String>,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub port: u16,
    /// What happens to connections: `balanced`, `refused` or `dropped`.
    pub disposition: String,
    /// What happens to those from outside, under external policy Local.
    pub outside: Option<String>,
    /// The Service that has this frontend instead, if one does.
    pub held_by: Option<String>,
    /// Clients that may connect; empty: all.
    pub allowed_sources: Vec<String>,
    /// Conntrack entries to the frontend now.
    pub traffic: Traffic,
}

/// An endpoint of one Service port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the Service port, empty if the port has none.
    pub port_name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address and port.
    pub address: String,
    /// The node, if known.
    pub node: Option<String>,
    /// The pod, `namespace/name`, if known.
    #[serde(default)]
    pub pod: Option<String>,
    /// The zone of its node, if known.
    #[serde(default)]
    pub zone: Option<String>,
    /// On this node.
    pub local: bool,
    /// `ready`, `serving`, `terminating`, as far as they hold.
    pub conditions: Vec<String>,
    /// Zones whose clients should use the endpoint.
    pub zone_hints: Vec<String>,
    /// Nodes whose clients should use the endpoint.
    pub node_hints: Vec<String>,
    /// Takes new connections under policy Cluster.
    pub used: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// Takes new connections under policy Local.
    pub used_locally: bool,
    /// Conntrack entries to the endpoint through the Service now.
    pub traffic: Traffic,
    /// What was added since requests with `measure=1` began. Begins again after a minute without connections.
    #[serde(default)]
    pub measured: Traffic,
}

/// Traffic between two questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Conntrack entries now.
    pub connections: u64,
    /// New connections a second.
    pub connections_per_second: f64,
    /// Packets a second, both directions.
    pub packets_per_second: f64,
    /// Bytes a second, both directions.
    pub bytes_per_second: f64,
}

/// The traffic of one Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// `namespace/name`
    pub service: String,
    #[serde(flatten)]
    pub rates: Rates,
    /// Its endpoints with connections, the one with the most bytes first; only where one Service is named.
    #[serde(default)]
    pub endpoints: Vec<EndpointRate>,
}

/// The traffic of one endpoint of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointRate {
    /// Name of the Service port, empty if the port has none.
    pub port_name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address and port.
    pub address: String,
    /// The pod, `namespace/name`, if known.
    #[serde(default)]
    pub pod: Option<String>,
    /// The node, if known.
    pub node: Option<String>,
    #[serde(flatten)]
    pub rates: Rates,
}

/// What happened between two questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// Time between the questions.
    pub elapsed_seconds: f64,
    /// Whether the kernel counts bytes and packets.
    pub counts_bytes: bool,
    /// Services with connections, the one with the most bytes first.
    pub services: Vec<Rate>,
}

/// `GET /v1/flows`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    pub node: String,
    /// Number of flows; the list may be shorter.
    pub count: usize,
    /// Flows through Services, by Service and client.
    pub flows: Vec<Flow>,
}

/// A connection through a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address and port of the client.
    pub from: String,
    /// The client's pod, `namespace/name`, if the pod is an endpoint of any Service.
    #[serde(default)]
    pub from_pod: Option<String>,
    /// The node whose pod the client is, as far as the overlay knows.
    pub from_node: Option<String>,
    /// Address and port that the client sends to.
    pub to: String,
    /// `namespace/name`
    pub service: String,
    /// Address and port that the connection is translated to.
    pub endpoint: String,
    /// The pod of the endpoint, `namespace/name`, if known.
    #[serde(default)]
    pub endpoint_pod: Option<String>,
    /// The node of the endpoint, if known.
    pub endpoint_node: Option<String>,
    /// There was a reply.
    pub answered: bool,
    /// Packets so far, both directions; 0 where the kernel does not count.
    pub packets: u64,
    /// Bytes so far, both directions.
    pub bytes: u64,
}

/// `GET /v1/trace`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    pub node: String,
    /// The client.
    pub from: String,
    /// Where the client sends to.
    pub to: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What is decided, in the order of the decisions.
    pub steps: Vec<Step>,
    /// The Service, if one answers.
    pub service: Option<String>,
    /// Endpoints of the Service port.
    pub endpoints: Vec<TracedEndpoint>,
    pub verdict: TraceVerdict,
    /// The verdict in a sentence.
    pub text: String,
    /// What the kernel did with a real packet; only with `--live`.
    pub live: Option<Live>,
}

/// What the kernel did with a packet. Added by the command, not by the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// What each rule and chain decided, in this order; empty if no packet came.
    pub steps: Vec<LiveStep>,
    /// A rule or a policy dropped or rejected it.
    pub is_dropped: bool,
    /// Where it was sent to, if a new connection was translated.
    pub endpoint: Option<String>,
    /// Whether the daemon says the same of such packets; absent if that cannot be told.
    pub agrees: Option<bool>,
    /// The outcome in a sentence.
    pub text: String,
}

/// A decision of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStep {
    /// Family and name of the table.
    pub table: String,
    pub chain: String,
    /// Handle of the rule, as `nft -a` lists it; absent for the policy and the end of a chain.
    pub rule: Option<u64>,
    pub decision: String,
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is decided: `client`, `quarantined`, `frontend`, `policy`, `affinity`, `endpoints`.
    pub name: String,
    /// The decision.
    pub text: String,
}

/// An endpoint in a [`Trace`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedEndpoint {
    /// Address and port.
    pub address: String,
    /// The pod, `namespace/name`, if known.
    #[serde(default)]
    pub pod: Option<String>,
    /// The node, if known.
    pub node: Option<String>,
    /// May get the connection.
    pub eligible: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// The source address that the endpoint sees, if eligible.
    pub source: Option<String>,
    /// Why the source address is an address of this node, if it is.
    pub masquerade: Option<String>,
    /// How the packet gets there, if eligible.
    pub way: Option<String>,
}

/// The verdict of a [`Trace`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceVerdict {
    /// Sent to one of the eligible endpoints.
    Balanced,
    /// Refused at once.
    Refused,
    /// Dropped without an answer.
    Dropped,
    /// No rule of Portolan concerns the packet.
    #[default]
    Untouched,
}

/// `GET /v1/verify`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub node: String,
    /// What was compared: elements, chains and rules of each table.
    pub compared: Vec<String>,
    /// What the kernel lacks or has too much, as steps that would repair it; the first of them.
    pub differences: Vec<String>,
    /// How many there are.
    pub difference_count: usize,
}

/// `GET` and `PUT /v1/log-level`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// A level, or a list by module.
    pub level: String,
}

/// The answer to a request that cannot be served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub error: String,
}
