//! The images of a cluster's containers, made here and imported: no registry is asked.
//!
//! Owns which image has which programs. Images of upstream's programs have the names by which kubeadm's manifests ask for them, and are
//! kept in the cache; Portolan's is the archive that PORTOLAN_IMAGE names, else what `cargo xtask image` makes of this checkout.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::node;
use super::parts::ServiceProxy;
use super::place::Node;
use super::programs::Programs;
use crate::control_plane::cache_folder;
use crate::image::layout::{Layout, digest};
use crate::image::{self, Arch};
use crate::run::output;
use crate::tools;

/// Part of the key: raised when this file makes other images of the same programs.
const MADE_AS: u32 = 1;

pub(super) const BUSYBOX: &str = "localhost/busybox:1";

/// Only the first node runs these.
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
    /// For the first node.
    control_plane: Vec<PathBuf>,
    /// For every node.
    common: Vec<PathBuf>,
}

/// An image to make.
struct Spec {
    name: String,
    /// Path in the image, and the program.
    programs: Vec<(String, PathBuf)>,
    /// Links in /bin to /bin/busybox.
    links: Vec<String>,
    entrypoint: Vec<String>,
}

impl Images {
    /// Makes what is missing.
    pub(super) fn get(programs: &Programs, proxy: ServiceProxy) -> Result<Images> {
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
            control_plane.push(Spec::of(named(program)?, program, file));
        }
        let mut common = vec![Spec::pause(&pause)?, Spec::busybox()?];
        if proxy == ServiceProxy::KubeProxy {
            let kube_proxy = Spec::of(named("kube-proxy")?, "kube-proxy", programs.kube_proxy()?);
            common.push(kube_proxy.with_nft()?);
        }
        let made = |specs: &[Spec]| specs.iter().map(Spec::make).collect::<Result<Vec<_>>>();
        let mut images = Images {
            pause,
            control_plane: made(&control_plane)?,
            common: made(&common)?,
        };
        let portolan = std::env::var_os(image::VARIABLE).map(PathBuf::from);
        images
            .common
            .push(portolan.map_or_else(image::for_tests, Ok)?);
        Ok(images)
    }

    /// Imports what this node needs.
    pub(super) fn import(&self, node: &Node) -> Result<()> {
        let first = (node.number == 1).then_some(&self.control_plane);
        let mut archives = first.into_iter().flatten().chain(&self.common);
        archives.try_for_each(|archive| node::import(node, archive))
    }
}

/// The names of images that kubeadm's manifests have.
fn names(programs: &Programs) -> Result<Vec<String>> {
    let mut list = Command::new(programs.node.join("kubeadm"));
    list.args(["config", "images", "list", "--kubernetes-version"]);
    let names = output(list.arg(programs.version()?))?;
    Ok(String::from_utf8(names)?
        .lines()
        .map(str::to_owned)
        .collect())
}

impl Spec {
    fn of(name: String, program: &str, file: PathBuf) -> Spec {
        Spec {
            name,
            programs: vec![(format!("usr/local/bin/{program}"), file)],
            links: Vec::new(),
            entrypoint: vec![format!("/usr/local/bin/{program}")],
        }
    }

    fn busybox() -> Result<Spec> {
        let file = tools::find("busybox").context("no program `busybox`")?;
        let applets = String::from_utf8(output(Command::new(&file).arg("--list"))?)?;
        let others = applets.lines().filter(|applet| *applet != "busybox");
        Ok(Spec {
            name: BUSYBOX.to_owned(),
            links: others.map(str::to_owned).collect(),
            programs: vec![("bin/busybox".to_owned(), file)],
            entrypoint: Vec::new(),
        })
    }

    /// Waits to be ended, and reaps the pod's orphans meanwhile, as a shell does.
    fn pause(name: &str) -> Result<Spec> {
        let wait = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";
        Ok(Spec {
            name: name.to_owned(),
            entrypoint: ["/bin/sh", "-c", wait].map(str::to_owned).to_vec(),
            ..Spec::busybox()?
        })
    }

    /// With this machine's nft.
    fn with_nft(mut self) -> Result<Spec> {
        let nft = tools::find("nft").context("no program `nft`")?;
        self.programs.extend(libraries(&nft)?);
        self.programs.push(("usr/sbin/nft".to_owned(), nft));
        Ok(self)
    }

    /// The archive, from the cache if it is there.
    fn make(&self) -> Result<PathBuf> {
        let cache = cache_folder("cluster-images")?;
        fs::create_dir_all(&cache)?;
        let last = self.name.rsplit('/').next().unwrap_or_default();
        let key = self.key()?;
        let archive = cache.join(format!("{}-{key:016x}.tar", last.replace(':', "-")));
        let lock = File::create(cache.join("lock"))?;
        lock.lock()
            .context("wait for another command that makes images")?;
        if archive.exists() {
            return Ok(archive);
        }
        let draft = archive.with_extension("draft");
        let content = self
            .pack()
            .with_context(|| format!("make the image {}", self.name))?;
        fs::write(&draft, content)?;
        fs::rename(&draft, &archive)?;
        Ok(archive)
    }

    /// A hash of everything that decides the content, with programs by size and time.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (MADE_AS, &self.name, &self.links, &self.entrypoint).hash(&mut hasher);
        for (path, file) in &self.programs {
            let file = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
            (path, file.len(), file.modified()?).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn pack(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let mut layout = Layout::default();
        let architecture = Arch::host()?.name();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
        // Not compressed: it is imported on this machine only.
        let layer = layout.add(&oci("layer.v1.tar"), layer);
        let manifest: Value = json!({
            "schemaVersion": 2,
            "mediaType": oci("manifest.v1+json"),
            "config": layout.add_json(&oci("config.v1+json"), &config)?,
            "layers": [layer],
        });
        let mut image = layout.add_json(&oci("manifest.v1+json"), &manifest)?;
        image["platform"] = json!({"architecture": architecture, "os": "linux"});
        layout.archive(image, &self.name)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (folder, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777)] {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(mode);
            header.set_size(0);
            builder.append_data(&mut header, folder, std::io::empty())?;
        }
        for (path, file) in &self.programs {
            let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let mut header = Header::new_ustar();
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_slice())?;
        }
        for link in &self.links {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, format!("bin/{link}"), "busybox")?;
        }
        Ok(builder.into_inner()?)
    }
}

/// The shared libraries of a program and its loader, each with the path by which it is searched.
fn libraries(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listed = String::from_utf8(output(Command::new("ldd").arg(program))?)?;
    let paths: BTreeSet<&str> = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect();
    Ok(paths
        .into_iter()
        .map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path)))
        .collect())
}
