//! `cargo xtask kernels`: the scenarios on other kernels, which boot under emulation on this machine.
//!
//! Debian's packages hold the kernels ([`packages`]); QEMU boots them with this machine's root mounted read-only, so
//! that everything is built once, here ([`machine`]); the tests that make up the suite run inside one by one
//! ([`scenarios`]); what they printed is read back ([`printed`]) and comes to tables ([`matrix`]). Nothing is installed
//! on the machine but the tools below, and nothing is written but the cache and `target/kernels`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{output, root};
use crate::tools;

mod machine;
mod matrix;
mod packages;
mod printed;
mod scenarios;

use packages::{Kernel, Store, Unpacked};
use printed::Column;
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

/// How often a kernel is booted at most: what failed at first is tried once more, and told as such.
const BOOTS: usize = 2;

/// For what is done on the way to a booted kernel, not counting its scenarios.
const BOOT: Duration = Duration::from_secs(120);

/// What to run where.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Kernels, by the beginning of their version: 5.10, 6.1, ... or `here` for the running one [default: all]
    versions: Vec<String>,

    /// Only scenarios whose name holds this
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// A few scenarios on the oldest and the newest kernel, in some minutes
    #[arg(long, conflicts_with_all = ["versions", "only"])]
    ci: bool,

    /// Print the kernels there are, and end
    #[arg(long)]
    list: bool,

    /// Print the tables of the last runs on all kernels, and end
    #[arg(long)]
    table: bool,
}

