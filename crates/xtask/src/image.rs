//! `cargo xtask image`: the container image, written without a registry and without a daemon.
//!
//! Owns what the image holds and what its configuration says. `image/program.rs` builds the program, `image/layer.rs`
//! packs the only layer, `image/layout.rs` writes the OCI layout and the archive.
//!
//! Invariant: one commit and one tool chain give the same bytes, wherever the checkout is: entries have a fixed order, times come
//! from SOURCE_DATE_EPOCH or the commit, paths of the build machine are not in the program.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::licenses::{self, Package};
use crate::run::root;

mod commit;
mod difference;
mod layer;
pub(crate) mod layout;
mod program;
mod reproduce;

pub(crate) use commit::Commit;
pub(crate) use layer::pack_folder;
use layer::{Entry, Layer};
use layout::Layout;
pub(crate) use layout::hexadecimal;
pub(crate) use program::Arch;
pub(crate) use reproduce::reproduce;

#[cfg(test)]
mod tests;

/// The version of the workspace, which all its crates have.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Tells the tests where the archive is.
pub(crate) const VARIABLE: &str = "PORTOLAN_IMAGE";

const PROGRAM: &str = "usr/local/bin/portolan";
/// Links to the program, which answers by the name it is called by: kube-proxy's and flannel's manifests find what
/// they start.
const LINKS: [&str; 4] = [
    "bin/cp",
    "opt/bin/flanneld",
    "opt/bin/install-conf",
    "usr/local/bin/kube-proxy",
];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin";
/// Settings of the allocator, in the image and in benches: give freed memory back at once, take no huge pages. `render` of
/// 5,000 Services of 10 endpoints: 41 instead of 96 MB, in the same time.
pub(crate) const ALLOCATOR: [(&str, &str); 2] =
    [("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "0")];
const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nportolan:x:65532:65532:portolan:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nportolan:x:65532:\n";
const DESCRIPTION: &str =
    "Service proxy for Kubernetes nodes, with a VXLAN overlay; replaces kube-proxy and flannel";
/// The goal for the compressed layer.
const LARGEST_LAYER: usize = 10_000_000;

/// What to build, and where to write it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Architectures of the image, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "amd64,arm64")]
    arch: Vec<Arch>,
    /// Folder of the OCI layout and the archive [default: target/image]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Name of the image; the tag is v and the version
    #[arg(long, default_value = "localhost/portolan")]
    name: String,
    /// Address of the source code, for the label org.opencontainers.image.source
    #[arg(long)]
    source: Option<String>,
    /// Also unpack the files of the first architecture into this new folder
    #[arg(long)]
    tree: Option<PathBuf>,
}

/// An image as written.
pub(crate) struct Image {
    /// For `ctr images import`, `podman load` and `skopeo copy oci-archive:...`.
    pub(crate) archive: PathBuf,
    /// The program of each architecture.
    pub(crate) programs: Vec<(Arch, PathBuf)>,
}

/// Builds the image and prints where it is.
pub(crate) fn image(options: &Options) -> Result<()> {
    let image = build(options)?;
    println!("{}", image.archive.display());
    Ok(())
}

/// The image of this machine's architecture, below `target/image`, for the tests.
pub(crate) fn for_tests() -> Result<PathBuf> {
    let image = build(&Options {
        arch: vec![Arch::host()?],
        output: None,
        name: "localhost/portolan".to_owned(),
        source: None,
        tree: None,
    })?;
    Ok(image.archive)
}

/// The program in the image of this machine's architecture, for the benches.
pub(crate) fn program() -> Result<PathBuf> {
    program::build(Arch::host()?, None)
}

/// Builds the image.
pub(crate) fn build(options: &Options) -> Result<Image> {
    let commit = Commit::read()?;
    let output = match &options.output {
        Some(folder) => folder.clone(),
        None => root()?.join("target/image"),
    };
    let mut layout = Layout::default();
    let (mut manifests, mut programs) = (Vec::new(), Vec::new());
    for &arch in &options.arch {
        let program = program::build(arch, commit.revision.as_deref())?;
        let content =
            std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        let packages = licenses::packages(&[arch.target()])?;
        let layer = Layer::pack(&entries(content, &packages)?, commit.seconds)?;
        ensure!(
            layer.compressed.len() < LARGEST_LAYER,
            "the compressed layer for {} has {} bytes, more than {LARGEST_LAYER}",
            arch.name(),
            layer.compressed.len()
        );
        eprintln!(
            "{}: layer {} bytes, compressed {} bytes",
            arch.name(),
            layer.unpacked.len(),
            layer.compressed.len()
        );
        if let (Some(folder), true) = (&options.tree, programs.is_empty()) {
            layer.unpack(folder)?;
        }
        let labels = labels(&commit, options.source.as_deref());
        manifests.push(manifest(&mut layout, arch, &layer, &commit, &labels)?);
        programs.push((arch, program));
    }
    let index = index(
        &mut layout,
        &manifests,
        &labels(&commit, options.source.as_deref()),
    )?;
    let archive = output.join(format!("portolan-{VERSION}-image.tar"));
    let name = format!("{}:v{VERSION}", options.name);
    layout.write(&output.join("oci"), &archive, index, &name, commit.seconds)?;
    eprintln!("{name}: {}", layout::digest_of_index(&output.join("oci"))?);
    Ok(Image { archive, programs })
}

/// Everything that is in the layer.
fn entries(program: Vec<u8>, packages: &[Package]) -> Result<Vec<Entry>> {
    let documents = "usr/share/doc/portolan";
    let license = std::fs::read(root()?.join("LICENSE")).context("read LICENSE")?;
    let mut entries = vec![
        Entry::file("etc/group", GROUP),
        Entry::file("etc/passwd", PASSWD),
        Entry::file(&format!("{documents}/LICENSE"), license),
        Entry::file(
            &format!("{documents}/THIRD-PARTY-LICENSES"),
            licenses::text(packages)?,
        ),
        Entry::program(PROGRAM, program),
    ];
    entries.extend(LINKS.map(|link| Entry::link(link, PROGRAM)));
    Ok(entries)
}

/// The labels of the image, which its index and manifests have as annotations too.
fn labels(commit: &Commit, source: Option<&str>) -> Map<String, Value> {
    let labels = [
        ("title", Some("Portolan")),
        ("description", Some(DESCRIPTION)),
        ("version", Some(VERSION)),
        ("licenses", Some("Apache-2.0")),
        ("created", Some(&*commit.time)),
        ("revision", commit.revision.as_deref()),
        ("source", source),
    ];
    labels
        .into_iter()
        .filter_map(|(name, value)| {
            Some((format!("org.opencontainers.image.{name}"), value?.into()))
        })
        .collect()
}

/// Adds layer, configuration and manifest of one architecture, and returns the manifest's descriptor.
fn manifest(
    layout: &mut Layout,
    arch: Arch,
    layer: &Layer,
    commit: &Commit,
    labels: &Map<String, Value>,
) -> Result<Value> {
    let mut environment = vec![PATH.to_owned()];
    environment.extend(ALLOCATOR.map(|(name, value)| format!("{name}={value}")));
    let config = json!({
        "created": commit.time,
        "architecture": arch.name(),
        "os": "linux",
        // No user: kube-proxy's and flannel's manifests expect root. Portolan's own say 65532.
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Env": environment,
            "Labels": labels,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layout::digest(&layer.unpacked)]},
        "history": [{"created": commit.time, "created_by": "cargo xtask image"}],
    });
    let config = layout.add_json("application/vnd.oci.image.config.v1+json", &config)?;
    let layer = layout.add(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        layer.compressed.clone(),
    );
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": [layer],
        "annotations": labels,
    });
    let mut descriptor = layout.add_json(media_type, &manifest)?;
    descriptor["platform"] = json!({"architecture": arch.name(), "os": "linux"});
    Ok(descriptor)
}

/// Adds the index of all architectures and returns its descriptor.
fn index(layout: &mut Layout, manifests: &[Value], labels: &Map<String, Value>) -> Result<Value> {
    ensure!(!manifests.is_empty(), "no architecture: give --arch");
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": manifests,
        "annotations": labels,
    });
    layout.add_json(media_type, &index)
}
