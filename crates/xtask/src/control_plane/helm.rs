//! Helm, for the tests of the chart in `deploy/helm/`.
//!
//! It has a module and a folder of its own, so that a new version of Helm does not rebuild Kubernetes.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{Module, build};
use crate::tools;

/// Names the program for the tests.
pub(crate) const VARIABLE: &str = "PORTOLAN_HELM";

pub(super) const HELM: &str = "helm.sh/helm/v3";

pub(super) const MODULE: Module = Module {
    folder: "helm",
    is_older: false,
    cgo: false,
    programs: &[(HELM, "helm.sh/helm/v3/cmd/helm", "helm")],
};

/// The program that the environment names, else the one built here. `None`, with a warning, without Go; with `CI` set
/// that is an error.
pub(crate) fn for_tests() -> Result<Option<PathBuf>> {
    if let Some(helm) = std::env::var_os(VARIABLE) {
        return Ok(Some(helm.into()));
    }
    if tools::find("go").is_some() {
        return program().map(Some);
    }
    if std::env::var_os("CI").is_some() {
        bail!("no Go, so no Helm, and CI is set: nothing may be skipped");
    }
    eprintln!("SKIPPED: every test of the Helm chart: Go is not installed");
    Ok(None)
}

/// Builds Helm unless that has been done, and returns its path.
pub(super) fn program() -> Result<PathBuf> {
    Ok(build(&[&MODULE])?.join("helm"))
}
