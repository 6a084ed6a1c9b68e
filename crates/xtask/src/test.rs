//! `cargo xtask test`: the tests in three tiers.
//!
//! The quick tests are what `cargo test --workspace` runs. Tests marked `#[ignore = "needs ..."]` want programs that take
//! long to build (Kubernetes' control plane, kube-proxy, flanneld); `--all` runs them as well, the random tests at
//! larger sizes, a minute of fuzzing for each decoder, and a few scenarios on other kernels. `--nightly` has larger sizes, a thousand kills, ten thousand foreign
//! changes, older kube-proxies, all scenarios on all kernels, two whole builds of the image, and all tests in clusters of
//! `cargo xtask cluster`, of which `--all` runs one migration where the programs of a cluster are built, and Kubernetes'
//! end-to-end tests with both service proxies, of which `--all` runs most with Portolan where they are built.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::e2e;
use crate::control_plane::{self, Versions};
use crate::run::{built, cargo, executables, output, root, run};
use crate::{check, image, kernels, old_version, tools};

mod retry;

/// Sizes of the random tests for `--all`; the tests' own defaults are for the quick tier.
const LARGE: [(&str, &str); 6] = [
    ("PORTOLAN_CLUSTERS", "10000"),
    ("PORTOLAN_KERNEL_CLUSTERS", "500"),
    ("PORTOLAN_HISTORIES", "5000"),
    ("PORTOLAN_PEER_CLUSTERS", "300"),
    ("PORTOLAN_WALKS", "500"),
    ("PORTOLAN_TRACES", "25"),
];

/// Sizes for `--nightly`.
const NIGHTLY: [(&str, &str); 6] = [
    ("PORTOLAN_CLUSTERS", "100000"),
    ("PORTOLAN_KERNEL_CLUSTERS", "2000"),
    ("PORTOLAN_HISTORIES", "20000"),
    ("PORTOLAN_PEER_CLUSTERS", "1000"),
    ("PORTOLAN_WALKS", "5000"),
    ("PORTOLAN_TRACES", "200"),
];

/// Numbers of kills, flushes, other foreign changes and error numbers, and the lengths of soak and failing calls, for `--nightly`.
const FAULTS: [(&str, &str); 8] = [
    ("PORTOLAN_KILLS", "1000"),
    ("PORTOLAN_FLUSHES", "1000"),
    ("PORTOLAN_VANDALISM", "10000"),
    ("PORTOLAN_SOAK_SECONDS", "3600"),
    ("PORTOLAN_STOP_SECONDS", "100"),
    ("PORTOLAN_ERRNOS", "12"),
    ("PORTOLAN_FAULT_SECONDS", "3600"),
    ("PORTOLAN_LOSSY_SECONDS", "3600"),
];

/// Test targets that read the sizes.
const RANDOM: [&str; 4] = ["random_clusters", "kernel_clusters", "order", "operator"];
/// The unit test that reads the number of walks.
const WALK: &str = "any_walk_ends_in_the_state_made_from_nothing";
/// Parts of the names of unit tests of failing calls.
const FAILING_CALLS: [&str; 2] = ["walk::faults::", "an_errno_at_every_conntrack_call"];
/// The test targets that read the numbers of faults.
const SURVIVAL: [&str; 3] = ["survival", "failover", "time"];
/// Test targets with tests that are ignored in the quick tier.
const IGNORED: [&str; 12] = [
    "browser",
    "control_plane",
    "deploy",
    "differential",
    "doctor",
    "every_call",
    "image_swap",
    "monitoring",
    "overlay_flannel",
    "overlay_mixed",
    "takeover",
    "work",
];
/// Test targets with ignored tests that need other versions or forms of the program.
const SHIPPED: [&str; 2] = ["image", "upgrade"];
/// The test target with clusters of real nodes: their programs take 20 to 40 minutes to build.
const CLUSTER: &str = "cluster";
/// The one of its tests that `--all` runs.
const MIGRATION: &str = "migration::kube_proxy_gives_way_and_comes_back_with_nothing_lost";
/// Tells its tests which program makes clusters.
const XTASK: &str = "PORTOLAN_XTASK";
/// Tells the scenarios which program to run.
const PROGRAM: &str = "PORTOLAN_PROGRAM";
/// Part of the names of tests that feed decoders with mutations of a corpus, and for how long each of them does.
const FUZZERS: &str = "mutated_";
const FUZZING: (&str, &str) = ("PORTOLAN_FUZZ_SECONDS", "60");
/// The test harness's variable for the number of tests at a time. Most of our tests wait for kernels and daemons: two a core
/// shorten the quick tier by a third on two cores.
const THREADS: &str = "RUST_TEST_THREADS";
const THREADS_PER_CORE: usize = 2;
/// Part of the names of tests that only `--nightly` builds the programs for.
const NIGHTLY_ONLY: &str = "older_kube_proxies";

