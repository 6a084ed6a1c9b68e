//! The commands of an operator, run on a node of a lab as people run them.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use lab::Node;
use serde_json::Value;

use crate::stage::portolan;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `portolan` with these arguments on a node.
pub fn run(node: &Node, arguments: &[&str]) -> Result<Ran> {
    let mut command = node.command(portolan()?);
    command.args(arguments);
    let output: Output = node.output(command)?;
    Ok(Ran {
        code: output.status.code().context("ended by a signal")?,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// The document that a command prints with `--output json`, and its exit code.
pub fn document(node: &Node, arguments: &[&str]) -> Result<(Value, i32)> {
    let arguments = [arguments, &["--output", "json"]].concat();
    let ran = run(node, &arguments)?;
    ensure!(!ran.stdout.is_empty(), "{arguments:?}: {}", ran.stderr);
    Ok((serde_json::from_str(&ran.stdout)?, ran.code))
}
