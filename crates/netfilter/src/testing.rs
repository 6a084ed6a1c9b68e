//! Network namespaces with nft in them, for tests.

use std::io::Write as _;
use std::process::{Command, Stdio};

use lab::{Capability, Namespace, require};

/// Runs a test in a fresh network namespace; skips it where namespaces or nft are missing.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if require(&[Capability::Nft]) {
        let namespace = Namespace::new("netfilter").unwrap();
        namespace.run(test).unwrap();
    }
}

/// Loads text with nft.
#[track_caller]
pub(crate) fn load(text: &str) {
    nft(&["-f", "-"], text);
}

/// Runs nft in the namespace of this thread and returns its output.
#[track_caller]
pub(crate) fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?} {input}");
    String::from_utf8(output.stdout).unwrap()
}