/// Which tests to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the quick tests, then control plane, kube-proxy, flanneld, other kernels, large random sets
    #[arg(long)]
    all: bool,
    /// Run only what --all adds to the quick tests
    #[arg(long)]
    rest: bool,
    /// Run --all with older kube-proxies, all kernel scenarios, larger random sets and real clusters
    #[arg(long)]
    nightly: bool,
    /// Run only the parts of --rest whose name contains this text
    #[arg(long, value_name = "TEXT")]
    part: Vec<String>,
    /// Skip, and name, a part of --rest that usually takes longer than what is left of this time
    #[arg(long, value_name = "MINUTES")]
    within: Option<u64>,
    /// Arguments for the test programs of the quick tests
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs the tiers that the options select.
pub(crate) fn test(options: &Options) -> Result<()> {
    tools::ensure()?;
    if options.nightly || options.all || !options.rest {
        quick(&options.args)?;
    }
    if options.nightly || options.all || options.rest {
        rest(options)?;
    }
    Ok(())
}

/// Checks, then every test that needs nothing but this checkout and its kernel.
fn quick(args: &[String]) -> Result<()> {
    check::all()?;
    let mut tests = tests()?;
    // A control plane that happens to be there changes nothing.
    tests.env_remove(control_plane::VARIABLE);
    if std::env::var_os(THREADS).is_none() {
        let cores = std::thread::available_parallelism()?.get();
        tests.env(THREADS, (cores * THREADS_PER_CORE).to_string());
    }
    retry::run(tests.arg("--").args(args))
}

/// A part of what `--all` adds: its name, the minutes that it usually takes, and what runs it.
type Part<'a> = (&'a str, u64, &'a dyn Fn() -> Result<()>);

