//! Many nodes on one real API server: what a node with Portolan asks of it, beside a node with kube-proxy.
//!
//! * [`Cluster`] is etcd and kube-apiserver with their objects, and the changes and outages that nodes see.
//! * [`Fleet`] is a number of nodes with one service proxy: [`Sources`] or [`KubeProxies`].
//! * [`measure`] takes a fleet through all phases and returns its [`Figures`].
//! * [`table`] prints the figures of all fleets.
//!
//! Requests are those of the server's audit log, by the user of the proxy. Bytes are those of the interface of the nodes'
//! network namespaces, with TCP, IP and Ethernet headers. Processor time, memory and open watches are metrics of the server.

mod cluster;
mod fleets;
mod kube_proxies;
mod load;
mod run;
mod sources;
pub mod table;

pub use cluster::{Baseline, Cluster};
pub use fleets::{Fleet, Return, Traffic};
pub use kube_proxies::KubeProxies;
pub use load::{Load, Requests};
pub use run::{Figures, Plan, measure};
pub use sources::Sources;
