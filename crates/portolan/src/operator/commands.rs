//! `portolan status`, `services`, `trace` and `verify`: ask the daemon, print its document, and return an exit code.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{self, Unanswered, complain, query, unanswered};
use super::documents::{Services, State, Status, Trace, TraceVerdict, Verification};
use super::print::{self, Terminal, json, out};
use super::watching;
use crate::cli::{OutputForm, ServicesArgs, StatusArgs, TraceArgs, VerifyArgs};

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
    ask(
        &format!("/v1/trace{query}"),
        args.output,
        |trace: &Trace, terminal| {
            let passes = matches!(
                trace.verdict,
                TraceVerdict::Balanced | TraceVerdict::Untouched
            );
            (print::trace(trace, terminal), u8::from(!passes))
        },
    )
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