/// What `--all` adds. Every part that there is time for runs, also after one that failed.
fn rest(options: &Options) -> Result<()> {
    let start = Instant::now();
    // With the program, as the quick tier has built it.
    run(self::tests()?.args(["--no-run", "--quiet"]))?;
    let nightly = options.nightly;
    let sizes = if nightly { NIGHTLY } else { LARGE };
    let unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    let sizes: Vec<_> = sizes.into_iter().filter(unset).collect();
    // The minutes are those of a machine with two cores that has built nothing before, without `--nightly`.
    let parts: [Part<'_>; 10] = [
        ("dependencies", 1, &check::dependencies::check),
        ("fuzzing", 2, &fuzz),
        ("large random sets", 5, &|| random(&sizes)),
        ("kills and vandalism", 0, &|| match nightly {
            true => faults(),
            false => Ok(()),
        }),
        ("control plane", 30, &|| ignored(&sizes, nightly)),
        ("image and upgrade", 6, &shipped),
        ("image from two folders", 0, &|| match nightly {
            true => image::reproduce(),
            false => Ok(()),
        }),
        ("other kernels", 10, &|| match nightly {
            true => kernels::kernels(&kernels::Options::default()),
            false => kernels::few(),
        }),
        ("clusters", 12, &|| clusters(nightly)),
        ("end-to-end tests", 15, &|| match nightly {
            true => e2e::e2e(&e2e::Options::default()),
            false => e2e::gate(),
        }),
    ];
    let wanted = &options.part;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|text| name.contains(text));
    let within = options.within.map(Duration::from_mins);
    let mut failed = Vec::new();
    for (name, minutes, part) in parts.into_iter().filter(|(name, _, _)| is_wanted(name)) {
        let begun = start.elapsed();
        if within.is_some_and(|within| begun + Duration::from_mins(minutes) > within) {
            eprintln!("SKIPPED: {name}: it takes {minutes} minutes, and fewer are left");
            continue;
        }
        if let Err(error) = part() {
            eprintln!("FAILED: {name}: {error:#}");
            failed.push(name);
        }
        eprintln!("{name}: {:.0} s", (start.elapsed() - begun).as_secs_f64());
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The random tests at these sizes.
fn random(sizes: &[(&str, &str)]) -> Result<()> {
    let random = of_each(&RANDOM, |tests| run(tests.envs(sizes.iter().copied())));
    run_units(&[WALK], sizes).and(random)
}

/// The unit tests with one of these texts in their names, with these variables.
fn run_units(names: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let mut result = Ok(());
    for program in unit_test_programs()? {
        let mut tests = program.command();
        let tests = tests.args(names).envs(variables.iter().copied());
        result = result.and(run(tests));
    }
    result
}

/// A minute of mutations for each decoder, all at the same time.
fn fuzz() -> Result<()> {
    let mut running = Vec::new();
    for program in unit_test_programs()? {
        let mut command = program.command();
        command.arg(FUZZERS).env(FUZZING.0, FUZZING.1);
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot start {:?}", program.file))?;
        running.push((program.file, child));
    }
    let mut failed = Vec::new();
    for (program, mut child) in running {
        if !child.wait()?.success() {
            failed.push(program);
        }
    }
    ensure!(failed.is_empty(), "failed: {failed:?}");
    Ok(())
}

/// The program of a package's unit tests.
struct UnitTests {
    file: PathBuf,
    /// The folder of the package, where cargo would start it.
    folder: PathBuf,
}

impl UnitTests {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(&self.folder);
        command
    }
}

/// Builds the unit tests of all libraries, with all other tests: for `--lib` alone cargo would choose other features, and
/// build everything once more.
fn unit_test_programs() -> Result<Vec<UnitTests>> {
    let mut build = tests()?;
    build.args(["--no-run", "--message-format=json"]);
    let messages = output(build.stderr(Stdio::inherit()))?;
    let lines = messages.split(|byte| *byte == b'\n');
    let program = |line: &[u8]| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        let mut kinds = message["target"]["kind"].as_array()?.iter();
        let is_library = kinds.any(|kind| kind == "lib");
        let file = message["executable"].as_str()?;
        let manifest = PathBuf::from(message["manifest_path"].as_str()?);
        (is_test && is_library).then_some(UnitTests {
            file: PathBuf::from(file),
            folder: manifest.parent()?.to_owned(),
        })
    };
    Ok(lines.filter_map(program).collect())
}

/// A thousand kills and flushes, ten thousand other foreign changes, an hour of churn and an hour of lost packets.
fn faults() -> Result<()> {
    let survival = of_each(&SURVIVAL, |tests| run(tests.envs(FAULTS)));
    run_units(&FAILING_CALLS, &FAULTS).and(survival)
}

/// The tests that the quick tier ignores.
fn ignored(sizes: &[(&str, &str)], nightly: bool) -> Result<()> {
    let versions = if nightly {
        Versions::All
    } else {
        Versions::Newest
    };
    let Some(programs) = control_plane::for_tests(versions)? else {
        return Ok(());
    };
    tools::ensure_also(&[
        ("promtool", "prometheus"),
        ("chromium", "chromium"),
        ("strace", "strace"),
    ])?;
    let helm = control_plane::helm::for_tests()?;
    of_each(&IGNORED, |tests| {
        tests.arg("--ignored");
        if !nightly {
            tests.args(["--skip", NIGHTLY_ONLY]);
        }
        tests.env(control_plane::VARIABLE, &programs);
        if let Some(helm) = &helm {
            tests.env(control_plane::helm::VARIABLE, helm);
        }
        retry::run(tests.envs(sizes.iter().copied()))
    })
}

