//! `kubectl portolan`: runs a command on all nodes, or on one, in the pods of the daemon (`kubectl exec`).
//!
//! kubectl does the rest: which cluster, who asks, and what a user may do. Arguments are passed on as they are, without a shell.
//! Each line of text begins with the name of its node; with `--output json` a node's document is one line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use service_model::printable;

/// Selects the pods of the daemon, and names their container and the program in it.
pub(crate) const PODS: &str = "app.kubernetes.io/name=portolan";
pub(crate) const CONTAINER: &str = "portolan";
pub(crate) const PROGRAM: &str = "/usr/local/bin/portolan";
/// Commands that ask the daemon of a node.
const COMMANDS: [&str; 8] = [
    "status",
    "services",
    "flows",
    "trace",
    "verify",
    "log-level",
    "doctor",
    "version",
];
/// Nodes that are asked at a time.
const AT_A_TIME: usize = 16;
/// Exit code when nothing could be asked.
const UNASKED: u8 = 2;
/// What kubectl prints when the program in the pod has failed, and not kubectl itself.
const PROGRAM_FAILED: &str = "command terminated with exit code";
/// Characters of a line of a node: a trace or a list of problems can be long.
const LINE: usize = 65_536;

const USAGE: &str = "\
Run a command of Portolan on all nodes, in the pods of the daemon

Usage: kubectl portolan [-n NAMESPACE] [--context NAME] [--node NAME] COMMAND [FLAGS]

Commands: status, services, flows, trace, verify, log-level, doctor, version; flags as `portolan COMMAND --help` lists them

`kubectl portolan selftest` is `portolan selftest`, which has options of its own

Options:
  -n, --namespace NAMESPACE  Namespace of the pods [default: kube-system]
      --context NAME         Context of the kubeconfig [default: the current one]
      --node NAME            Node to ask [default: all nodes]

Exit codes: the highest of all nodes; 2 also when a node could not be asked
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    namespace: String,
    context: Option<String>,
    node: Option<String>,
    /// The command with its flags.
    command: Vec<String>,
}

/// A pod of the daemon.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    name: String,
    node: String,
    /// Why the pod cannot be asked, if so.
    phase: Option<String>,
}

/// Runs `kubectl-portolan` with these arguments.
pub fn main(arguments: &[String]) -> ExitCode {
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kubectl portolan: {error:#}");
            ExitCode::from(UNASKED)
        }
    }
}

fn run(arguments: &[String]) -> Result<u8> {
    let Some(request) = Request::read(arguments)? else {
        return Ok(u8::from(
            std::io::stdout().write_all(USAGE.as_bytes()).is_err(),
        ));
    };
    let pods = request.pods()?;
    let width = pods.iter().map(|pod| pod.node.chars().count()).max();
    let width = width.unwrap_or_default();
    let (mut highest, request) = (0, &request);
    let at_a_time = match request.is_endless() {
        true => pods.len(),
        false => AT_A_TIME,
    };
    for some in pods.chunks(at_a_time) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some
                .iter()
                .map(|pod| scope.spawn(move || request.ask(pod, width)))
                .collect();
            // In the order of the nodes, each node's answer in one piece.
            for asked in asked {
                let (code, text) = asked.join().unwrap_or((UNASKED, String::new()));
                highest = highest.max(code);
                // The reader may close the pipe early.
                let _ = std::io::stdout().write_all(text.as_bytes());
            }
        });
    }
    Ok(highest)
}

