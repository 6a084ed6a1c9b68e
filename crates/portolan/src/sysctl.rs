//! Conntrack sysctls, under kube-proxy's flag names: set by `run` before its first commit, and by `--init-only`.
//!
//! Failures are logged and never fatal: `/proc/sys` may be read-only (an unprivileged container), or the network
//! namespace may not be allowed to change limits of the whole machine. The current values then stay in effect.
//!
//! Two differences from kube-proxy. `nf_conntrack_max` is only ever raised: an administrator's larger value stays.
//! And `--conntrack-tcp-be-liberal` is on by default: otherwise a packet outside the window of a translated connection
//! passes untranslated, and the client resets the connection (kube-proxy's iptables mode drops such packets by a
//! filter rule that every packet passes; Portolan has no such rule).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::cli::duration;

/// Flags of the conntrack sysctls.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection tracking")]
pub struct ConntrackArgs {
    /// Set nf_conntrack_max to this many entries per CPU core, but at least --conntrack-min; 0 leaves it unchanged
    #[arg(long, value_name = "NUMBER", default_value_t = 32_768)]
    pub conntrack_max_per_core: u32,

    /// Minimum nf_conntrack_max, in entries
    #[arg(long, value_name = "NUMBER", default_value_t = 131_072)]
    pub conntrack_min: u32,

    /// Conntrack timeout of idle established TCP connections; 0 leaves it unchanged
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub conntrack_tcp_timeout_established: Duration,

    /// Conntrack timeout of TCP connections in CLOSE_WAIT; 0 leaves it unchanged
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub conntrack_tcp_timeout_close_wait: Duration,

    /// Set nf_conntrack_tcp_be_liberal, to translate out-of-window TCP packets too; false leaves it unchanged
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: bool,

    /// Conntrack timeout of unanswered UDP flows; 0 leaves it unchanged
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub conntrack_udp_timeout: Duration,

    /// Conntrack timeout of answered UDP flows; 0 leaves it unchanged
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub conntrack_udp_timeout_stream: Duration,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Relative to the root of the file system.
    pub path: &'static str,
    /// Value to set.
    pub value: u64,
    /// Keep a larger value.
    pub at_least: bool,
}

/// Result of applying a setting.
#[derive(Debug)]
pub enum Applied {
    /// Had the value already.
    Unchanged,
    Written,
    /// Could not be read or written.
    Failed(io::Error),
}

impl ConntrackArgs {
    /// The settings that the flags ask for on a machine with this many CPU cores (kube-proxy's `setupConntrack`).
    pub fn settings(&self, processors: usize) -> Vec<Setting> {
        let mut settings = Vec::new();
        if self.conntrack_max_per_core > 0 {
            let scaled = u64::from(self.conntrack_max_per_core) * processors as u64;
            let max = scaled.max(self.conntrack_min.into());
            let limits = [
                ("proc/sys/net/netfilter/nf_conntrack_max", max),
                // Four entries per bucket, as kube-proxy does.
                ("sys/module/nf_conntrack/parameters/hashsize", max / 4),
            ];
            settings.extend(limits.map(|(path, value)| Setting {
                path,
                value,
                at_least: true,
            }));
        }
        let timeouts = [
            (
                "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
                self.conntrack_tcp_timeout_established,
            ),
            (
                "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
                self.conntrack_tcp_timeout_close_wait,
            ),
            (
                "proc/sys/net/netfilter/nf_conntrack_udp_timeout",
                self.conntrack_udp_timeout,
            ),
            (
                "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream",
                self.conntrack_udp_timeout_stream,
            ),
        ];
        let asked = timeouts.into_iter().filter(|(_, time)| time.as_secs() > 0);
        settings.extend(asked.map(|(path, time)| Setting {
            path,
            value: time.as_secs(),
            at_least: false,
        }));
        if self.conntrack_tcp_be_liberal {
            settings.push(Setting {
                path: "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
                value: 1,
                at_least: false,
            });
        }
        settings
    }

    /// Applies the settings to this machine and network namespace, and logs changes and failures. Returns how many
    /// settings do not exist yet: conntrack may be a module that the first rule loads.
    pub fn apply(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut missing = 0;
        for setting in self.settings(processors) {
            match setting.apply(Path::new("/")) {
                Applied::Unchanged => {}
                Applied::Written => {
                    tracing::info!(
                        path = format!("/{}", setting.path),
                        value = setting.value,
                        "sysctl set"
                    );
                }
                Applied::Failed(error) => {
                    missing += usize::from(error.kind() == io::ErrorKind::NotFound);
                    tracing::warn!(path = format!("/{}", setting.path), value = setting.value, %error,
                        "cannot set sysctl; leaving the current value");
                }
            }
        }
        missing
    }
}

impl Setting {
    /// Writes the value below `root`, unless it is set already.
    pub fn apply(&self, root: &Path) -> Applied {
        let file: PathBuf = root.join(self.path);
        let result = std::fs::read_to_string(&file).and_then(|text| {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let found: u64 = text.trim().parse().map_err(invalid)?;
            if found == self.value || (self.at_least && found > self.value) {
                return Ok(Applied::Unchanged);
            }
            std::fs::write(&file, self.value.to_string()).map(|()| Applied::Written)
        });
        result.unwrap_or_else(Applied::Failed)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        conntrack: ConntrackArgs,
    }

    fn args(flags: &[&str]) -> ConntrackArgs {
        let all = std::iter::once(&"portolan").chain(flags);
        Cli::try_parse_from(all).unwrap().conntrack
    }

    fn named(settings: &[Setting], end: &str) -> Option<u64> {
        let found = settings.iter().find(|setting| setting.path.ends_with(end));
        found.map(|setting| setting.value)
    }

    #[test]
    fn defaults_are_kube_proxys_but_for_the_window() {
        let few = args(&[]).settings(2);
        assert_eq!(named(&few, "/nf_conntrack_max"), Some(131_072));
        assert_eq!(named(&few, "/hashsize"), Some(32_768));
        assert_eq!(named(&few, "tcp_timeout_established"), Some(86_400));
        assert_eq!(named(&few, "tcp_timeout_close_wait"), Some(3_600));
        assert_eq!(named(&few, "tcp_be_liberal"), Some(1));
        assert_eq!(named(&few, "udp_timeout"), None);
        let many = args(&[]).settings(64);
        assert_eq!(named(&many, "/nf_conntrack_max"), Some(64 * 32_768));
    }

    #[test]
    fn zero_and_false_leave_a_setting_alone() {
        let left = args(&[
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-tcp-be-liberal=false",
        ]);
        assert_eq!(left.settings(8), []);
        let udp = args(&[
            "--conntrack-udp-timeout=1m",
            "--conntrack-udp-timeout-stream=2m30s",
        ]);
        let settings = udp.settings(8);
        assert_eq!(named(&settings, "udp_timeout"), Some(60));
        assert_eq!(named(&settings, "udp_timeout_stream"), Some(150));
    }

    #[test]
    fn limits_are_raised_and_never_lowered() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("limit");
        let limit = |value| Setting {
            path: "limit",
            value,
            at_least: true,
        };
        std::fs::write(&file, "100\n").unwrap();
        assert!(matches!(limit(50).apply(root.path()), Applied::Unchanged));
        assert!(matches!(limit(100).apply(root.path()), Applied::Unchanged));
        assert!(matches!(limit(200).apply(root.path()), Applied::Written));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "200");
        let exact = Setting {
            at_least: false,
            ..limit(30)
        };
        assert!(matches!(exact.apply(root.path()), Applied::Written));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(limit(1).apply(root.path()), Applied::Failed(_)));
    }
}
