//! `portolan run`, `kube-proxy` and `flanneld`: what one command line does, from its reading to the exit code.
//!
//! Nothing on the node is changed before the whole configuration is known to be usable.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use kube_proxy_config::{Action, CommandLine, Dialect, help};

use crate::config::Configuration;
use crate::takeover::Connections;
use crate::{app, build_info, cleanup, log, memory, sysctl};

const EXIT_CODES: &str = "
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  invalid flags or file, could not start, or a part failed
";

/// Does what the arguments after the program's name say.
pub fn main(dialect: Dialect, arguments: &[String]) -> ExitCode {
    let line = CommandLine::read(dialect, arguments, |name| std::env::var(name).ok());
    match act(dialect, line) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            for problem in format!("{error:#}").lines() {
                let _ = writeln!(std::io::stderr(), "portolan: {problem}");
            }
            ExitCode::FAILURE
        }
    }
}

fn act(dialect: Dialect, line: CommandLine) -> Result<bool> {
    let action = line.action();
    let mut out = std::io::stdout();
    match &action {
        // The reader may close the pipe early.
        Action::PrintHelp => return Ok(out.write_all(help_text(dialect).as_bytes()).is_ok()),
        Action::PrintVersion { raw } => return Ok(out.write_all(version(*raw).as_bytes()).is_ok()),
        _ => {}
    }
    let configuration = Configuration::read(line)?;
    if let Action::WriteConfig(path) = &action {
        log::start(&configuration.effective().logging)?;
        configuration.log();
        return configuration.write_to(path).map(|()| true);
    }
    let effective = configuration.effective();
    if action == Action::Run {
        memory::share_one_heap();
    }
    log::start(&effective.logging)?;
    configuration.log();
    match action {
        Action::Cleanup => cleanup::kube_proxy(Connections::End),
        Action::InitOnly => {
            sysctl::apply(&effective.conntrack);
            tracing::info!("the conntrack sysctls are as configured; exiting (--init-only)");
            Ok(true)
        }
        _ => run(&configuration).map(|()| true),
    }
}

fn run(configuration: &Configuration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(app::run(configuration));
    // Do not wait for tasks that have not ended by now.
    runtime.shutdown_background();
    result
}

fn help_text(dialect: Dialect) -> String {
    let (name, what) = match dialect {
        Dialect::Portolan => (
            "portolan run",
            "Run the service proxy on this node. Its rules stay in place when it exits.",
        ),
        Dialect::KubeProxy => (
            "kube-proxy",
            "Portolan under kube-proxy's name: run the service proxy on this node, with kube-proxy's flags.",
        ),
        Dialect::Flanneld => (
            "flanneld",
            "Portolan under flanneld's name: run the VXLAN overlay on this node, with flanneld's flags.",
        ),
    };
    let flags = help::text(dialect);
    format!("{what}\n\nUsage: {name} [FLAGS]\n{flags}{EXIT_CODES}")
}

/// The version, or its parts as Go programs print them.
fn version(raw: bool) -> String {
    let build = build_info::get();
    let version = build.version;
    match raw {
        false => format!("portolan {version}\n"),
        true => {
            let (major, minor) = (
                env!("CARGO_PKG_VERSION_MAJOR"),
                env!("CARGO_PKG_VERSION_MINOR"),
            );
            let (commit, state, platform) =
                (build.git_commit, build.git_tree_state, build.platform);
            format!(
                "version.Info{{Major:\"{major}\", Minor:\"{minor}\", GitVersion:\"v{version}\", GitCommit:\"{commit}\", GitTreeState:\"{state}\", Platform:\"{platform}\"}}\n"
            )
        }
    }
}
