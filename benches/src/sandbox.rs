//! A network namespace to load tables in, for benches that need no packets.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::Namespace;
use nft::{Kernel, KernelConfig, Monitor};
use service_dataplane::layout;

use crate::bare::Bare;

/// A namespace without links, which ends with its tables on drop.
pub struct Sandbox {
    namespace: Namespace,
}

impl Sandbox {
    /// A fresh one.
    pub fn new() -> Result<Self> {
        Ok(Sandbox {
            namespace: Namespace::new("bench")?,
        })
    }

    /// The daemon's socket, as the daemon opens it.
    pub fn kernel(&self) -> Result<Kernel> {
        let config = KernelConfig {
            table: layout::TABLE.into(),
            owner: true,
        };
        Ok(self.namespace.run(|| Kernel::open(config))??)
    }

    /// The daemon's subscription to foreign changes. The kernel notifies it of each element that is added or deleted, which makes
    /// small commits slower; it is muted during large ones, as in the daemon.
    pub fn monitor(&self, kernel: &mut Kernel) -> Result<Monitor> {
        let port = kernel.port();
        let monitor = self
            .namespace
            .run(move || Monitor::open(layout::TABLE.into(), port))??;
        kernel.mute_during_large_commits(&monitor)?;
        Ok(monitor)
    }

    /// A socket for ready-made messages.
    pub fn bare(&self) -> Result<Bare> {
        self.namespace.run(Bare::open)?
    }

    /// How long `nft` takes with these arguments and this input, from start to end of its process.
    pub fn nft(&self, arguments: &[&str], input: &str) -> Result<Duration> {
        let (_, elapsed) = self.nft_output(arguments, input)?;
        Ok(elapsed)
    }

    /// The same, and what it printed.
    pub fn nft_output(&self, arguments: &[&str], input: &str) -> Result<(String, Duration)> {
        let mut command = Command::new("nft");
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let start = Instant::now();
        let mut child = self
            .namespace
            .run(move || command.spawn())?
            .context("start nft")?;
        if let Some(mut stdin) = child.stdin.take() {
            // nft reads all of its input before it prints anything.
            stdin.write_all(input.as_bytes()).context("write to nft")?;
        }
        let output = child.wait_with_output()?;
        let elapsed = start.elapsed();
        if !output.status.success() {
            bail!(
                "nft: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok((String::from_utf8(output.stdout)?, elapsed))
    }
}
