//! Addresses of API servers that the cluster itself named: the endpoints of Service `default/kubernetes`.
//!
//! They are kept on disk, so that a node with an empty table reaches an API server although its configuration names
//! only a cluster IP. Invariant: whatever the file holds, the result is a short list of plausible addresses; TLS decides
//! whether the server at an address is the right one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::replace_file;

/// The file in each folder: one `ADDRESS:PORT` a line.
const FILE: &str = "api-servers";
/// More addresses than any cluster has API servers.
const MAX_ADDRESSES: usize = 16;
const MAX_BYTES: u64 = 4096;

/// The folders that hold the file, in the order of reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Vec<PathBuf>);

impl Memory {
    pub(super) fn new(folders: Vec<PathBuf>) -> Memory {
        Memory(folders)
    }

    /// The addresses in the first folder that has any.
    pub(super) fn read(&self) -> Vec<SocketAddr> {
        let folders = self.0.iter();
        let mut lists = folders.filter_map(|folder| read(&folder.join(FILE)).ok());
        lists.find(|list| !list.is_empty()).unwrap_or_default()
    }

    /// Writes the addresses to every folder. Blocks. Logs once if no folder can be written; one is enough.
    pub(super) fn write(&self, addresses: &[SocketAddr]) {
        static WARNED: Once = Once::new();
        let mut failures = Vec::new();
        for folder in &self.0 {
            if let Err(error) = write(folder, addresses) {
                failures.push(format!("{}: {error}", folder.display()));
            }
        }
        if failures.len() == self.0.len() && !failures.is_empty() {
            WARNED.call_once(|| {
                tracing::warn!(
                    "cannot write the addresses of the API servers ({}): after a reboot this node knows only the \
                     configured address; mount a directory that uid {} can write at {}",
                    failures.join("; "),
                    nix::unistd::geteuid(),
                    self.0.first().map(|folder| folder.display().to_string()).unwrap_or_default(),
                );
            });
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(plausible(
        text.lines().filter_map(|line| line.trim().parse().ok()),
    ))
}

/// At most [`MAX_ADDRESSES`] different addresses to which one can connect over a network.
pub(super) fn plausible(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut kept: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let ip = address.ip().to_canonical();
        let is_usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if is_usable
            && address.port() != 0
            && !kept.contains(&address)
            && kept.len() < MAX_ADDRESSES
        {
            kept.push(address);
        }
    }
    kept
}

fn write(folder: &Path, addresses: &[SocketAddr]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address}\n"))
        .collect();
    replace_file(&folder.join(FILE), 0o644, lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_usable_address_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            b"\x00\xff\n0.0.0.0:1\n127.0.0.1:6443\n10.0.0.1:0\n10.0.0.1:6443\n10.0.0.1:6443\n\
            [::ffff:127.0.0.1]:1\n239.1.1.1:1\nhttp://evil\n [fd00::1]:6443 \n10.0.0.2";
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let memory = Memory::new(vec![folder.path().join("missing"), folder.path().into()]);
        let found: Vec<String> = memory.read().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:6443", "[fd00::1]:6443"]);
    }

    #[test]
    fn a_file_without_end_is_read_in_part() {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (0..60_000)
            .map(|n| format!("10.0.0.1:{}\n", n + 1))
            .collect();
        std::fs::write(folder.path().join(FILE), lines).unwrap();
        let memory = Memory::new(vec![folder.path().into()]);
        assert_eq!(memory.read().len(), MAX_ADDRESSES);
    }

    #[test]
    fn written_addresses_are_read_from_the_first_folder_with_any() {
        let folder = tempfile::tempdir().unwrap();
        let (run, lib) = (folder.path().join("run"), folder.path().join("lib"));
        let memory = Memory::new(vec![run.clone(), lib]);
        let addresses = [
            "10.0.0.1:6443".parse().unwrap(),
            "[fd00::1]:1".parse().unwrap(),
        ];
        memory.write(&addresses);
        assert_eq!(memory.read(), addresses);
        std::fs::remove_dir_all(run).unwrap();
        assert_eq!(memory.read(), addresses, "after a reboot");
        let left = std::fs::read_dir(folder.path().join("lib")).unwrap();
        assert_eq!(left.count(), 1, "no other file is left");
    }
}
