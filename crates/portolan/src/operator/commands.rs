//! `portolan status`, `services`, `trace`, `verify` and `log-level`: ask the daemon, print its document, and return an exit code.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{self, Unanswered, complain, query, unanswered};
use super::documents::{LogLevel, Services, State, Status, Trace, TraceVerdict, Verification};
use super::live;
use super::print::{self, Terminal, json, out};
use super::watching;
use crate::cli::{LogLevelArgs, OutputForm, ServicesArgs, StatusArgs, TraceArgs, VerifyArgs};

/// Interval of `--watch`.
const WATCH: Duration = Duration::from_secs(1);
/// Interval between requests of `--wait`.
const WAIT: Duration = Duration::from_millis(200);

/// `portolan status`
pub fn status(args: &StatusArgs) -> ExitCode {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let answer: Result<Status, Unanswered> = client::document("/v1/status");
        let is_good = answer.as_ref().is_ok_and(|status| is_good(status.state));
        if args.wait && !is_good && Instant::now() < deadline {
            std::thread::sleep(WAIT);
            continue;
        }
        let status = match answer {
            Ok(status) => status,
            Err(error) if args.watch => {
                complain(&error);
                std::thread::sleep(WATCH);
                continue;
            }
            Err(error) => return unanswered(&error),
        };
        let terminal = Terminal::of_stdout();
        let is_read = match args.output {
            OutputForm::Json => json(&status, args.watch),
            OutputForm::Text => {
                let clear = terminal.cleared(args.watch);
                out(&(clear + &print::status(&status, terminal)))
            }
        };
        if !args.watch {
            return ExitCode::from(u8::from(!is_good));
        }
        if !is_read {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(WATCH);
    }
}

fn is_good(state: State) -> bool {
    matches!(state, State::Ok | State::Standby)
}

/// `portolan services`
pub fn services(args: &ServicesArgs) -> ExitCode {
    if args.top {
        return watching::top(args);
    }
    let query = args.name.as_ref().map(|name| query(&[("name", name)]));
    let path = format!("/v1/services{}", query.unwrap_or_default());
    ask(&path, args.output, |services: &Services, terminal| {
        let text = match (&args.name, services.services.as_slice()) {
            (Some(_), [service]) => print::service(services, service, terminal),
            _ => print::services(services, terminal),
        };
        (text, 0)
    })
}

/// `portolan trace`
pub fn trace(args: &TraceArgs) -> ExitCode {
    let (to, protocol) = args.to.split_once('/').unwrap_or((&args.to, "tcp"));
    if let Err(error) = to.parse::<SocketAddr>() {
        let reason =
            format!("--to {to:?}: not ADDRESS:PORT ({error}); IPv6 addresses are in brackets");
        let _ = writeln!(std::io::stderr(), "portolan: {reason}");
        return ExitCode::from(client::UNANSWERED);
    }
    let protocol = protocol.to_lowercase();
    let query = query(&[("from", &args.from), ("to", to), ("protocol", &protocol)]);
    let path = format!("/v1/trace{query}");
    if args.live {
        return trace_live(args, &path);
    }
    ask(&path, args.output, |trace: &Trace, terminal| {
        (print::trace(trace, terminal), u8::from(!passes(trace)))
    })
}

fn passes(trace: &Trace) -> bool {
    matches!(
        trace.verdict,
        TraceVerdict::Balanced | TraceVerdict::Untouched
    )
}

/// Prints what the daemon says, and then what the kernel does with a packet.
fn trace_live(args: &TraceArgs, path: &str) -> ExitCode {
    let mut trace: Trace = match client::document(path) {
        Ok(trace) => trace,
        Err(error) => return unanswered(&error),
    };
    let terminal = Terminal::of_stdout();
    let is_own = args.from == "node";
    if args.output == OutputForm::Text {
        let waiting = match is_own {
            true => "sending a packet from this node\n".to_owned(),
            false => format!("waiting {} s for a packet of the client\n", args.timeout),
        };
        out(&(print::trace(&trace, terminal) + &waiting));
    }
    let live = match live::observe(&trace, is_own, Duration::from_secs(args.timeout)) {
        Ok(live) => live,
        Err(error) => return unanswered(&Unanswered::because(format!("{error:#}"))),
    };
    let code = match (live.steps.is_empty(), live.is_dropped) {
        (true, _) => client::UNANSWERED,
        (false, is_dropped) => u8::from(is_dropped || live.agrees == Some(false)),
    };
    match args.output {
        OutputForm::Text => {
            out(&print::live(&live, terminal));
        }
        OutputForm::Json => {
            trace.live = Some(live);
            json(&trace, false);
        }
    }
    ExitCode::from(code)
}

/// `portolan verify`
pub fn verify(args: &VerifyArgs) -> ExitCode {
    ask(
        "/v1/verify",
        args.output,
        |found: &Verification, terminal| {
            let differs = found.difference_count > 0;
            (print::verification(found, terminal), u8::from(differs))
        },
    )
}

/// `portolan log-level`
pub fn log_level(args: &LogLevelArgs) -> ExitCode {
    const PATH: &str = "/v1/log-level";
    let answer: Result<LogLevel, Unanswered> = match &args.level {
        Some(level) => client::put(PATH, level.clone()),
        None => client::document(PATH),
    };
    match answer {
        Ok(answer) => {
            match args.output {
                OutputForm::Text => out(&format!("{}\n", answer.level)),
                OutputForm::Json => json(&answer, false),
            };
            ExitCode::SUCCESS
        }
        Err(error) => unanswered(&error),
    }
}

/// Asks for a document and prints it. `text` returns the text for people, and the exit code.
fn ask<T: DeserializeOwned + Serialize>(
    path: &str,
    output: OutputForm,
    text: impl FnOnce(&T, Terminal) -> (String, u8),
) -> ExitCode {
    let document: T = match client::document(path) {
        Ok(document) => document,
        Err(error) => return unanswered(&error),
    };
    let (text, code) = text(&document, Terminal::of_stdout());
    match output {
        OutputForm::Text => out(&text),
        OutputForm::Json => json(&document, false),
    };
    ExitCode::from(code)
}
