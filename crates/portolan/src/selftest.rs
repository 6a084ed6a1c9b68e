//! `portolan selftest`: tests a cluster with pods and Services of its own, made and deleted by kubectl.
//!
//! Two nodes get a server and a client each ([`objects`]); the program in the pods is Portolan's image ([`agent`]). Each client
//! makes all of its attempts in one `kubectl exec`, and the answers are judged here ([`checks`]). kubectl does the rest: which
//! cluster, who asks, and what a user may do.
//!
//! Invariant: only the test's own namespace is written, which has the test's label, and it is deleted however the test ends. After a
//! signal, pods end by themselves in ten minutes, and the next test deletes the namespace.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service_model::printable;

mod agent;
mod checks;
mod cluster;
mod objects;

use crate::cli::{OutputForm, SelftestArgs};
use agent::Answers;
use checks::{Check, Plan};
use cluster::Cluster;
use objects::Place;

/// Exit code when nothing could be tested.
const UNTESTED: u8 = 2;
/// Times that failed attempts are repeated: endpoints take a moment to reach all nodes.
const ROUNDS: usize = 4;
/// Pause before failed attempts are repeated.
const SETTLING: Duration = Duration::from_secs(2);
/// Characters of a line about a check.
const LINE: usize = 4_096;
/// Pause between two questions about pods.
const POLL: Duration = Duration::from_millis(300);

/// What the test has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The nodes that were tested.
    pub nodes: Vec<String>,
    /// Each check, in the order of the layers: pods, Services, DNS.
    pub checks: Vec<Check>,
    /// Number of checks that failed.
    pub failed: usize,
    /// Number of checks that could not be made here.
    pub skipped: usize,
    /// The verdict in a sentence.
    pub verdict: String,
    /// The namespace with the test's objects could not be deleted, or was to be kept.
    pub left: Option<String>,
}

/// Runs the command, or the part of a pod.
pub fn main(args: &SelftestArgs) -> ExitCode {
    if let Some(part) = &args.part {
        return exit_code(agent::run(part).map(|()| 0));
    }
    exit_code(run(args))
}

fn exit_code(result: Result<u8>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "portolan selftest: {error:#}");
        UNTESTED
    }))
}

fn run(args: &SelftestArgs) -> Result<u8> {
    let cluster = Cluster::new(args.context.clone());
    let places = cluster.places(&args.daemon_namespace, &args.nodes, args.image.as_deref())?;
    let progress = |text: &str| {
        let _ = writeln!(std::io::stderr(), "{text}");
    };
    let names: Vec<&str> = places.iter().map(|place| place.node.as_str()).collect();
    progress(&format!(
        "making pods and Services in namespace {} on {}",
        objects::NAMESPACE,
        names.join(" and ")
    ));
    cluster.delete_leftovers()?;
    let tested = test(
        &cluster,
        &places,
        Duration::from_secs(args.timeout),
        progress,
    );
    let left = match args.keep {
        true => Some(format!(
            "namespace {} is kept: kubectl delete namespace {}",
            objects::NAMESPACE,
            objects::NAMESPACE
        )),
        false => cluster.delete().err().map(|error| format!("{error:#}")),
    };
    let checks = match (tested, left.clone()) {
        (Ok(checks), _) => checks,
        (Err(error), Some(left)) if !args.keep => return Err(error.context(left)),
        (Err(error), _) => return Err(error),
    };
    let report = Report::new(
        names.iter().map(|name| printable(name, 253)).collect(),
        checks,
        left,
    );
    let text = match args.output {
        OutputForm::Text => report.text(),
        OutputForm::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    // The reader may close the pipe early.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(u8::from(report.failed > 0))
}

/// Makes the objects, waits for them, and makes all checks.
fn test(
    cluster: &Cluster,
    places: &[Place],
    timeout: Duration,
    progress: impl Fn(&str),
) -> Result<Vec<Check>> {
    let nodes = cluster.node_addresses()?;
    let first = places.first().map_or("", |place| &place.node);
    let ranges = objects::pod_cidrs(&nodes, first);
    cluster.apply(&objects::all(places, &ranges))?;
    for (service, addresses) in objects::LOAD_BALANCERS {
        // Without this right their checks are skipped.
        let _ = cluster.set_status(service, &objects::load_balancer_status(&addresses));
    }
    let deadline = Instant::now() + timeout;
    let pods = loop {
        let pods = cluster.pods()?;
        match objects::waiting(&pods, places) {
            None => break pods,
            Some(what) if Instant::now() >= deadline => {
                bail!("{what} after {} s", timeout.as_secs())
            }
            Some(_) => std::thread::sleep(POLL),
        }
    };
    let known = checks::Known {
        pods,
        services: cluster.services()?,
        nodes,
        dns: cluster.dns(),
    };
    let plan = Plan::new(&known, places);
    progress(&format!("making {} checks", plan.len()));
    let mut checks = Vec::new();
    for round in 1..=ROUNDS {
        checks = plan.judge(&ask(cluster, &plan)?);
        let is_good = checks
            .iter()
            .all(|check| check.state != checks::State::Failed);
        if is_good || round == ROUNDS {
            break;
        }
        std::thread::sleep(SETTLING);
    }
    Ok(checks)
}

/// Lets each client make its attempts, all clients at a time.
fn ask(cluster: &Cluster, plan: &Plan) -> Result<Vec<(String, Answers)>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = plan
            .by_client()
            .into_iter()
            .map(|(client, attempts)| {
                scope.spawn(move || -> Result<(String, Answers)> {
                    let attempts = serde_json::to_string(&attempts)?;
                    let answer = cluster.exec(&client, &["connect", &attempts])?;
                    let answers = serde_json::from_slice(&answer)
                        .with_context(|| format!("cannot read the answer of pod {client}"))?;
                    Ok((client, answers))
                })
            })
            .collect();
        let answers = asked.into_iter().map(|asked| match asked.join() {
            Ok(answers) => answers,
            Err(_) => bail!("asking a pod failed"),
        });
        answers.collect()
    })
}