/// Boots each kernel and prints the tables. Fails when a scenario failed anywhere.
pub(crate) fn kernels(options: &Options) -> Result<()> {
    if options.ci {
        return few();
    }
    if options.table {
        return tell(&stored()?);
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
    let suite = Suite::build(&store, &WHOLE, &options.only)?;
    let mut columns = Vec::new();
    if options.versions.is_empty() || options.versions.iter().any(|version| version == "here") {
        columns.push(suite.run_here(&logs()?)?);
    }
    let mut down = Vec::new();
    for kernel in kernels {
        let run = store
            .unpack(&kernel)
            .and_then(|kernel| run_on(&suite, &kernel));
        match run {
            Ok(column) => columns.push(column),
            Err(error) => down.push(format!("{}: {error:#}", kernel.series)),
        }
    }
    tell(&columns)?;
    let (failed, late) = (
        by_kernel(&columns, Column::failed),
        by_kernel(&columns, Column::late),
    );
    ensure!(down.is_empty(), "not run: {}", down.join("; "));
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    ensure!(late.is_empty(), "no time for: {}", late.join(", "));
    Ok(())
}

/// The oldest and the newest kernel, a few scenarios. What cannot be had here (the emulator, a package,
/// a kernel that comes up under this emulator) is named and left out; what runs must pass.
pub(crate) fn few() -> Result<()> {
    let (store, kernels) = match to_be_had() {
        Ok(found) => found,
        Err(error) => {
            eprintln!("SKIPPED: scenarios on other kernels: {error:#}");
            return Ok(());
        }
    };
    let suite = Suite::build(&store, &CI, &[])?;
    // Side by side: a machine waits for itself much of the time.
    let suite = &suite;
    let runs: Vec<Result<Column>> = std::thread::scope(|scope| {
        let run = |kernel| scope.spawn(move || run_on(suite, kernel));
        let runs: Vec<_> = kernels.iter().map(run).collect();
        let ended = runs.into_iter().map(|run| run.join());
        ended
            .map(|run| run.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let (mut columns, mut down) = (Vec::new(), Vec::new());
    for (kernel, run) in kernels.iter().zip(runs) {
        match run {
            Ok(column) => columns.push(column),
            Err(error) => {
                eprintln!("SKIPPED: scenarios on {}: {error:#}", kernel.release);
                down.push(kernel.release.as_str());
            }
        }
    }
    ensure!(
        !columns.is_empty(),
        "none of the kernels comes up under emulation: {}",
        down.join(", ")
    );
    tell(&columns)?;
    // How fast a machine emulates another says nothing of that one.
    for scenario in by_kernel(&columns, Column::late) {
        eprintln!("SKIPPED: {scenario}: this machine is too slow for it");
    }
    let failed = by_kernel(&columns, Column::failed);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The oldest and the newest kernel that can be had, in the cache.
fn to_be_had() -> Result<(Store, Vec<Unpacked>)> {
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
    ensure!(!unpacked.is_empty(), "no kernel can be had");
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

/// Of the kernels there are, those that were asked for.
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

/// Boots a kernel and runs the suite; what failed once more in a second machine. Fails when it never came so far.
fn run_on(suite: &Suite, kernel: &Unpacked) -> Result<Column> {
    let logs = logs()?;
    let answers = logs.join(format!("{}.out", kernel.release));
    let console = logs.join(format!("{}.log", kernel.release));
    // A part of the suite is told beside what the rest of it came to.
    for file in [&answers, &console] {
        if suite.is_part() && file.exists() {
            continue;
        }
        std::fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
    }
    let names = suite.names();
    let mut left = names.clone();
    let mut column = Column::default();
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
        column = Column::read(&kernel.release, &names, &String::from_utf8_lossy(&text));
        left = [column.failed(), column.late()].concat();
        left.retain(|name| names.contains(name));
        eprint!("{}", matrix::summary(&column));
        if let Some(error) = &error {
            eprintln!("{}, boot {boot} of {BOOTS}: {error:#}", kernel.release);
        }
        if left.is_empty() {
            break;
        }
    }
    match error {
        Some(error) if column.is_empty() => Err(error),
        _ => Ok(column),
    }
}

/// Writes and prints the tables.
fn tell(columns: &[Column]) -> Result<()> {
    let today = output(std::process::Command::new("date").arg("+%F"))?;
    let today = String::from_utf8_lossy(&today);
    let text = format!(
        "{}\n{}",
        matrix::scenarios(columns),
        matrix::support(columns, today.trim())
    );
    let file = logs()?.join("tables.md");
    std::fs::write(&file, &text).with_context(|| format!("write {}", file.display()))?;
    println!("{text}");
    let count = |of: fn(&Column) -> usize| columns.iter().map(of).sum::<usize>();
    let failed = count(|column| column.failed().len());
    let skipped = count(|column| column.skipped() + column.late().len());
    let passed = count(|column| column.results.len()) - failed - skipped;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        eprintln!("what was printed is in {}", logs()?.display());
    }
    Ok(())
}

/// Scenarios with the kernel that they ran on.
fn by_kernel(columns: &[Column], of: fn(&Column) -> Vec<String>) -> Vec<String> {
    let named = columns.iter().flat_map(|column| {
        let names = of(column).into_iter();
        names.map(move |name| format!("{name} on {}", column.kernel))
    });
    named.collect()
}

/// What the last runs left, oldest kernel first.
fn stored() -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    let logs = logs()?;
    for entry in
        std::fs::read_dir(&logs).with_context(|| format!("look into {}", logs.display()))?
    {
        let file = entry?.path();
        let Some(kernel) = kernel_of(&file) else {
            continue;
        };
        let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        columns.push(Column::read(&kernel, &[], &String::from_utf8_lossy(&text)));
    }
    if columns.is_empty() {
        bail!("nothing has run yet");
    }
    columns.sort_by_key(|column| numbers(&column.kernel));
    Ok(columns)
}

/// `5.10.0-46-amd64` of `5.10.0-46-amd64.out`.
fn kernel_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    name.strip_suffix(".out").map(str::to_owned)
}

/// The numbers in a version, to sort by.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// Where everything is written that a run prints.
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
        .context("neither XDG_CACHE_HOME nor HOME says where to keep kernels")?;
    Ok(base.join("portolan/kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_sorted_as_numbers() {
        assert!(numbers("5.10.0-46-amd64") < numbers("6.1.0-56-amd64"));
        assert!(numbers("6.1.0-56-amd64") < numbers("6.12.117+deb13-amd64"));
    }
}
