//! Kubernetes' end-to-end tests and what their pods run, for `cargo xtask e2e`, in a module and a folder of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{KUBERNETES, Module, TAGS, build_with, stamps_of};
use crate::run::{output, root, run};

const GINKGO: &str = "github.com/onsi/ginkgo/v2";

/// A client and server of one test, which sends TCP segments out of their window.
const REGRESSION: &str = "k8s.io/kubernetes/test/images/regression-issue-74839";

const MODULE: Module = Module {
    folder: "e2e",
    is_older: false,
    cgo: false,
    programs: &[
        (
            KUBERNETES,
            "k8s.io/kubernetes/test/images/agnhost",
            "agnhost",
        ),
        (KUBERNETES, REGRESSION, "regression-issue-74839"),
        (GINKGO, "github.com/onsi/ginkgo/v2/ginkgo", "ginkgo"),
    ],
};

/// Builds `e2e.test`, `agnhost` and `ginkgo` unless that has been done, and returns their folder.
pub(crate) fn programs() -> Result<PathBuf> {
    build_with(&[&MODULE], &|folder| {
        let module = module()?;
        let version = MODULE.version(&module, KUBERNETES)?;
        let mut test = MODULE.go(&module);
        test.args([
            "test",
            "-c",
            "-vet=off",
            "-trimpath",
            "-tags",
            TAGS,
            "-ldflags",
        ])
        .arg(format!(
            "-s -w {}",
            stamps_of(KUBERNETES, &version).join(" ")
        ))
        .arg("-o")
        .arg(folder.join("e2e.test"))
        .arg("k8s.io/kubernetes/test/e2e");
        run(&mut test).context("build e2e.test")
    })
}

/// Whether [`programs`] has built them all.
pub(crate) fn is_built() -> Result<bool> {
    super::is_built(&[&MODULE])
}

/// The folder of upstream's sources.
pub(crate) fn sources() -> Result<PathBuf> {
    let list = ["list", "-m", "-f", "{{.Dir}}", KUBERNETES];
    let folder = output(MODULE.go(&module()?).args(list))?;
    Ok(Path::new(String::from_utf8(folder)?.trim()).to_owned())
}

fn module() -> Result<PathBuf> {
    Ok(root()?.join("tests/control-plane").join(MODULE.folder))
}
