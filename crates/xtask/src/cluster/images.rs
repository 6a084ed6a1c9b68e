//! Makes the images of a cluster's containers and imports them into nodes, without a registry.
//!
//! Owns which image contains which programs. Images have the names that upstream's manifests use. [`archive`] makes an image,
//! [`portolan`] makes Portolan's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::node;
use super::parts::{Overlay, Parts, ServiceProxy};
use super::place::Node;
use super::programs::Programs;
use crate::control_plane::flannel;
use crate::kernels::packages::Store;
use crate::run::output;
use crate::{old_version, tools};

pub(super) mod archive;
mod portolan;

use archive::Spec;

const BUSYBOX: &str = "localhost/busybox:1";

/// The release of Debian whose nft upstream's images have, or a close version.
const RELEASE: &str = "trixie";

/// Programs that only the first node runs.
const CONTROL_PLANE: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// Archives for `ctr images import`.
pub(super) struct Images {
    /// The image of every pod's first container.
    pub(super) pause: String,
    /// Images for the first node.
    control_plane: Vec<PathBuf>,
    /// Images for every node.
    common: Vec<PathBuf>,
}

impl Images {
    /// Makes the images that are not in the cache. Every node imports `more` as well.
    pub(super) fn get(programs: &Programs, parts: Parts, more: &[PathBuf]) -> Result<Images> {
        let names = names(programs)?;
        let named = |program: &str| -> Result<String> {
            let is_wanted = |name: &&String| name.contains(&format!("/{program}:"));
            let name = names.iter().find(is_wanted);
            name.cloned()
                .with_context(|| format!("kubeadm names no image of {program}"))
        };
        let pause = named("pause")?;
        let mut control_plane = Vec::new();
        for program in CONTROL_PLANE {
            let file = programs.control_plane.join(program);
            let path = format!("usr/local/bin/{program}");
            control_plane.push(Spec::of(named(program)?, &path, file));
        }
        let coredns = Spec::of(named("coredns")?, "coredns", programs.coredns.clone());
        let mut common = vec![pause_of(&pause)?, busybox()?, coredns];
        if parts.proxy.mode().is_some() {
            common.push(kube_proxy(named("kube-proxy")?, programs, parts.proxy)?);
        }
        if parts.overlay == Overlay::Flannel {
            common.extend(flannel_images(programs)?);
        }
        let made = |specs: &[Spec]| specs.iter().map(Spec::make).collect::<Result<Vec<_>>>();
        let mut images = Images {
            pause,
            control_plane: made(&control_plane)?,
            common: made(&common)?,
        };
        images.common.push(portolan::archive()?);
        images.common.extend_from_slice(more);
        Ok(images)
    }

    /// Imports the images that this node needs.
    pub(super) fn import(&self, node: &Node) -> Result<()> {
        let first = (node.number == 1).then_some(&self.control_plane);
        let mut archives = first.into_iter().flatten().chain(&self.common);
        archives.try_for_each(|archive| node::import(node, archive))
    }
}

/// The names of images in kubeadm's manifests.
fn names(programs: &Programs) -> Result<Vec<String>> {
    let mut list = Command::new(programs.node.join("kubeadm"));
    list.args(["config", "images", "list", "--kubernetes-version"]);
    let names = output(list.arg(programs.version()?))?;
    Ok(String::from_utf8(names)?
        .lines()
        .map(str::to_owned)
        .collect())
}

pub(super) fn busybox() -> Result<Spec> {
    let file = tools::find("busybox").context("no program `busybox`")?;
    let applets = String::from_utf8(output(Command::new(&file).arg("--list"))?)?;
    let others = applets.lines().filter(|applet| *applet != "busybox");
    let link = |applet: &str| (format!("bin/{applet}"), "busybox".to_owned());
    Ok(Spec {
        name: BUSYBOX.to_owned(),
        links: others.map(link).collect(),
        programs: vec![("bin/busybox".to_owned(), file)],
        ..Spec::default()
    })
}

/// The image of a pod's first container: a shell that reaps orphans and exits on SIGTERM.
pub(super) fn pause_of(name: &str) -> Result<Spec> {
    let wait = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";
    Ok(Spec {
        name: name.to_owned(),
        entrypoint: ["/bin/sh", "-c", wait].map(str::to_owned).to_vec(),
        ..busybox()?
    })
}

/// kube-proxy reads its own maps with `nft`, which names protocols by `/etc/protocols` (netbase): where it prints `6` for
/// `tcp`, a full sync of kube-proxy adds every element under the one name and deletes it under the other.
fn kube_proxy(name: String, programs: &Programs, proxy: ServiceProxy) -> Result<Spec> {
    let mut spec = Spec::of(name, "usr/local/bin/kube-proxy", programs.kube_proxy()?);
    let (packages, multi): (&[&str], _) = match proxy {
        ServiceProxy::KubeProxyIptables => {
            (&["iptables", "netbase", "nftables"], "xtables-nft-multi")
        }
        ServiceProxy::KubeProxyIptablesLegacy => {
            (&["iptables", "netbase", "nftables"], "xtables-legacy-multi")
        }
        _ => (&["netbase", "nftables"], ""),
    };
    spec.trees = vec![Store::open()?.tree(RELEASE, packages)?];
    if !multi.is_empty() {
        for program in ["iptables", "ip6tables"] {
            for end in ["", "-save", "-restore"] {
                let path = format!("usr/sbin/{program}{end}");
                spec.links.push((path, multi.to_owned()));
            }
        }
    }
    Ok(spec)
}

/// The commit that Portolan's image was built from.
pub(super) fn revision() -> Result<Option<String>> {
    portolan::revision(&portolan::archive()?)
}

/// The image of Portolan 0.1.0, which needs libgcc since the program was not linked with musl.
pub(super) fn old_portolan() -> Result<PathBuf> {
    let program = old_version::for_tests()?.context("no program of version 0.1.0")?;
    let name = "localhost/portolan:v0.1.0".to_owned();
    let mut spec = Spec::of(name, "usr/local/bin/portolan", program);
    spec.trees = vec![Store::open()?.tree(RELEASE, &["libgcc-s1"])?];
    spec.make()
}

/// flannel's two images: the daemon, and its CNI plugin.
fn flannel_images(programs: &Programs) -> Result<[Spec; 2]> {
    let flannel = flannel::get()?;
    let flanneld = programs.control_plane.join("flanneld");
    let mut daemon = Spec::of(flannel.image, "opt/bin/flanneld", flanneld);
    let install = "opt/bin/install-conf".to_owned();
    daemon.programs.push((install, flannel.install_conf));
    // It searches iptables even in its nftables mode.
    let packages = ["iptables", "nftables"];
    daemon.trees = vec![Store::open()?.tree(RELEASE, &packages)?];
    for program in ["iptables", "ip6tables"] {
        let multi = "xtables-nft-multi".to_owned();
        daemon.links.push((format!("usr/sbin/{program}"), multi));
    }
    let mut plugin = busybox()?;
    plugin.name = flannel.plugin_image;
    plugin.programs.push(("flannel".to_owned(), flannel.plugin));
    Ok([daemon, plugin])
}
