//! `cargo xtask kernels`: the scenarios on other kernels, which boot under emulation on this machine.
//!
//! Debian's packages hold the kernels ([`packages`]); QEMU boots them with this machine's root mounted read-only, so
//! that everything is built once, here ([`machine`]); the tests that make up the suite run inside one by one
//! ([`scenarios`]); what they printed is read back and becomes a table ([`results`]). Nothing is installed
//! on the machine but the tools below, and nothing is written but the cache and `target/kernels`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::run::root;
use crate::tools;

mod benches;
mod machine;
pub(crate) mod packages;
mod results;
mod scenarios;

use benches::Bench;
use packages::{Kernel, Store, Unpacked};
use results::{Results, ScenarioVerdict};
use scenarios::{CI, Suite, WHOLE};

/// Programs and the packages that hold them, beyond what tests need anyway.
const NEEDED: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("tc", "iproute2"),
];

/// The most boots of one kernel: scenarios that failed in the first run once more in the second.
const BOOTS: usize = 2;

/// Time limit of a boot, without the scenarios.
const BOOT: Duration = Duration::from_secs(120);

/// Which scenarios to run on which kernels.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Kernels by series: 5.10, 6.1, ..., or `here` for the running one [default: all]
    versions: Vec<String>,

    /// Run only scenarios whose name contains this text
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Run a bench instead, by its name and a part of it, such as `overlay encrypted`
    #[arg(long, value_name = "TEXT", conflicts_with = "only")]
    bench: Option<String>,

    /// Run a few scenarios on the oldest and the newest kernel (some minutes)
    #[arg(long, conflicts_with_all = ["versions", "only", "bench"])]
    ci: bool,

    /// Print the available kernels and exit
    #[arg(long)]
    list: bool,
}

/// Boots each kernel and prints the table. Fails when a scenario failed on any.
pub(crate) fn kernels(options: &Options) -> Result<()> {
    if options.ci {
        return few();
    }
    tools::ensure()?;
    let store = store()?;
    let kernels = wanted(&store, &options.versions)?;
    if options.list {
        for kernel in &kernels {
            println!("{:<8} {}", kernel.series, kernel.package);
        }
        return Ok(());
    }
    if let Some(filter) = &options.bench {
        let bench = Bench::build(filter)?;
        let run = |kernel| bench.run_on(&store.unpack(kernel)?);
        return kernels.iter().try_for_each(run);
    }
    let suite = Suite::build(&store, &WHOLE, &options.only)?;
    let mut all = Vec::new();
    if options.versions.is_empty() || options.versions.iter().any(|version| version == "here") {
        all.push(suite.run_here(&logs()?)?);
    }
    let mut down = Vec::new();
    for kernel in kernels {
        let run = store
            .unpack(&kernel)
            .and_then(|kernel| run_on(&suite, &kernel));
        match run {
            Ok(results) => all.push(results),
            Err(error) => down.push(format!("{}: {error:#}", kernel.series)),
        }
    }
    report(&all)?;
    let (failed, late) = (
        by_kernel(&all, ScenarioVerdict::Failed),
        by_kernel(&all, ScenarioVerdict::Late),
    );
    ensure!(down.is_empty(), "not run: {}", down.join("; "));
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    ensure!(late.is_empty(), "no time for: {}", late.join(", "));
    Ok(())
}

