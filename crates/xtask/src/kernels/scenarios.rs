//! The suite: which tests run on other kernels, how they are started there, and what came of them.
//!
//! A scenario is one test function, in a process of its own with its own time limit: one that hangs takes none of the
//! others along. The same binaries run on every kernel; a test that finds something missing says so ("SKIPPED: ..."),
//! and one that the product passes by another way says that ("FALLBACK: ...").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::matrix::Column;
use super::packages::Store;
use crate::run::{built, cargo, output, run};

/// Test binaries of the suite, by package and target, and those of their tests that are part of it: all, where none
/// is named. `ci` is what there is time for at each submission.
const SUITE: &[Tests] = &[
    Tests {
        package: "portolan-tests",
        target: "kernel_cases",
        ci: &["every_case"],
    },
    Tests {
        package: "portolan-tests",
        target: "kernel_clusters",
        ci: &[],
    },
    Tests {
        package: "portolan-tests",
        target: "survival",
        ci: &["flushes", "repaired"],
    },
    Tests {
        package: "portolan-tests",
        target: "rendered_text",
        ci: &["restart"],
    },
    Tests {
        package: "portolan-tests",
        target: "nft_witness",
        ci: &["nft_tells"],
    },
    Tests {
        package: "portolan-tests",
        target: "kernels",
        ci: &[""],
    },
    Tests {
        package: "portolan-tests",
        target: "kernels_nft",
        ci: &[""],
    },
    Tests {
        package: "portolan-tests",
        target: "sctp",
        ci: &[""],
    },
    Tests {
        package: "portolan",
        target: "leftovers",
        ci: &[""],
    },
];

struct Tests {
    package: &'static str,
    target: &'static str,
    /// Parts of names.
    ci: &'static [&'static str],
}

/// Emulation is slow, and some scenarios are long.
const LIMIT: Duration = Duration::from_secs(420);

/// Sizes for random tests, which would take all day under emulation.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PORTOLAN_KERNEL_CLUSTERS", "8"),
    ("PORTOLAN_CLUSTERS", "100"),
    ("PORTOLAN_HISTORIES", "10"),
    ("PORTOLAN_SERVICES", "100"),
    ("RUST_BACKTRACE", "0"),
];

/// One test function.
struct Scenario {
    name: String,
    binary: PathBuf,
    test: String,
}

/// What came of a scenario on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It held.
    Passed(Duration),
    /// It held by another way, in its words.
    FellBack(Duration, String),
    /// Something is missing, in its words.
    Skipped(String),
    /// It did not hold, or did not end, or was not reached.
    Failed(String),
}

/// The scenarios, built.
pub(crate) struct Suite {
    scenarios: Vec<Scenario>,
    environment: Vec<(String, String)>,
}