impl Report {
    fn new(nodes: Vec<String>, checks: Vec<Check>, left: Option<String>) -> Report {
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let (failed, skipped) = (count(checks::State::Failed), count(checks::State::Skipped));
        let made = checks.len() - skipped;
        let on = nodes.join(" and ");
        let verdict = match failed {
            0 => format!("all {made} checks passed on {on}"),
            _ => format!("{failed} of {made} checks failed on {on}"),
        };
        Report {
            nodes,
            checks,
            failed,
            skipped,
            verdict,
            left,
        }
    }

    fn text(&self) -> String {
        // Names and errors come from pods and servers.
        let plain = |text: &str| printable(text, LINE);
        let width = |of: fn(&Check) -> &str| {
            let widths = self.checks.iter().map(|check| of(check).chars().count());
            widths.max().unwrap_or_default()
        };
        let (name, from) = (width(|check| &check.name), width(|check| &check.from));
        let mut text = String::new();
        for check in &self.checks {
            let state = match check.state {
                checks::State::Passed => "ok",
                checks::State::Failed => "FAILED",
                checks::State::Skipped => "skipped",
            };
            let line = format!(
                "{state:7}  {:name$}  {:from$}  {}",
                check.name, check.from, check.text
            );
            text += &plain(line.trim_end());
            text.push('\n');
        }
        if let Some(left) = &self.left {
            text += &format!("Left      {}\n", plain(left));
        }
        text + &format!("Verdict  {}\n", plain(&self.verdict))
    }
}

/// A field of an object as text on one line.
fn text_of(value: &Value, pointer: &str) -> Option<String> {
    let text = value.pointer(pointer)?.as_str()?;
    ensure_short(text).ok().map(|()| printable(text, 253))
}

fn ensure_short(text: &str) -> Result<()> {
    ensure!(text.len() <= 1024, "a name of {} bytes", text.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_servers_reach_no_terminal_unescaped() {
        let check = Check {
            name: "Service, IPv4 TCP".to_owned(),
            from: "client-1".to_owned(),
            state: checks::State::Failed,
            text: "got answers of \u{1b}[2J\u{9b}m (1)".to_owned(),
            ..Check::default()
        };
        let nodes = vec!["node-a".to_owned()];
        let text = Report::new(nodes, vec![check], Some("\u{7}".to_owned())).text();
        assert_eq!(text.lines().count(), 3, "{text:?}");
        let is_plain = |char: char| char == '\n' || !char.is_control();
        assert!(text.chars().all(is_plain), "{text:?}");
        assert!(text.contains("Service, IPv4 TCP  client-1  got answers of \\u{1b}[2J"));
    }
}
