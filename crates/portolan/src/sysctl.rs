//! Conntrack sysctls, as kube-proxy sets them: set by `run` before its first commit, and by `--init-only`.
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

use kube_proxy_config::Conntrack;

/// The kernel's list of online CPUs.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Upper end of what the number of CPUs asks for (kube-proxy's `getConntrackMax`).
const SCALED_LIMIT: u64 = 1_048_576;

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

/// The settings that are configured, on a machine with this many CPU cores (kube-proxy's `setupConntrack`).
pub fn settings(conntrack: &Conntrack, processors: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    if conntrack.max_per_core > 0 {
        let scaled = u64::from(conntrack.max_per_core) * processors;
        let max = scaled.min(SCALED_LIMIT).max(conntrack.min.into());
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
            conntrack.tcp_established_timeout,
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            conntrack.tcp_close_wait_timeout,
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_udp_timeout",
            conntrack.udp_timeout,
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream",
            conntrack.udp_stream_timeout,
        ),
    ];
    let asked = timeouts.into_iter().filter(|(_, time)| time.as_secs() > 0);
    settings.extend(asked.map(|(path, time)| Setting {
        path,
        value: time.as_secs(),
        at_least: false,
    }));
    if conntrack.accounting {
        settings.push(Setting {
            path: "proc/sys/net/netfilter/nf_conntrack_acct",
            value: 1,
            at_least: false,
        });
    }
    if conntrack.tcp_be_liberal {
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
pub fn apply(conntrack: &Conntrack) -> usize {
    let mut missing = 0;
    for setting in settings(conntrack, processors()) {
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

/// CPU cores of the host. The limit is for the whole machine, so a cgroup's share of it does not count.
fn processors() -> u64 {
    let listed = std::fs::read_to_string(ONLINE).ok();
    let counted = listed.and_then(|list| count(list.trim()));
    counted.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |number| number.get() as u64)
    })
}

/// Counts a list of CPUs such as `0-3,8` (cpuset(7), "List format").
fn count(list: &str) -> Option<u64> {
    let mut counted: u64 = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        counted = counted.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(counted)
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
    use kube_proxy_config::{CommandLine, Dialect};

    use super::*;

    fn given(flags: &[&str]) -> Conntrack {
        let line = CommandLine::read(Dialect::Portolan, flags, |_| None);
        line.resolve(None).unwrap().effective.conntrack
    }

    fn named(settings: &[Setting], end: &str) -> Option<u64> {
        let found = settings.iter().find(|setting| setting.path.ends_with(end));
        found.map(|setting| setting.value)
    }

    #[test]
    fn defaults_are_kube_proxys_but_for_the_window() {
        let few = settings(&given(&[]), 2);
        assert_eq!(named(&few, "/nf_conntrack_max"), Some(131_072));
        assert_eq!(named(&few, "/hashsize"), Some(32_768));
        assert_eq!(named(&few, "tcp_timeout_established"), Some(86_400));
        assert_eq!(named(&few, "tcp_timeout_close_wait"), Some(3_600));
        assert_eq!(named(&few, "tcp_be_liberal"), Some(1));
        assert_eq!(named(&few, "udp_timeout"), None);
        assert_eq!(named(&few, "nf_conntrack_acct"), None);
        let counting = settings(&given(&["--service-traffic=on"]), 2);
        assert_eq!(named(&counting, "nf_conntrack_acct"), Some(1));
        let more = settings(&given(&[]), 16);
        assert_eq!(named(&more, "/nf_conntrack_max"), Some(16 * 32_768));
    }

    #[test]
    fn many_cores_ask_for_a_million_entries_at_most() {
        let max = |flags: &[&str]| named(&settings(&given(flags), 64), "/nf_conntrack_max");
        assert_eq!(max(&[]), Some(1_048_576));
        assert_eq!(max(&["--conntrack-min=2000000"]), Some(2_000_000));
    }

    #[test]
    fn zero_and_false_leave_a_setting_alone() {
        let left = given(&[
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-tcp-be-liberal=false",
        ]);
        assert_eq!(settings(&left, 8), []);
        let udp = given(&[
            "--conntrack-udp-timeout=1m",
            "--conntrack-udp-timeout-stream=2m30s",
        ]);
        let settings = settings(&udp, 8);
        assert_eq!(named(&settings, "udp_timeout"), Some(60));
        assert_eq!(named(&settings, "udp_timeout_stream"), Some(150));
    }

    #[test]
    fn cpus_are_counted_from_the_kernels_list() {
        for (list, expected) in [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-1,4,6-7", Some(5)),
            ("", None),
            ("3-1", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(count(list), expected, "{list}");
        }
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
