//! Portolan in a Kubernetes cluster that `cargo xtask cluster` makes: real kubelets, real pods, what `deploy/` ships.
//!
//! Traffic comes from threads in the network namespaces of pods and of a host outside of the cluster; every attempt is
//! counted. Each test has a cluster of its own name, and deletes it.

mod dns;
mod faults;
mod kubeadm;
mod lifecycle;
mod memory;
mod migration;
mod operator;
mod services;
mod traffic;
mod upgrade;