impl Request {
    /// `None`: help is asked for.
    fn read(arguments: &[String]) -> Result<Option<Request>> {
        let mut request = Request {
            namespace: "kube-system".to_owned(),
            context: None,
            node: None,
            command: Vec::new(),
        };
        let mut words = arguments.iter().cloned();
        while let Some(word) = words.next() {
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (word.as_str(), None),
            };
            let mut value = || {
                let value = inline.clone().or_else(|| words.next());
                value.with_context(|| format!("{name} needs a value"))
            };
            match name {
                "-h" | "--help" | "help" => return Ok(None),
                "-n" | "--namespace" => request.namespace = value()?,
                "--context" => request.context = Some(value()?),
                "--node" => request.node = Some(value()?),
                _ if COMMANDS.contains(&name) => {
                    request.command = std::iter::once(word).chain(words).collect();
                    return Ok(Some(request));
                }
                _ => bail!(
                    "{name} is neither an option nor one of the commands {}; see --help",
                    COMMANDS.join(", ")
                ),
            }
        }
        Ok(None)
    }

    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(self.context.iter().map(|name| format!("--context={name}")));
        kubectl.arg(format!("--namespace={}", self.namespace));
        kubectl.stdin(Stdio::null());
        kubectl
    }

    fn has(&self, flags: &[&str]) -> bool {
        self.command
            .iter()
            .any(|word| flags.contains(&word.as_str()))
    }

    /// Whether the command goes on until it is interrupted.
    fn is_endless(&self) -> bool {
        self.has(&["--follow", "--watch", "--top"])
    }

    /// Pods of the daemon that run or will, in the order of their nodes.
    fn pods(&self) -> Result<Vec<Pod>> {
        let mut kubectl = self.kubectl();
        kubectl.args(["get", "pods", "--selector", PODS, "--output", "json"]);
        kubectl.args(
            self.node
                .iter()
                .map(|node| format!("--field-selector=spec.nodeName={node}")),
        );
        let output = kubectl.stderr(Stdio::inherit()).output();
        let output = output.context("cannot start kubectl")?;
        ensure!(output.status.success(), "kubectl could not list the pods");
        let list: Value =
            serde_json::from_slice(&output.stdout).context("cannot read kubectl's list of pods")?;
        let pods = pods_of(&list);
        let of = self.node.iter().map(|node| format!(" on node {node}"));
        let of: String = of.collect();
        ensure!(
            !pods.is_empty(),
            "no pod with the label {PODS} runs in namespace {}{of}; --namespace names another one",
            self.namespace
        );
        Ok(pods)
    }

    /// Asks one node, and returns its exit code and its answer. A command that does not end by itself is printed as it comes.
    fn ask(&self, pod: &Pod, width: usize) -> (u8, String) {
        let complain = |line: &str| {
            let line = printable(line, LINE);
            let _ = writeln!(std::io::stderr(), "{:width$}  {line}", pod.node);
        };
        if let Some(phase) = &pod.phase {
            complain(&format!("not asked: {phase}"));
            return (UNASKED, String::new());
        }
        let mut kubectl = self.kubectl();
        kubectl.args(["exec", &pod.name, "--container", CONTAINER, "--", PROGRAM]);
        kubectl.args(&self.command);
        kubectl.stdout(Stdio::piped()).stderr(Stdio::piped());
        let is_json = self.has(&["--output=json"])
            || self
                .command
                .windows(2)
                .any(|two| two == ["--output", "json"]);
        let is_endless = self.is_endless();
        let mut text = String::new();
        let mut has_run = false;
        let asked = kubectl.spawn().and_then(|mut child| {
            let (out, errors) = (child.stdout.take(), child.stderr.take());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let errors = errors
                        .into_iter()
                        .flat_map(|pipe| BufReader::new(pipe).lines());
                    errors.map_while(Result::ok).for_each(|line| {
                        has_run |= line.contains(PROGRAM_FAILED);
                        complain(&line);
                    });
                });
                let Some(out) = out else { return Ok(()) };
                each(out, is_json, |line| {
                    let line = match is_json {
                        true => format!("{line}\n"),
                        false => format!("{:width$}  {}\n", pod.node, printable(&line, LINE)),
                    };
                    match is_endless {
                        true => std::io::stdout().write_all(line.as_bytes()),
                        false => {
                            text += &line;
                            Ok(())
                        }
                    }
                })
            })?;
            child.wait()
        });
        let code = match asked.map(|status| status.code()) {
            // kubectl's own failures have this code too.
            Ok(Some(1)) if !has_run => UNASKED,
            Ok(Some(code)) => u8::try_from(code).unwrap_or(UNASKED),
            Ok(None) | Err(_) => UNASKED,
        };
        (code, text)
    }
}

/// Calls `print` with each line, or with each JSON document on one line.
fn each(
    out: impl std::io::Read,
    is_json: bool,
    mut print: impl FnMut(String) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let out = BufReader::new(out);
    if is_json {
        let mut documents = serde_json::Deserializer::from_reader(out).into_iter::<Value>();
        return documents.try_for_each(|document| print(document?.to_string()));
    }
    out.lines().try_for_each(|line| print(line?))
}

/// The pods of a list that have a node, but for those that have ended or are ending.
fn pods_of(list: &Value) -> Vec<Pod> {
    let items = list["items"].as_array().into_iter().flatten();
    let mut pods: Vec<Pod> = items
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|pod| {
            let phase = match pod["status"]["phase"].as_str()? {
                "Running" => None,
                "Succeeded" | "Failed" => return None,
                other => Some(printable(other, 253)),
            };
            Some(Pod {
                name: pod["metadata"]["name"].as_str()?.to_owned(),
                node: printable(pod["spec"]["nodeName"].as_str()?, 253),
                phase,
            })
        })
        .collect();
    pods.sort_by(|a, b| a.node.cmp(&b.node));
    pods
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(words: &str) -> Result<Option<Request>> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Request::read(&words)
    }

    #[test]
    fn options_come_before_the_command_and_flags_after_it() {
        let request = read("-n net --node=a --context c services --node x --top").unwrap();
        let request = request.unwrap();
        assert_eq!(
            (request.namespace.as_str(), request.node.as_deref()),
            ("net", Some("a"))
        );
        assert_eq!(request.context.as_deref(), Some("c"));
        assert_eq!(request.command, ["services", "--node", "x", "--top"]);
        assert_eq!(read("--help").unwrap(), None);
        assert_eq!(read("").unwrap(), None);
        let error = read("cleanup").unwrap_err().to_string();
        assert!(error.contains("cleanup"), "{error}");
        assert!(read("--node").is_err());
    }

    #[test]
    fn pods_that_run_or_will_are_listed_in_the_order_of_nodes() {
        let pod = |node: &str, phase: &str| {
            json!({
                "metadata": {"name": format!("pod-{node}")}, "spec": {"nodeName": node},
                "status": {"phase": phase},
            })
        };
        let mut items = vec![
            pod("b", "Running"),
            pod("c", "Pending"),
            pod("a", "Running"),
            pod("d", "Succeeded"),
            pod("e", "Failed"),
            pod("f", "Running"),
            pod("g", "Pending"),
        ];
        items[5]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        // Not scheduled yet.
        items[6]["spec"] = json!({});
        let pods = pods_of(&json!({ "items": items }));
        let pods: Vec<(&str, Option<&str>)> = pods
            .iter()
            .map(|pod| (pod.node.as_str(), pod.phase.as_deref()))
            .collect();
        assert_eq!(pods, [("a", None), ("b", None), ("c", Some("Pending"))]);
    }
}