impl Suite {
    /// Builds the tests and the program, and lists what they hold.
    pub(crate) fn build(store: &Store, ci: bool, only: &[String]) -> Result<Suite> {
        run(&mut cargo(&["build", "--quiet", "--package", "portolan"])?)?;
        let mut scenarios = Vec::new();
        // `--only kernels::guard` need not build what is not `kernels`.
        let is_asked = |target: &str| {
            let names =
                |part: &String| part.split_once("::").is_none_or(|(name, _)| name == target);
            only.is_empty() || only.iter().any(names)
        };
        for tests in SUITE.iter().filter(|tests| is_asked(tests.target)) {
            let binary = tests.build()?;
            let listing = output(Command::new(&binary).args(["--list", "--format", "terse"]))?;
            let listing = String::from_utf8_lossy(&listing);
            for test in listing
                .lines()
                .filter_map(|line| line.strip_suffix(": test"))
            {
                let name = format!("{}::{test}", tests.target);
                let wanted = if ci { tests.ci } else { &[""] };
                let is_wanted = wanted.iter().any(|part| test.contains(part))
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
        ensure!(!scenarios.is_empty(), "no scenario has such a name");
        let own = |name: &str, value: String| (name.to_owned(), value);
        let mut environment: Vec<(String, String)> = ENVIRONMENT
            .iter()
            .map(|(name, value)| own(name, (*value).to_owned()))
            .collect();
        environment.push(own(
            "PORTOLAN_PROGRAM",
            built("portolan")?.display().to_string(),
        ));
        let readers = store.nft_versions()?;
        let readers = readers
            .iter()
            .map(|(version, nft)| format!("{version}={}", nft.display()));
        environment.push(own("PORTOLAN_NFT", readers.collect::<Vec<_>>().join(",")));
        match store.ipvsadm() {
            Ok(ipvsadm) => environment.push(own("PORTOLAN_IPVSADM", ipvsadm.display().to_string())),
            Err(error) => eprintln!("SKIPPED: virtual servers of IPVS: {error:#}"),
        }
        Ok(Suite {
            scenarios,
            environment,
        })
    }

    /// Names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.scenarios
            .iter()
            .map(|scenario| scenario.name.clone())
            .collect()
    }

    /// No longer than this for all of them.
    pub(crate) fn limit(&self) -> Duration {
        LIMIT * u32::try_from(self.scenarios.len()).unwrap_or(u32::MAX)
    }

    /// For bash in the guest: runs each, and frames its output by lines that [`Suite::results`] knows.
    pub(crate) fn script(&self) -> String {
        let mut script = String::from("echo \"kernel $(uname -r)\"\n");
        // Nothing asks the kernel for these by itself.
        script += "[ -z \"$MODULES\" ] || modprobe -d \"$MODULES\" -qa br_netfilter ip_vs\n";
        for (name, value) in &self.environment {
            script += &format!("export {name}='{value}'\n");
        }
        for scenario in &self.scenarios {
            let (name, limit) = (&scenario.name, LIMIT.as_secs());
            script += &format!(
                "echo 'BEGIN {name}'; s=$(date +%s%N)\n\
                 timeout -k 5 {limit} {} --exact '{}' --nocapture --test-threads=1 </dev/null; c=$?\n\
                 echo; echo \"END {name} $c $(( ($(date +%s%N) - s) / 1000000 ))\"\n",
                scenario.binary.display(),
                scenario.test,
            );
        }
        script
    }

    /// Reads what the script printed.
    pub(crate) fn results(&self, printed: &str) -> BTreeMap<String, Verdict> {
        let verdict = |name: &str| {
            let begin = format!("BEGIN {name}\n");
            let Some((_, rest)) = printed.split_once(&begin) else {
                return Verdict::Failed("not reached".into());
            };
            let end = format!("END {name} ");
            let Some((said, rest)) = rest.split_once(&end) else {
                return Verdict::Failed("it took the machine down".into());
            };
            let mut numbers = rest.lines().next().unwrap_or_default().split(' ');
            let code = numbers.next().and_then(|n| n.parse().ok());
            let millis = numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            judge(said, code, Duration::from_millis(millis))
        };
        let scenarios = self.scenarios.iter();
        scenarios
            .map(|scenario| (scenario.name.clone(), verdict(&scenario.name)))
            .collect()
    }

    /// Runs all of it on the running kernel.
    pub(crate) fn run_here(&self, logs: &Path) -> Result<Column> {
        let start = Instant::now();
        let release =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").context("what runs here")?;
        let release = release.trim().to_owned();
        let script = logs.join("here.sh");
        std::fs::write(&script, self.script())?;
        let mut command = Command::new("bash");
        command.arg("-c").arg("exec bash \"$0\" 2>&1").arg(&script);
        let printed = String::from_utf8_lossy(&output(&mut command)?).into_owned();
        std::fs::write(logs.join(format!("{release}.log")), &printed)?;
        Ok(Column {
            kernel: format!("{release} (here)"),
            results: self.results(&printed),
            elapsed: start.elapsed(),
        })
    }
}

/// What the words and the exit code of a test's process mean.
fn judge(said: &str, code: Option<i32>, elapsed: Duration) -> Verdict {
    let after = |mark: &str| {
        said.lines()
            .find_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()))
    };
    match (code, after("SKIPPED: "), after("FALLBACK: ")) {
        (Some(0), Some(why), _) => Verdict::Skipped(why),
        (Some(0), None, Some(way)) => Verdict::FellBack(elapsed, way),
        (Some(0), None, None) => Verdict::Passed(elapsed),
        (Some(124 | 137), ..) => Verdict::Failed(format!("not over in {} s", LIMIT.as_secs())),
        _ => {
            let error = said
                .lines()
                .find(|line| line.starts_with("Error:") || line.contains("panicked at"));
            Verdict::Failed(error.unwrap_or("no words").to_owned())
        }
    }
}

impl Tests {
    /// Builds one test binary and says where it is.
    fn build(&self) -> Result<PathBuf> {
        let arguments = [
            "test",
            "--no-run",
            "--quiet",
            "--message-format",
            "json-render-diagnostics",
        ];
        let mut command = cargo(&arguments)?;
        command.args(["--package", self.package, "--test", self.target]);
        command.stderr(std::process::Stdio::inherit());
        let messages = output(&mut command)?;
        let messages = String::from_utf8_lossy(&messages);
        let binary = messages.lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_it =
                message["target"]["name"] == self.target && message["profile"]["test"] == true;
            is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
        });
        binary.with_context(|| format!("cargo built no test {}", self.target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(names: &[&str]) -> Suite {
        let scenarios = names.iter().map(|name| Scenario {
            name: (*name).into(),
            binary: "x".into(),
            test: "x".into(),
        });
        Suite {
            scenarios: scenarios.collect(),
            environment: Vec::new(),
        }
    }

    #[test]
    fn each_scenario_is_judged_by_its_own_words_and_code() {
        let printed = "BEGIN a\nok\n\nEND a 0 1500\nBEGIN b\nSKIPPED: x because of y\nEND b 0 1\n\
                       BEGIN c\nError: lost\nEND c 1 1\nBEGIN d\nFALLBACK: a guard\nEND d 0 2000\nBEGIN e\npanic";
        let results = suite(&["a", "b", "c", "d", "e", "f"]).results(printed);
        let expected = [
            ("a", Verdict::Passed(Duration::from_millis(1500))),
            ("b", Verdict::Skipped("x because of y".into())),
            ("c", Verdict::Failed("Error: lost".into())),
            (
                "d",
                Verdict::FellBack(Duration::from_secs(2), "a guard".into()),
            ),
            ("e", Verdict::Failed("it took the machine down".into())),
            ("f", Verdict::Failed("not reached".into())),
        ];
        assert_eq!(
            results,
            expected.map(|(name, v)| (name.to_owned(), v)).into()
        );
    }
}
