//! Code shared by the benches: clusters of a shape, floors, peers, and the table of results.
//!
//! * [`Shape`] makes the objects of a cluster of a given number of Services and endpoints, always the same ones.
//! * [`Sandbox`] is a network namespace to load tables in.
//! * [`Bare`] sends ready-made netlink messages: the floor under what we do.
//! * [`peers`] runs kube-proxy itself beside Portolan.
//! * [`fleet`] measures what many nodes ask of one real API server.
//! * [`overlay`] measures the overlay: programming, memory, packets.
//! * [`Report`] prints each quantity with its target and floor.
//!
//! Every number is taken in the run that prints it.

mod bare;
pub mod fleet;
mod node;
pub mod overlay;
pub mod peers;
mod report;
mod samples;
mod sandbox;
mod shape;

pub use bare::{Bare, encode};
pub use node::{Committed, Node, Timed};
pub use report::{Report, Row, microseconds, milliseconds, ratio};
pub use samples::Samples;
pub use sandbox::Sandbox;
pub use shape::Shape;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The program that `PORTOLAN_PROGRAM` names (`cargo xtask bench` names the image's), else the one that `cargo build --release`
/// made, beside the folder of the bench itself.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("PORTOLAN_PROGRAM") {
        return Ok(program.into());
    }
    let here = std::env::current_exe()?;
    let program = here
        .ancestors()
        .nth(2)
        .map(|folder| folder.join("portolan"))
        .context("no target folder")?;
    ensure!(
        program.exists(),
        "{program:?} is not there: cargo build --release --package portolan"
    );
    Ok(program)
}

/// Whether only to see that everything runs, with small clusters: `PORTOLAN_BENCH_QUICK` is set, or cargo did not
/// ask for numbers (`cargo test --benches`).
pub fn quick() -> bool {
    std::env::var_os("PORTOLAN_BENCH_QUICK").is_some()
        || !std::env::args().any(|arg| arg == "--bench")
}

/// Whether the command line asks for this bench: it names none, or a part of this one's name.
pub fn wanted(name: &str) -> bool {
    let mut filters = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .peekable();
    filters.peek().is_none() || filters.any(|filter| name.contains(&filter))
}
