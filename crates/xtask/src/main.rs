//! The project's commands: `cargo xtask demo | test | bench | kernels | check | control-plane`.
//!
//! Owns what surrounds the code: tools that must be installed, the gate, the order of things. Each command is a
//! file of its own; none of them is needed at run time.

use anyhow::Result;
use clap::Parser;

mod bench;
mod check;
mod control_plane;
mod demo;
mod kernels;
mod run;
mod test;
mod tools;

/// Portolan's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Shows the main job on real packets: two nodes, pods, Services, no cluster needed (about a minute).
    Demo,
    /// Everything that must hold: formatting, lints, direction of dependencies, and every test.
    Test {
        /// Random tests at the size of a night: 100,000 clusters through the evaluator, 2,000 with real packets.
        #[arg(long)]
        nightly: bool,
        /// Handed to `cargo test` after `--`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Benchmarks with their floors and peers beside them; see benches/README.md.
    Bench {
        /// Only benchmarks whose name holds this.
        filter: Option<String>,
    },
    /// The scenarios on other kernels, booted under emulation: 5.10, 6.1, 6.12 and the newest that Debian has.
    Kernels(kernels::Options),
    /// Formatting, lints and the direction of dependencies, without running tests.
    Check,
    /// Builds etcd, Kubernetes' control plane, kube-proxy and flanneld for the tests (once; needs Go), and prints
    /// the folder.
    ControlPlane,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Demo => demo::demo(),
        Command::Test { nightly, args } => test::test(nightly, &args),
        Command::Bench { filter } => bench::bench(filter.as_deref()),
        Command::Kernels(options) => kernels::kernels(&options),
        Command::Check => check::check(),
        Command::ControlPlane => control_plane::control_plane(),
    }
}
