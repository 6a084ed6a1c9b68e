//! kubelet and kubeadm, for `cargo xtask cluster`.
//!
//! They have a module and a folder of their own, so that the tests which do not need them do not wait for their builds.

use std::path::PathBuf;

use anyhow::Result;

use super::{KUBERNETES, Module, build};

pub(super) const MODULE: Module = Module {
    folder: "node",
    is_older: false,
    cgo: false,
    programs: &[
        (KUBERNETES, "k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        (KUBERNETES, "k8s.io/kubernetes/cmd/kubeadm", "kubeadm"),
    ],
};

/// Builds both unless that has been done, and returns their folder.
pub(crate) fn programs() -> Result<PathBuf> {
    build(&[&MODULE])
}
