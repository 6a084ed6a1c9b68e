//! The command lines and the configuration file of kube-proxy, flanneld and Portolan, as one effective configuration.
//!
//! Owns the grammars (Go's values, pflag, Go's `flag`, YAML as Kubernetes reads it), the tables of flags and fields, the
//! defaults, and what counts when several say something. Leaves to others: reading files, the environment and the host
//! name, printing, and everything that the configuration is for. Invariant: a function of its arguments; no input makes
//! it panic, and every problem names the flag or field and the value.
//!
//! ```
//! use kube_proxy_config::{CommandLine, Dialect};
//!
//! let arguments = ["--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node-1", "--v=2"];
//! let line = CommandLine::read(Dialect::KubeProxy, &arguments, |_| None);
//! // The caller reads `line.config_file()`.
//! let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";
//! let resolved = line.resolve(Some(file)).unwrap();
//! assert_eq!(resolved.effective.node_name.as_deref(), Some("node-1"));
//! assert_eq!(resolved.notes.node_ports, "node ports: primary (mode nftables in the configuration)");
//! ```
//!
//! # The file
//!
//! The first document is kube-proxy's (`kubeproxy.config.k8s.io/v1alpha1`, `KubeProxyConfiguration`), the second
//! Portolan's own ([`PORTOLAN_GROUP`], [`PORTOLAN_KIND`]); either may be missing. In kube-proxy's document zero values
//! (`""`, `0`, `0s`, `false`, `[]`) mean the default, except in the fields that are pointers there, where `null` does:
//! `conntrack.maxPerCore`, `conntrack.min`, both TCP time-outs, `iptables.localhostNodePorts`, `oomScoreAdj` and the
//! masquerade bits. Unknown fields and repeated keys are warnings, wrong values are problems.
//!
//! # Where this differs from kube-proxy 1.37
//!
//! - Flags win over the file; kube-proxy ignores most of them beside `--config`.
//! - Feature gates may have any name. `null` and `0` are accepted as durations, empty text as a range.
//! - An empty `--healthz-bind-address` or `--metrics-bind-address` switches the listener off; kube-proxy keeps its default.
//! - `--bind-address` decides the family of the listeners' defaults, as the field does.
//! - A node name must be one that a Node can have, an interface name one that the kernel can have, and the values of the
//!   `ipvs` and `nftables` sections are checked in every mode.
//! - `conntrack.tcpBeLiberal: false` is no request, since every generated file has it.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod command_line;
mod effective;
mod file;
mod flag;
pub mod go;
pub mod help;
mod listeners;
mod node_ports;
mod problem;
mod resolve;
mod schema;
mod suggest;
mod tables;
mod value;
mod verbosity;
mod write;
mod yaml;

pub use command_line::{Action, CommandLine, Dialect};
pub use effective::{
    ApiServer, Conntrack, DetectLocalMode, Effective, Encryption, Filter, Listeners, LogFormat,
    Logging, Mode, NodePortAddress, Overlay, Services,
};
pub use file::{KUBE_PROXY_GROUP, KUBE_PROXY_KIND, KUBE_PROXY_VERSION};
pub use problem::{Notes, Origin, Override, Problem, Problems};
pub use resolve::Resolved;
pub use tables::portolan::{PORTOLAN_GROUP, PORTOLAN_KIND, PORTOLAN_VERSION};
pub use value::Value;
pub use verbosity::filter_of;
pub use write::{Documents, WriteError};

#[cfg(test)]
mod tests;
