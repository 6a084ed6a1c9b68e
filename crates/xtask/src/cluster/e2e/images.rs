//! Makes the images of the end-to-end tests' pods: agnhost, and busybox under the names that the tests use.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::super::images::archive::Spec;
use super::registry;
use crate::control_plane::{coredns, e2e};
use crate::kernels::packages::Store;
use crate::run::output;

/// Packages of the programs that tests start in a container of agnhost.
const PACKAGES: [&str; 13] = [
    "bash",
    // dig, and its library, whose name does not begin as those of libraries do.
    "bind9-dnsutils",
    "bind9-libs",
    "conntrack",
    "coreutils",
    "curl",
    "dash",
    "hostname",
    "iproute2",
    // getent
    "libc-bin",
    "netcat-openbsd",
    "socat",
    // A library of curl, whose name does not begin as those of libraries do.
    "zlib1g",
];

const RELEASE: &str = "bookworm";

/// The release of busybox: that of bookworm crashes in `wget -T`.
const RELEASE_OF_BUSYBOX: &str = "trixie";

/// Images that are agnhost under another name, as parts of their names.
const ALIASES: [&str; 4] = [
    "e2e-test-images/nginx:",
    "distroless-iptables:",
    "glibc-dns-testing:",
    "jessie-dnsutils:",
];

/// Archives of all images.
pub(super) fn archives(programs: &Path) -> Result<Vec<PathBuf>> {
    let names = names(programs)?;
    let named = |part: &str| newest(&names, part);
    let mut archives = Vec::new();
    let agnhost =
        named("e2e-test-images/agnhost:").context("the tests name no image of agnhost")?;
    let mut agnhost = agnhost_image(agnhost, programs)?;
    // The tests of cluster DNS start servers of their own.
    let coredns = ("coredns".to_owned(), coredns::program()?);
    agnhost.programs.push(coredns);
    agnhost.trees.push(registry::tree()?);
    archives.push(agnhost.make()?);
    if let Some(name) = named("e2e-test-images/busybox:") {
        let busybox = Spec {
            name,
            ..super::super::images::busybox()?
        };
        archives.push(busybox.make()?);
    }
    if let Some(name) = named("/regression-issue-74839:") {
        let program = "regression-issue-74839";
        archives.push(Spec::of(name, program, programs.join(program)).make()?);
    }
    for name in &names {
        let Some(alias) = ALIASES.iter().find(|alias| name.contains(*alias)) else {
            continue;
        };
        let mut image = agnhost_image(name.clone(), programs)?;
        if alias.contains("nginx") {
            image.arguments = vec!["test-webserver".to_owned()];
        } else {
            image.entrypoint.clear();
        }
        archives.push(image.make()?);
    }
    Ok(archives)
}

/// The newest image whose name contains this part. The list is unordered, and has older images for tests of kubelet.
fn newest(names: &[String], part: &str) -> Option<String> {
    let version = |name: &&String| -> Vec<u32> {
        let (_, tag) = name.rsplit_once(':').unwrap_or_default();
        tag.split(['.', '-'])
            .map(|number| number.parse().unwrap_or_default())
            .collect()
    };
    let named = names.iter().filter(|name| name.contains(part));
    named.max_by_key(version).cloned()
}

/// The images that tests may use.
fn names(programs: &Path) -> Result<Vec<String>> {
    let list = output(Command::new(programs.join("e2e.test")).arg("--list-images"))?;
    let list = String::from_utf8(list)?;
    Ok(list.lines().map(|line| line.trim().to_owned()).collect())
}

fn agnhost_image(name: String, programs: &Path) -> Result<Spec> {
    let store = Store::open()?;
    let tree = store.tree(RELEASE, &PACKAGES)?;
    let busybox = store.package(RELEASE_OF_BUSYBOX, "busybox-static")?;
    let busybox = busybox.join("usr/bin/busybox");
    let mut spec = Spec::of(name, "agnhost", programs.join("agnhost"));
    spec.arguments = vec!["pause".to_owned()];
    let certificates = e2e::sources()?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        spec.programs
            .push((file.to_owned(), certificates.join(file)));
    }
    let applets = String::from_utf8(output(Command::new(&busybox).arg("--list"))?)?;
    let folders = ["bin", "sbin", "usr/bin", "usr/sbin"];
    let is_packaged = |applet: &str| {
        let packaged = folders
            .iter()
            .any(|folder| tree.join(folder).join(applet).exists());
        packaged || ["busybox", "nc", "sh"].contains(&applet)
    };
    for applet in applets.lines().filter(|applet| !is_packaged(applet)) {
        spec.links
            .push((format!("bin/{applet}"), "busybox".to_owned()));
    }
    spec.programs.push(("bin/busybox".to_owned(), busybox));
    for (path, target) in [
        ("bin/sh", "dash"),
        ("bin/nc", "nc.openbsd"),
        ("agnhost-2", "agnhost"),
    ] {
        spec.links.push((path.to_owned(), target.to_owned()));
    }
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nuser-defined-in-image:x:1000:\n"),
        ("etc/nsswitch.conf", "hosts: files dns\n"),
    ] {
        spec.texts.push((path.to_owned(), text.to_owned()));
    }
    spec.trees = vec![tree];
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_several_images_is_made_whatever_the_order() {
        let mut names = [
            "a/agnhost:2.6",
            "b/agnhost:2.55",
            "b/agnhost:2.66.1",
            "b/x:9",
        ];
        for _ in 0..names.len() {
            names.rotate_left(1);
            let names = names.map(str::to_owned);
            let newest = newest(&names, "b/agnhost:");
            assert_eq!(newest.as_deref(), Some("b/agnhost:2.66.1"));
        }
    }
}
