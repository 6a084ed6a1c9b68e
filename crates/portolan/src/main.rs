//! The `portolan` program; everything is in the library.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kube_proxy_config::Dialect;
use portolan::cli::{Cli, Command, RotateKeyArgs, VersionArgs};
use portolan::operator::reference;
use portolan::overlay::encryption;
use portolan::program::Program;
use portolan::{
    api_server, build_info, capabilities, cleanup, copy, daemon, features, kubectl, log, operator,
    render, selftest,
};

/// With musl's own allocator `render` of 5,000 Services of 10 endpoints takes three to four times as long as with glibc's.
/// The image's environment sets how soon mimalloc gives memory back.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    build_info::set_commit(option_env!("PORTOLAN_COMMIT"));
    // Without them each command says what it may not do.
    let _ = capabilities::raise();
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = Program::named(&words.next().unwrap_or_default());
    let arguments: Vec<String> = words.collect();
    let result = match program {
        Program::Portolan => return portolan(),
        Program::KubeProxy => return daemon::main(Dialect::KubeProxy, &arguments),
        Program::Flanneld => return daemon::main(Dialect::Flanneld, &arguments),
        // It asks the cluster, not the daemons of nodes.
        Program::KubectlPlugin if arguments.first().is_some_and(|word| word == "selftest") => {
            return portolan();
        }
        Program::KubectlPlugin => return kubectl::main(&arguments),
        Program::Copy(name) => copy::run(name, &arguments).map(|()| true),
    };
    exit_code(result)
}

fn portolan() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Run(args) => return daemon::main(Dialect::Portolan, &args.arguments),
        Command::Status(args) => return operator::run_status(&args),
        Command::Services(args) => return operator::run_services(&args),
        Command::Flows(args) => return operator::run_flows(&args),
        Command::Support(args) => return operator::run_support(&args),
        Command::Completions(args) => {
            reference::completions(args.shell);
            Ok(true)
        }
        Command::Manual(args) => reference::manual(&args.to).map(|()| true),
        Command::Trace(args) => return operator::run_trace(&args),
        Command::Verify(args) => return operator::run_verify(&args),
        Command::LogLevel(args) => return operator::run_log_level(&args),
        Command::Render(args) => log::start(&args.log.logging()).and_then(|()| render::run(&args)),
        Command::Cleanup(args) => {
            log::start(&args.log.logging()).and_then(|()| cleanup::run(&args))
        }
        Command::Doctor(args) => return operator::run_doctor(&args),
        Command::Selftest(args) => return selftest::main(&args),
        Command::ApiServer(args) => api_server::run(&args).map(|()| true),
        Command::RotateKey(args) => rotate_key(&args).map(|()| true),
        Command::Version(args) => version(&args),
    })
}

fn exit_code(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "portolan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves a request that the daemon finds.
fn rotate_key(args: &RotateKeyArgs) -> anyhow::Result<()> {
    let keys = &args.overlay_encryption_key_file;
    anyhow::ensure!(
        keys.exists(),
        "{} does not exist: the daemon encrypts nothing, or keeps its keys elsewhere",
        keys.display()
    );
    let request = encryption::request_file(keys);
    std::fs::write(&request, "")
        .with_context(|| format!("cannot write the request {}", request.display()))?;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "requested: the daemon begins within 30 s");
    Ok(())
}

fn version(args: &VersionArgs) -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    let printed = out.write_all(build_info::get().text().as_bytes()).is_ok();
    if args.features {
        return Ok(printed && out.write_all(features::report()?.as_bytes()).is_ok());
    }
    Ok(printed)
}
