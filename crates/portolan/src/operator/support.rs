//! `portolan support`: one archive for a bug report, without credentials.
//!
//! Owns the list of what goes into the archive: documents of the daemon, tables, settings and counters of the kernel.
//! Neither kubeconfigs nor tokens nor environments are read. What cannot be gathered is named in `errors.txt`, so the
//! archive is useful without a daemon, too.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;

use super::client::{self, Unanswered};
use super::documents::Status;
use crate::cli::SupportArgs;
use crate::{build_info, features, render};

/// The state of the daemon, which says what else there is to ask for.
const STATUS: (&str, &str) = ("/v1/status", "status.json");

/// Documents of a daemon that serves Services, and their names in the archive.
const OF_SERVICES: &[(&str, &str)] = &[
    ("/v1/services", "services.json"),
    ("/v1/verify", "verify.json"),
];

/// Documents of every daemon.
const DOCUMENTS: &[(&str, &str)] = &[
    ("/v1/checks", "checks.json"),
    ("/v1/configz", "configz.json"),
    ("/v1/metrics", "metrics.txt"),
];

/// Files of the kernel and the system, as far as they exist: the image has no `/etc/os-release`, and a kernel may lack IPv6 or
/// conntrack.
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/net/ipv6_route",
    "/proc/net/netstat",
    "/proc/net/route",
    "/proc/net/snmp",
    "/proc/net/sockstat",
    "/proc/net/stat/nf_conntrack",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/uptime",
    "/proc/version",
];

/// Settings of conntrack, if the kernel has it.
const CONNTRACK: &str = "/proc/sys/net/netfilter";

/// The folder in the archive.
const FOLDER: &str = "portolan-support";

/// `portolan support`
pub fn support(args: &SupportArgs) -> ExitCode {
    match write(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "portolan: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Writes the archive. Returns whether everything could be gathered.
fn write(args: &SupportArgs) -> Result<bool> {
    let path = match &args.to {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path.clone()),
        None => Some(default_path()),
    };
    let Some(path) = path else {
        return archive(io::stdout().lock());
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let is_whole = archive(file)?;
    let _ = writeln!(io::stdout(), "{}", path.display());
    Ok(is_whole)
}

fn default_path() -> PathBuf {
    let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    format!("{FOLDER}-{now}.tar.gz").into()
}

/// Gathers everything and writes it as one archive.
fn archive(out: impl Write) -> Result<bool> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let mut errors = String::new();
    let mut add = |name: &str, contents: Result<Vec<u8>>| -> Result<()> {
        match contents {
            Ok(contents) => append(&mut archive, name, &contents),
            Err(error) => {
                let _ = writeln!(errors, "{name}: {error:#}");
                Ok(())
            }
        }
    };
    let status = client::get(STATUS.0);
    let of_services: &[(&str, &str)] = match status.as_deref().is_ok_and(serves_no_services) {
        true => &[],
        false => OF_SERVICES,
    };
    add(STATUS.1, body(status))?;
    for (document, name) in of_services.iter().chain(DOCUMENTS) {
        add(name, body(client::get(document)))?;
    }
    add(
        "tables.nft",
        render::live(None).map(|rendered| rendered.text.into_bytes()),
    )?;
    let version = build_info::get().text();
    add(
        "features.txt",
        features::report().map(|text| (version + &text).into_bytes()),
    )?;
    for file in FILES.iter().filter(|file| is_there(file)) {
        let contents = fs::read(file).with_context(|| format!("cannot read {file}"));
        add(&format!("system{file}"), contents)?;
    }
    if is_there(CONNTRACK) {
        add("system/conntrack-sysctls", settings(Path::new(CONNTRACK)))?;
    }
    let is_whole = errors.is_empty();
    if !is_whole {
        append(&mut archive, "errors.txt", errors.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(is_whole)
}

/// What the daemon has answered.
fn body(answer: Result<Bytes, Unanswered>) -> Result<Vec<u8>> {
    Ok(answer?.to_vec())
}

/// Whether a daemon with this status document (JSON) runs without a service proxy.
fn serves_no_services(status: &[u8]) -> bool {
    let status: Result<Status, _> = serde_json::from_slice(status);
    status.is_ok_and(|status| status.services.is_none())
}

/// Whether a file exists, as far as can be known.
fn is_there(file: &str) -> bool {
    Path::new(file).try_exists().unwrap_or(true)
}

fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, contents: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o600);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    header.set_mtime(now.as_secs());
    archive
        .append_data(&mut header, format!("{FOLDER}/{name}"), contents)
        .context("cannot write the archive")
}

/// All settings of a directory, one line each.
fn settings(directory: &Path) -> Result<Vec<u8>> {
    let mut text = String::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        if let Ok(value) = fs::read_to_string(&path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = writeln!(text, "{name} = {}", value.trim());
        }
    }
    Ok(text.into_bytes())
}
