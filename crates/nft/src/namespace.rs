//! Our tables in a network namespace of their own, and nft beside them. For tests.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::backend::Backend as _;
use crate::model::Family;
use crate::transaction::TableContents;
use crate::{Kernel, KernelConfig};

/// Runs a test in a fresh network namespace; skips it where there can be none.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if nft_is_there() {
        in_own_namespace(test);
    }
}

/// Loads text with nft.
#[track_caller]
pub(crate) fn load(text: &str) {
    nft(&["-f", "-"], text).unwrap_or_else(|words| panic!("{words}\n{text}"));
}

/// The namespace's kernel.
pub(crate) fn kernel(owner: bool) -> Kernel {
    let config = KernelConfig {
        table: "portolan".into(),
        owner,
    };
    Kernel::open(config).expect("netlink opens")
}

/// Our table as the kernel has it.
#[track_caller]
pub(crate) fn listed(kernel: &mut Kernel, family: Family) -> TableContents {
    kernel.list(family).expect("listing").expect("a table")
}

/// Whether nft can be run in a network namespace of its own. Where `CI` is set it must.
pub(crate) fn nft_is_there() -> bool {
    let there = Command::new("unshare")
        .args(["-n", "nft", "list", "ruleset"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        assert!(
            std::env::var_os("CI").is_none(),
            "nft or root is missing, and CI is set"
        );
        eprintln!("SKIPPED: needs root, unshare and nft");
    }
    there
}

/// Runs `work` on a thread in a network namespace of its own, which goes away with it.
pub(crate) fn in_own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Loads `text` with nft into a network namespace of its own and returns its listing, or nft's errors.
pub(crate) fn nft_list_of(text: &str) -> Result<String, String> {
    in_own_namespace(|| nft(&["-f", "-"], text).and_then(|_| nft(&["list", "ruleset"], "")))
}

/// Runs nft in the namespace of this thread; returns its output, or its errors.
pub(crate) fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    stdin
        .write_all(input.as_bytes())
        .map_err(|error| error.to_string())?;
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    match output.status.success() && output.stderr.is_empty() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