/// The image in a container, and the program after the one of an older version.
fn shipped() -> Result<()> {
    tools::ensure_also(&[("runc", "runc")])?;
    let (image, old) = (image::for_tests()?, old_version::for_tests()?);
    of_each(&SHIPPED, |tests| {
        tests.arg("--ignored").env(image::VARIABLE, &image);
        if let Some(program) = &old {
            tests.env(old_version::VARIABLE, program);
        }
        retry::run(tests)
    })
}

/// Portolan in clusters, one after another. Without `--nightly` one migration, and only where the programs of a cluster are built.
fn clusters(nightly: bool) -> Result<()> {
    if !nightly && !control_plane::cluster_is_built()? {
        eprintln!(
            "SKIPPED: a migration in a cluster: its programs are not built, which takes 20 to 40 minutes; `cargo xtask cluster up --overlay flannel` builds them"
        );
        return Ok(());
    }
    let xtask = std::env::current_exe()?;
    of_each(&[CLUSTER], |tests| {
        tests.args(["--ignored", "--nocapture", "--test-threads=1"]);
        if !nightly {
            tests.args(["--exact", MIGRATION]);
        }
        run(tests.env(XTASK, &xtask))
    })
}

/// Runs the program of each of these test targets, also after one that failed. All tests are built, whatever is wanted: for some of
/// them alone cargo would choose other features, and build everything once more.
fn of_each(targets: &[&str], run: impl Fn(&mut Command) -> Result<()>) -> Result<()> {
    let mut build = tests()?;
    build.arg("--no-run");
    let mut result = Ok(());
    for program in executables(build, "test", targets)? {
        let mut command = Command::new(program);
        command.current_dir(root()?.join("tests"));
        command.env(PROGRAM, built("portolan")?);
        result = result.and(run(&mut command));
    }
    result
}

/// `cargo test` over the whole workspace.
fn tests() -> Result<Command> {
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"])?;
    // The quick tier builds it by the same command; the scenarios need not build it again.
    tests.env(PROGRAM, built("portolan")?);
    Ok(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ignored_test_is_in_a_target_that_all_runs() -> Result<()> {
        let folder = root()?.join("tests/tests");
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let files: Vec<_> = match path.is_dir() {
                true => std::fs::read_dir(&path)?
                    .map(|file| Ok(file?.path()))
                    .collect::<Result<_>>()?,
                false => vec![path.clone()],
            };
            let target = path.file_stem().unwrap_or_default().to_string_lossy();
            for file in files {
                let has_ignored = std::fs::read_to_string(&file)?.contains("#[ignore");
                let others = SHIPPED.iter().chain([&CLUSTER]);
                let is_run = IGNORED.iter().chain(others).any(|one| *one == target);
                assert!(!has_ignored || is_run, "{file:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_migration_of_the_gate_exists() -> Result<()> {
        let (module, test) = MIGRATION.split_once("::").context("no module")?;
        let file = root()?.join(format!("tests/tests/{CLUSTER}/{module}.rs"));
        let text = std::fs::read_to_string(file)?;
        assert!(text.contains(&format!("fn {test}()")), "{MIGRATION}");
        Ok(())
    }

    #[test]
    fn every_target_of_the_tiers_exists() -> Result<()> {
        let folder = root()?.join("tests/tests");
        let all = RANDOM.iter().chain(&IGNORED).chain(&SHIPPED);
        for target in all.chain(&SURVIVAL).chain([&CLUSTER]) {
            let file = folder.join(format!("{target}.rs"));
            assert!(file.is_file() || folder.join(target).is_dir(), "{target}");
        }
        Ok(())
    }
}
