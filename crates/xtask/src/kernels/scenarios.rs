//! The suite: which tests run on other kernels, and how they are started there.
//!
//! A scenario is one test function, in a process of its own with its own time limit, so that one that hangs affects no
//! other. The same binaries run on every kernel. A test prints "SKIPPED: ..." when a capability is missing, "FALLBACK: ..."
//! when it passes by a fallback, and "EXCEPTION: ..." when nft or another program has a limit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::packages::Store;
use super::results::Results;
use crate::control_plane;
use crate::run::{built, cargo, executables, output};

/// Test binaries of the suite, by target, and those of their tests that are part of it, by parts of their names: by
/// hand, and where there is little time.
const SUITE: &[Tests] = &[
    Tests {
        target: "kernels",
        whole: &[""],
        ci: &["guard", "missing_feature", "lists_every_kernel_feature"],
    },
    Tests {
        target: "sctp",
        whole: &[""],
        ci: &["balanced"],
    },
    Tests {
        target: "kernel_cases",
        whole: &[""],
        ci: &["every_case"],
    },
    Tests {
        target: "kernel_clusters",
        whole: &[""],
        ci: &[],
    },
    Tests {
        target: "survival",
        whole: &[""],
        ci: &["repaired"],
    },
    Tests {
        target: "conntrack",
        whole: &[""],
        ci: &["udp_flow_moves"],
    },
    Tests {
        target: "overlay",
        whole: &[""],
        ci: &["three_nodes_form"],
    },
    Tests {
        target: "overlay_wireguard",
        whole: &[""],
        ci: &["no_inner_byte"],
    },
    Tests {
        target: "overlay_wireguard_peers",
        whole: &[""],
        ci: &[],
    },
    // By hand, where flanneld is built.
    Tests {
        target: "overlay_flannel",
        whole: &["become_encrypted"],
        ci: &[],
    },
    Tests {
        target: "overlay_forged",
        whole: &[""],
        ci: &[],
    },
    // Beside a real kube-proxy they need the control plane's programs, whose start alone takes minutes there.
    Tests {
        target: "takeover",
        whole: &["rules_of", "no_take_over", "cleanup"],
        ci: &[],
    },
    Tests {
        target: "rendered_text",
        whole: &[""],
        ci: &["restart"],
    },
    Tests {
        target: "nft_witness",
        whole: &[""],
        ci: &[],
    },
    Tests {
        target: "kernels_nft",
        whole: &[""],
        ci: &[],
    },
    Tests {
        target: "leftovers",
        whole: &[""],
        ci: &[],
    },
];

struct Tests {
    target: &'static str,
    whole: &'static [&'static str],
    ci: &'static [&'static str],
}

/// How much of it runs, and how long that may take.
pub(crate) struct Size {
    is_ci: bool,
    /// One scenario.
    scenario: Duration,
    /// All of them, on one kernel.
    all: Duration,
    /// Sizes of scenarios, under emulation.
    environment: &'static [(&'static str, &'static str)],
}

/// By hand or at night: half an hour for each kernel.
pub(crate) const WHOLE: Size = Size {
    is_ci: false,
    scenario: Duration::from_secs(600),
    all: Duration::from_secs(3600),
    environment: &[
        ("PORTOLAN_KERNEL_CLUSTERS", "5"),
        ("PORTOLAN_SERVICES", "30"),
        ("PORTOLAN_FLUSHES", "100"),
        ("PORTOLAN_KILLS", "20"),
        ("PORTOLAN_SEEDS", "2"),
        ("PORTOLAN_EVERY", "6"),
    ],
};

/// For `--ci`: some minutes for each of two kernels.
pub(crate) const CI: Size = Size {
    is_ci: true,
    scenario: Duration::from_secs(180),
    all: Duration::from_secs(600),
    environment: &[
        ("PORTOLAN_SERVICES", "20"),
        ("PORTOLAN_FLUSHES", "10"),
        ("PORTOLAN_SEEDS", "1"),
        ("PORTOLAN_EVERY", "20"),
    ],
};

/// Modules that the kernel does not load on demand.
const MODULES: [&str; 11] = [
    "br_netfilter",
    "vrf",
    "ip_vs",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "ip6_tables",
    "ip6table_nat",
    "ip6table_filter",
    "ip6table_mangle",
];

/// How many times slower than this machine the tests take an emulated one with one processor for. Without it,
/// background traffic loses datagrams for lack of processor time alone.
const SLOWNESS: u32 = 20;

/// One test function.
struct Scenario {
    name: String,
    binary: PathBuf,
    test: String,
}

