//! CoreDNS, for `cargo xtask cluster`, in a module and a folder of its own.

use std::path::PathBuf;

use anyhow::Result;

use super::{Module, build};

const COREDNS: &str = "github.com/coredns/coredns";

pub(super) const MODULE: Module = Module {
    folder: "coredns",
    is_older: false,
    cgo: false,
    programs: &[(COREDNS, COREDNS, "coredns")],
};

/// Builds it unless that has been done, and returns its path.
pub(crate) fn program() -> Result<PathBuf> {
    Ok(build(&[&MODULE])?.join("coredns"))
}
