//! The `portolan` program; everything is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use overlay_probe::doctor;
use portolan::cli::{Cli, Command, DoctorArgs, OutputForm, RunArgs, VersionArgs};
use portolan::{api_server, app, capabilities, cleanup, features, log, memory, render};

/// With musl's own allocator `render` of 5,000 Services of 10 endpoints takes three to four times as long as with glibc's.
/// The image's environment sets how soon mimalloc gives memory back.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Without them each command says what it may not do.
    let _ = capabilities::raise();
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args).map(|()| true),
        Command::Render(args) => log::start(&args.log).and_then(|()| render::run(&args)),
        Command::Cleanup(args) => log::start(&args.log).and_then(|()| cleanup::run(&args)),
        Command::Doctor(args) => return examine(&args),
        Command::ApiServer(args) => api_server::run(&args).map(|()| true),
        Command::Version(args) => version(&args),
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
    memory::share_one_heap();
    log::start(&args.log)?;
    if args.init_only {
        args.conntrack.apply();
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(app::run(args));
    // Do not wait for tasks that have not ended by now.
    runtime.shutdown_background();
    result
}

fn examine(args: &DoctorArgs) -> ExitCode {
    let report = match doctor::ask(args.to.as_deref()) {
        Ok(report) => report,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "portolan: {error:#}");
            return ExitCode::from(2);
        }
    };
    let text = match args.output {
        OutputForm::Text => report.text(args.to.is_some()),
        OutputForm::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(report.exit_code()),
        Err(_) => ExitCode::from(2),
    }
}

fn version(args: &VersionArgs) -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    let printed = writeln!(out, "portolan {}", env!("CARGO_PKG_VERSION")).is_ok();
    if args.features {
        return Ok(printed && out.write_all(features::report()?.as_bytes()).is_ok());
    }
    Ok(printed)
}
