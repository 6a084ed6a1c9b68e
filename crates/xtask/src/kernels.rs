//! `cargo xtask kernels`: the scenarios on other kernels, which boot under emulation on this machine.
//!
//! Debian's packages hold the kernels ([`packages`]); QEMU boots them with this machine's root mounted read-only, so
//! that everything is built once, here ([`machine`]); the tests that make up the suite run inside one by one
//! ([`scenarios`]); what came of them is one table ([`matrix`]). Nothing is installed on the machine but the tools
//! below, and nothing is written but the cache and `target/kernels`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run::root;
use crate::tools;

mod machine;
mod matrix;
mod packages;
mod scenarios;

use matrix::Column;
use packages::Store;
use scenarios::{Suite, Verdict};

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

/// What to run where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernels, by the beginning of their version: 5.10, 6.1, ... or `here` for the running one [default: all]
    versions: Vec<String>,

    /// Only scenarios whose name holds this
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Only what CI has the time for: the oldest and the newest kernel, the scenarios marked so
    #[arg(long)]
    ci: bool,

    /// Print the kernels there are, and end
    #[arg(long)]
    list: bool,
}

/// Boots each kernel and prints the table. Fails when a scenario failed anywhere.
pub(crate) fn kernels(options: &Options) -> Result<()> {
    tools::ensure()?;
    tools::ensure_also(NEEDED)?;
    ensure!(
        cfg!(target_arch = "x86_64"),
        "only x86-64 kernels are emulated so far"
    );
    let store = Store::open()?;
    let kernels = wanted(&store, options)?;
    if options.list {
        for kernel in &kernels {
            println!("{:<8} {}", kernel.series, kernel.package);
        }
        return Ok(());
    }
    let suite = Suite::build(&store, options.ci, &options.only)?;
    let logs = root()?.join("target/kernels");
    std::fs::create_dir_all(&logs).context("make the folder of logs")?;

    let mut columns = Vec::new();
    if options.versions.is_empty() && !options.ci
        || options.versions.iter().any(|version| version == "here")
    {
        columns.push(suite.run_here(&logs)?);
    }
    for kernel in kernels {
        let kernel = store.unpack(&kernel)?;
        eprintln!("booting {}", kernel.release);
        let start = Instant::now();
        let run = machine::boot(
            &kernel,
            &suite.script(),
            suite.limit(),
            &logs.join(format!("{}.log", kernel.release)),
        )?;
        let column = Column {
            kernel: kernel.release.clone(),
            results: suite.results(&run),
            elapsed: start.elapsed(),
        };
        eprint!("{}", matrix::summary(&column));
        columns.push(column);
    }
    let table = matrix::table(&suite.names(), &columns);
    let file = logs.join("table.md");
    std::fs::write(&file, &table).with_context(|| format!("write {}", file.display()))?;
    println!("{table}");
    let failed: Vec<String> = columns
        .iter()
        .flat_map(|column| {
            let failed = column.results.iter();
            let failed = failed.filter(|(_, verdict)| matches!(verdict, Verdict::Failed(_)));
            failed.map(move |(name, _)| format!("{name} on {}", column.kernel))
        })
        .collect();
    let passed = columns
        .iter()
        .map(|column| column.results.len())
        .sum::<usize>()
        - failed.len();
    println!("{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        bail!(
            "failed: {}; logs are in {}",
            failed.join(", "),
            logs.display()
        );
    }
    Ok(())
}

/// Of the kernels there are, those that were asked for.
fn wanted(store: &Store, options: &Options) -> Result<Vec<packages::Kernel>> {
    let asked = |version: &str| {
        options.versions.is_empty()
            || options
                .versions
                .iter()
                .any(|asked| version == asked || version.starts_with(&format!("{asked}.")))
    };
    if options.versions == ["here"] {
        return Ok(Vec::new());
    }
    let all = store.kernels()?;
    let mut found: Vec<packages::Kernel> = all
        .into_iter()
        .filter(|kernel| asked(&kernel.series))
        .collect();
    ensure!(
        !found.is_empty(),
        "Debian has no kernel {}",
        options.versions.join(", ")
    );
    if options.ci && found.len() > 2 {
        let last = found.len() - 1;
        found.swap(1, last);
        found.truncate(2);
    }
    Ok(found)
}

/// For what is done on the way to a booted kernel, not counting its scenarios.
const BOOT: Duration = Duration::from_secs(120);

/// Where packages and unpacked kernels are kept between runs: outside of the tree.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep kernels")?;
    Ok(base.join("portolan/kernels"))
}