/// The oldest and the newest kernel, a few scenarios. Skips with a message what this machine does not have
/// (the emulator, a package, a kernel that boots under this emulator); scenarios that run must pass.
pub(crate) fn few() -> Result<()> {
    let (store, kernels) = match available() {
        Ok(found) => found,
        Err(error) => {
            eprintln!("SKIPPED: scenarios on other kernels: {error:#}");
            return Ok(());
        }
    };
    let suite = Suite::build(&store, &CI, &[])?;
    // Side by side: a machine waits for itself much of the time.
    let suite = &suite;
    let runs: Vec<Result<Results>> = std::thread::scope(|scope| {
        let run = |kernel| scope.spawn(move || run_on(suite, kernel));
        let runs: Vec<_> = kernels.iter().map(run).collect();
        let ended = runs.into_iter().map(|run| run.join());
        ended
            .map(|run| run.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let (mut all, mut down) = (Vec::new(), Vec::new());
    for (kernel, run) in kernels.iter().zip(runs) {
        match run {
            Ok(results) => all.push(results),
            Err(error) => {
                eprintln!("SKIPPED: scenarios on {}: {error:#}", kernel.release);
                down.push(kernel.release.as_str());
            }
        }
    }
    ensure!(
        !all.is_empty(),
        "none of the kernels boots under emulation: {}",
        down.join(", ")
    );
    report(&all)?;
    // The speed of the emulation says nothing about the kernel.
    for scenario in by_kernel(&all, ScenarioVerdict::Late) {
        eprintln!("SKIPPED: {scenario}: this machine is too slow for it");
    }
    let failed = by_kernel(&all, ScenarioVerdict::Failed);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The oldest and the newest available kernel, unpacked in the cache.
fn available() -> Result<(Store, Vec<Unpacked>)> {
    let store = store()?;
    let mut kernels = store.kernels()?;
    if kernels.len() > 2 {
        kernels.drain(1..kernels.len() - 1);
    }
    let mut unpacked = Vec::new();
    for kernel in &kernels {
        match store.unpack(kernel) {
            Ok(kernel) => unpacked.push(kernel),
            Err(error) => eprintln!("SKIPPED: the kernel {}: {error:#}", kernel.package),
        }
    }
    ensure!(!unpacked.is_empty(), "no kernel is available");
    Ok((store, unpacked))
}

/// The emulator and its tools, and the cache.
fn store() -> Result<Store> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "only x86-64 kernels are emulated so far"
    );
    tools::ensure_also(NEEDED)?;
    Store::open()
}

/// The requested kernels among those available.
fn wanted(store: &Store, versions: &[String]) -> Result<Vec<Kernel>> {
    if versions == ["here"] {
        return Ok(Vec::new());
    }
    let is_asked_for = |kernel: &Kernel| {
        let asked = |asked: &String| {
            kernel.series == *asked || kernel.series.starts_with(&format!("{asked}."))
        };
        versions.is_empty() || versions.iter().any(asked)
    };
    let mut found = store.kernels()?;
    found.retain(is_asked_for);
    ensure!(
        !found.is_empty(),
        "Debian has no kernel {}",
        versions.join(", ")
    );
    Ok(found)
}

/// Boots a kernel and runs the suite, and failed scenarios once more in a second machine. Fails when no scenario ended.
fn run_on(suite: &Suite, kernel: &Unpacked) -> Result<Results> {
    let logs = logs()?;
    let answers = logs.join(format!("{}.out", kernel.release));
    let console = logs.join(format!("{}.log", kernel.release));
    // A run of a part keeps the results of the rest.
    for file in [&answers, &console] {
        if suite.is_part() && file.exists() {
            continue;
        }
        std::fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
    }
    let names = suite.names();
    let mut left = names.clone();
    let mut results = Results::default();
    let mut error = None;
    for boot in 1..=BOOTS {
        eprintln!(
            "booting {}: {} scenarios, see {}",
            kernel.release,
            left.len(),
            answers.display()
        );
        let script = suite.script(&left, Some(machine::processors(kernel)));
        error = machine::boot(kernel, &script, suite.limit(), &answers, &console).err();
        let text = std::fs::read(&answers)?;
        results = Results::read(&kernel.release, &names, &String::from_utf8_lossy(&text));
        left = [
            results.with(ScenarioVerdict::Failed),
            results.with(ScenarioVerdict::Late),
        ]
        .concat();
        left.retain(|name| names.contains(name));
        if let Some(error) = &error {
            eprintln!("{}, boot {boot} of {BOOTS}: {error:#}", kernel.release);
        }
        if left.is_empty() {
            break;
        }
    }
    match error {
        Some(error) if results.is_empty() => Err(error),
        _ => Ok(results),
    }
}

/// Writes and prints the table.
fn report(all: &[Results]) -> Result<()> {
    let text = results::table(all);
    let file = logs()?.join("table.md");
    std::fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
    println!("{text}");
    let count = |verdict| by_kernel(all, verdict).len();
    let skipped = count(ScenarioVerdict::Skipped) + count(ScenarioVerdict::Late);
    let (passed, failed) = (
        count(ScenarioVerdict::Passed),
        count(ScenarioVerdict::Failed),
    );
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        eprintln!("the output of each kernel is in {}", logs()?.display());
    }
    Ok(())
}

/// Scenarios with this verdict, each with its kernel.
fn by_kernel(all: &[Results], verdict: ScenarioVerdict) -> Vec<String> {
    let named = all.iter().flat_map(|results| {
        let names = results.with(verdict).into_iter();
        names.map(move |name| format!("{name} on {}", results.kernel))
    });
    named.collect()
}

/// The folder of the output of runs.
fn logs() -> Result<PathBuf> {
    let logs = root()?.join("target/kernels");
    std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    Ok(logs)
}

/// Where packages and unpacked kernels are kept between runs: outside of the tree.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("portolan/kernels"))
}