/// The scenarios, built.
pub(crate) struct Suite {
    scenarios: Vec<Scenario>,
    environment: Vec<(&'static str, String)>,
    size: &'static Size,
    /// Whether scenarios were selected by name.
    is_part: bool,
}

impl Suite {
    /// Builds the tests and the program, and lists what they hold.
    pub(crate) fn build(store: &Store, size: &'static Size, only: &[String]) -> Result<Suite> {
        // `--only kernels::guard` need not build what is not `kernels`.
        let is_asked = |target: &str| {
            let names =
                |part: &String| part.split_once("::").is_none_or(|(name, _)| name == target);
            only.is_empty() || only.iter().any(names)
        };
        let wanted: Vec<&Tests> = SUITE.iter().filter(|t| is_asked(t.target)).collect();
        let binaries = build(&wanted)?;
        let mut scenarios = Vec::new();
        for (tests, binary) in wanted.into_iter().zip(binaries) {
            let listing = output(Command::new(&binary).args(["--list", "--format", "terse"]))?;
            let listing = String::from_utf8_lossy(&listing);
            for test in listing.lines().filter_map(|l| l.strip_suffix(": test")) {
                let name = format!("{}::{test}", tests.target);
                let parts = if size.is_ci { tests.ci } else { tests.whole };
                let is_wanted = parts.iter().any(|part| test.contains(part))
                    && (only.is_empty() || only.iter().any(|part| name.contains(part.as_str())));
                if is_wanted {
                    scenarios.push(Scenario {
                        name,
                        binary: binary.clone(),
                        test: test.to_owned(),
                    });
                }
            }
        }
        ensure!(
            !scenarios.is_empty(),
            "no scenario has a name that contains the text"
        );
        let mut environment = vec![
            ("PORTOLAN_PROGRAM", built("portolan")?.display().to_string()),
            ("RUST_BACKTRACE", "0".into()),
        ];
        let readers = store.nft_versions()?;
        let readers = readers
            .iter()
            .map(|(version, nft)| format!("{version}={}", nft.display()));
        environment.push(("PORTOLAN_NFT", readers.collect::<Vec<_>>().join(",")));
        match control_plane::built()? {
            Some(programs) => {
                environment.push((control_plane::VARIABLE, programs.display().to_string()));
            }
            None => {
                eprintln!("SKIPPED: flanneld: it is not built; `cargo xtask control-plane` does")
            }
        }
        match store.ipvsadm() {
            Ok(ipvsadm) => environment.push(("PORTOLAN_IPVSADM", ipvsadm.display().to_string())),
            Err(error) => eprintln!("SKIPPED: virtual servers of IPVS: {error:#}"),
        }
        Ok(Suite {
            scenarios,
            environment,
            size,
            is_part: !only.is_empty(),
        })
    }

    /// Whether it is less than all there is of this size.
    pub(crate) fn is_part(&self) -> bool {
        self.is_part
    }

    /// Names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let scenarios = self.scenarios.iter();
        scenarios.map(|scenario| scenario.name.clone()).collect()
    }

    /// No longer than this for all of them.
    pub(crate) fn limit(&self) -> Duration {
        self.size.all
    }

    /// For bash on the kernel: runs each of `names`, and frames its output by lines that [`Results::read`] knows.
    /// `emulated`: the number of processors that are.
    pub(crate) fn script(&self, names: &[String], emulated: Option<u32>) -> String {
        let mut script = String::from("echo \"kernel $(uname -r)\"\n");
        let modules = MODULES.join(" ");
        script += &format!("[ -z \"$MODULES\" ] || modprobe -d \"$MODULES\" -qa {modules}\n");
        for (name, value) in &self.environment {
            script += &format!("export {name}='{value}'\n");
        }
        if let Some(processors) = emulated {
            let slowness = SLOWNESS / processors;
            script += &format!("export PORTOLAN_SLOWNESS={slowness}\n");
            for (name, value) in self.size.environment {
                script += &format!("export {name}={value}\n");
            }
        }
        script += "unshare -n \"$PORTOLAN_PROGRAM\" version --features </dev/null; echo\n";
        let wanted = |scenario: &&Scenario| names.contains(&scenario.name);
        for scenario in self.scenarios.iter().filter(wanted) {
            let (name, limit) = (&scenario.name, self.size.scenario.as_secs());
            script += &format!(
                "echo 'BEGIN {name}'\n\
                 timeout -k 5 {limit} {} --exact '{}' --include-ignored --nocapture --test-threads=1 </dev/null; c=$?\n\
                 echo; echo \"END {name} $c\"\n",
                scenario.binary.display(),
                scenario.test,
            );
        }
        script
    }

    /// Runs all of it on the running kernel.
    pub(crate) fn run_here(&self, logs: &Path) -> Result<Results> {
        let release =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").context("what runs here")?;
        let release = release.trim();
        let script = logs.join("here.sh");
        std::fs::write(&script, self.script(&self.names(), None))?;
        let mut command = Command::new("bash");
        command.arg("-c").arg("exec bash \"$0\" 2>&1").arg(&script);
        let printed = output(&mut command)?;
        std::fs::write(logs.join(format!("{release}.out")), &printed)?;
        let printed = String::from_utf8_lossy(&printed);
        Ok(Results::read(release, &self.names(), &printed))
    }
}

/// Builds the program and the test binaries, and says where these are, in the same order.
fn build(tests: &[&Tests]) -> Result<Vec<PathBuf>> {
    let mut command = cargo(&["test", "--no-run", "--quiet", "--workspace"])?;
    // A test of the program's own package: the program is built for it, as for the quick tests.
    command.args(["--test", "commands"]);
    for tests in tests {
        command.args(["--test", tests.target]);
    }
    let targets: Vec<&str> = tests.iter().map(|tests| tests.target).collect();
    executables(command, "test", &targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_boot_runs_only_what_is_left() {
        let scenario = |name: &str| Scenario {
            name: name.into(),
            binary: "x".into(),
            test: name.into(),
        };
        let suite = Suite {
            scenarios: vec![scenario("a"), scenario("b")],
            environment: vec![("PORTOLAN_PROGRAM", "/p".into())],
            size: &CI,
            is_part: false,
        };
        let script = suite.script(&["b".into()], Some(2));
        assert!(script.contains("BEGIN b") && !script.contains("BEGIN a"));
        assert!(script.contains("PORTOLAN_SLOWNESS"));
        assert!(
            !suite
                .script(&suite.names(), None)
                .contains("PORTOLAN_SLOWNESS")
        );
    }
}
