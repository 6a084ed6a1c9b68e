//! What the pods of the end-to-end tests run: agnhost, and busybox under the names that the tests ask for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::super::images::archive::Spec;
use crate::control_plane::e2e;
use crate::kernels::packages::Store;
use crate::run::output;
use crate::tools;

/// Packages of what the tests start in a container of agnhost.
const PACKAGES: [&str; 9] = [
    "bash",
    "conntrack",
    "coreutils",
    "curl",
    "dash",
    "hostname",
    "iproute2",
    "netcat-openbsd",
    "socat",
];

const RELEASE: &str = "bookworm";

/// Images that are agnhost under another name, as parts of their names.
const ALIASES: [&str; 3] = [
    "e2e-test-images/nginx:",
    "distroless-iptables:",
    "jessie-dnsutils:",
];

/// Archives of all of them.
pub(super) fn archives(programs: &Path) -> Result<Vec<PathBuf>> {
    let names = names(programs)?;
    let named = |part: &str| names.iter().find(|name| name.contains(part)).cloned();
    let mut archives = Vec::new();
    let agnhost = named("/agnhost:").context("the tests name no image of agnhost")?;
    archives.push(agnhost_image(agnhost, programs)?.make()?);
    if let Some(name) = named("/busybox:") {
        let busybox = Spec {
            name,
            ..super::super::images::busybox()?
        };
        archives.push(busybox.make()?);
    }
    for alias in ALIASES {
        if let Some(name) = named(alias) {
            let mut image = agnhost_image(name, programs)?;
            if alias.contains("nginx") {
                image.arguments = vec!["test-webserver".to_owned()];
            } else {
                image.entrypoint.clear();
            }
            archives.push(image.make()?);
        }
    }
    Ok(archives)
}

/// The images that the tests may ask for.
fn names(programs: &Path) -> Result<Vec<String>> {
    let list = output(Command::new(programs.join("e2e.test")).arg("--list-images"))?;
    let list = String::from_utf8(list)?;
    Ok(list.lines().map(|line| line.trim().to_owned()).collect())
}

fn agnhost_image(name: String, programs: &Path) -> Result<Spec> {
    let tree = Store::open()?.tree(RELEASE, &PACKAGES)?;
    let mut spec = Spec::of(name, "agnhost", programs.join("agnhost"));
    spec.arguments = vec!["pause".to_owned()];
    let certificates = e2e::sources()?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        spec.programs
            .push((file.to_owned(), certificates.join(file)));
    }
    let busybox = tools::find("busybox").context("no program `busybox`")?;
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
