//! The project's commands: `cargo xtask demo | cluster | e2e | test | bench | kernels | check | control-plane | image | release`.
//!
//! Owns what surrounds the code: the tools that must be installed, the checks, and the order of the tests. Each command is a
//! file of its own; none of them is needed at run time.

use anyhow::Result;
use clap::Parser;

mod bench;
mod check;
mod cluster;
mod control_plane;
mod demo;
mod image;
mod kernels;
mod licenses;
mod old_version;
mod release;
mod run;
mod test;
mod tools;

/// Portolan's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Run two nodes with pods and a Service on real packets, without a cluster (about a minute).
    Demo,
    /// Run a Kubernetes cluster on this machine: kubeadm and kubelets in namespaces, Portolan by deploy/.
    Cluster(cluster::Options),
    /// Run Kubernetes' tests of networking with Portolan and kube-proxy, and write docs/conformance.md.
    E2e(cluster::e2e::Options),
    /// Run the checks and the quick tests; --all and --nightly run more.
    Test(test::Options),
    /// Run the benchmarks, with lower bounds and kube-proxy in the same run; see benches/README.md.
    Bench {
        /// Run only benchmarks whose name contains this text.
        filter: Option<String>,
    },
    /// Run the scenarios on other kernels under emulation: 5.10, 6.1, 6.12 and the newest of Debian.
    Kernels(kernels::Options),
    /// Check formatting, lints, the direction of dependencies and the rules of language.
    Check(check::Options),
    /// Build the control plane, kube-proxy and flanneld for the tests (needs Go), and print the folder.
    ControlPlane,
    /// Build the container image for amd64 and arm64 as an OCI layout and an archive (needs no daemon).
    Image {
        #[command(flatten)]
        options: image::Options,
        /// Build twice for this machine instead, in clones in two folders, and compare the bytes
        #[arg(long, conflicts_with_all = ["arch", "output", "name", "source", "tree"])]
        reproduce: bool,
    },
    /// Build what a release publishes: image, programs, chart, SBOM, licenses, checksums.
    Release(image::Options),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Demo => demo::demo(),
        Command::Cluster(options) => cluster::cluster(&options),
        Command::E2e(options) => cluster::e2e::e2e(&options),
        Command::Test(options) => test::test(&options),
        Command::Bench { filter } => bench::bench(filter.as_deref()),
        Command::Kernels(options) => kernels::kernels(&options),
        Command::Check(options) => check::check(&options),
        Command::ControlPlane => control_plane::control_plane(),
        Command::Image {
            reproduce: true, ..
        } => image::reproduce(),
        Command::Image { options, .. } => image::image(&options),
        Command::Release(options) => release::release(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Command::command().debug_assert();
    }
}
