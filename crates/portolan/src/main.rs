//! The `portolan` program; everything is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use portolan::cli::{Cli, Command, RunArgs};
use portolan::{app, overlay, render};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args).map(|()| true),
        Command::Render(args) => app::start_log(&args.log).and_then(|()| render::run(&args)),
        Command::OverlayUninstall => overlay::uninstall().map(|()| true),
        Command::Version => Ok(version()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "portolan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    app::start_log(&args.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(app::run(args));
    // Whatever has not ended by now is not waited for.
    runtime.shutdown_background();
    result
}

fn version() -> bool {
    writeln!(std::io::stdout(), "portolan {}", env!("CARGO_PKG_VERSION")).is_ok()
}
