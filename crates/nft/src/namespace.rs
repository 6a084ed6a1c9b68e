//! Our tables in a network namespace of their own, and nft beside them. For tests.

use crate::model::Family;
use crate::samples::{in_own_namespace, nft, nft_is_there};
use crate::transaction::{Backend as _, TableContents};
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
