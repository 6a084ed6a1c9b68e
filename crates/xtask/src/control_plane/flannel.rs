//! What flannel's DaemonSet needs beside flanneld, and its manifest, for `cargo xtask cluster`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{FLANNEL, Module, build};
use crate::run::{output, root};

const PLUGINS: &str = "github.com/containernetworking/plugins";

/// It installs the CNI configuration.
const INSTALL: Module = Module {
    folder: "flanneld",
    is_older: false,
    cgo: false,
    programs: &[(
        FLANNEL,
        "github.com/flannel-io/flannel/cmd/install_conf",
        "install-conf",
    )],
};

/// The plugin `flannel` of the last release of the reference plugins that had it; flannel's own repository of it is in no
/// module proxy.
const PLUGIN: Module = Module {
    folder: "flannel-cni",
    is_older: false,
    cgo: false,
    programs: &[(
        PLUGINS,
        "github.com/containernetworking/plugins/plugins/meta/flannel",
        "flannel",
    )],
};

/// The modules of what [`get`] builds.
pub(super) const MODULES: [&Module; 2] = [&INSTALL, &PLUGIN];

/// Programs, upstream's kube-flannel.yml, and the names of its two images.
pub(crate) struct Flannel {
    pub(crate) install_conf: PathBuf,
    pub(crate) plugin: PathBuf,
    pub(crate) manifest: String,
    pub(crate) image: String,
    pub(crate) plugin_image: String,
}

/// Builds what is missing.
pub(crate) fn get() -> Result<Flannel> {
    let modules = root()?.join("tests/control-plane");
    // For a folder that was built elsewhere the module need not be on this machine.
    let folder = modules.join(INSTALL.folder);
    output(INSTALL.go(&folder).args(["mod", "download", FLANNEL]))?;
    let source = output(
        INSTALL
            .go(&folder)
            .args(["list", "-m", "-f", "{{.Dir}}", FLANNEL]),
    )?;
    let source = PathBuf::from(String::from_utf8(source)?.trim());
    let path = source.join("Documentation/kube-flannel.yml");
    let manifest = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let image = |part: &str| {
        let images = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "));
        let image = images.clone().find(|image| image.contains(part));
        image
            .map(str::to_owned)
            .with_context(|| format!("no image {part} in {}", path.display()))
    };
    Ok(Flannel {
        install_conf: build(&[&INSTALL])?.join("install-conf"),
        plugin: build(&[&PLUGIN])?.join("flannel"),
        image: image("/flannel:")?,
        plugin_image: image("/flannel-cni-plugin:")?,
        manifest,
    })
}
