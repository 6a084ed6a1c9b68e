//! What is checked, and what the answers mean: functions of the objects and of the answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::agent::{Answer, Answers, Attempt, Way};
use super::objects::{PORT, Place, SERVICE_PORT};
use super::text_of;

mod policies;

/// Connections to a Service with two endpoints: one of them is missed once in 2^31 times.
const SPREAD: usize = 32;
/// More than a window of TCP, in packets as large as the path takes.
const STREAM: usize = 1 << 20;
/// A datagram in several fragments.
const DATAGRAM: usize = 4_000;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    #[default]
    Passed,
    Failed,
    /// Could not be made here.
    Skipped,
}

/// A check, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is checked, with the family and the protocol.
    pub name: String,
    /// The pod that connected.
    pub from: String,
    /// Where to, if an attempt was made.
    pub to: Option<String>,
    pub state: State,
    /// What happened, if that is not what should.
    pub text: String,
}

/// What the cluster has.
pub(super) struct Known {
    pub(super) pods: Vec<Value>,
    pub(super) services: Vec<Value>,
    pub(super) nodes: Vec<Value>,
    pub(super) dns: Vec<Value>,
}

/// What should become of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// All are answered, by exactly these servers together.
    By(Vec<String>),
    /// All are answered, by one server.
    ByOne,
    /// All fail in this way.
    Failure(&'static str),
    /// Nothing is tried.
    Skipped(&'static str),
}

struct Planned {
    name: String,
    client: String,
    attempt: Option<Attempt>,
    expected: Expected,
}

/// All checks.
#[derive(Default)]
pub(super) struct Plan(Vec<Planned>);

impl Known {
    /// The addresses at a pointer of the object with this name: one, or a list of texts or of objects with an `ip`.
    fn addresses(objects: &[Value], name: &str, pointer: &str) -> Vec<IpAddr> {
        let object = objects
            .iter()
            .find(|object| object["metadata"]["name"] == name);
        let list = object.and_then(|object| object.pointer(pointer)?.as_array());
        let texts = list.into_iter().flatten().filter_map(|one| {
            let text = one.as_str().or_else(|| one["ip"].as_str());
            text.or_else(|| match one["type"] == "InternalIP" {
                true => one["address"].as_str(),
                false => None,
            })
        });
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    fn pod(&self, name: &str) -> Vec<IpAddr> {
        Known::addresses(&self.pods, name, "/status/podIPs")
    }

    fn service(&self, name: &str) -> Vec<IpAddr> {
        Known::addresses(&self.services, name, "/spec/clusterIPs")
    }

    fn node_port(&self, name: &str, protocol: &str) -> Option<u16> {
        let named = |service: &&Value| service["metadata"]["name"] == name;
        let ports = self.services.iter().find(named)?["spec"]["ports"].as_array()?;
        let port = ports.iter().find(|port| port["protocol"] == protocol)?;
        port["nodePort"].as_u64()?.try_into().ok()
    }
}

impl Known {
    /// `spec.healthCheckNodePort` of a Service, which the API server chooses.
    fn health_check_node_port(&self, name: &str) -> Option<u16> {
        let named = |service: &&Value| service["metadata"]["name"] == name;
        let service = self.services.iter().find(named)?;
        let port = service["spec"]["healthCheckNodePort"].as_u64()?;
        port.try_into().ok().filter(|port| *port > 0)
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

const WAYS: [(Way, &str); 2] = [(Way::Tcp, "TCP"), (Way::Udp, "UDP")];

impl Plan {
    pub(super) fn new(known: &Known, places: &[Place]) -> Plan {
        let mut plan = Plan::default();
        let servers: Vec<String> = (1..=places.len()).map(|n| format!("server-{n}")).collect();
        let clients: Vec<String> = (1..=places.len()).map(|n| format!("client-{n}")).collect();
        if places.len() < 2 {
            plan.skip("pod to pod on another node", "only one node runs Portolan");
        }
        plan.pods(known, &servers, &clients);
        for client in &clients {
            plan.services(known, client, &servers);
            plan.node_ports(known, client, &servers, places);
            plan.source_ranges(known, client, &servers);
            plan.external_policy(known, client, places);
            plan.dns(known, client);
        }
        // Its own and only endpoint: the packet comes back to its sender, masqueraded.
        for to in known.service("lone") {
            for (way, protocol) in WAYS {
                let name = format!("hairpin, {} {protocol}", family(to));
                let attempt = attempt(way, to, SERVICE_PORT, 1, 0);
                plan.add(
                    name,
                    "server-1",
                    attempt,
                    Expected::By(vec!["server-1".to_owned()]),
                );
            }
        }
        plan
    }

    /// Number of checks.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, name: String, client: &str, attempt: Attempt, expected: Expected) {
        self.0.push(Planned {
            name,
            client: client.to_owned(),
            attempt: Some(attempt),
            expected,
        });
    }

    fn skip(&mut self, name: &str, why: &'static str) {
        self.0.push(Planned {
            name: name.to_owned(),
            client: String::new(),
            attempt: None,
            expected: Expected::Skipped(why),
        });
    }

    /// Each client to each server, small and large.
    fn pods(&mut self, known: &Known, servers: &[String], clients: &[String]) {
        for (n, client) in clients.iter().enumerate() {
            for (m, server) in servers.iter().enumerate() {
                let where_to = if n == m {
                    "on its node"
                } else {
                    "on another node"
                };
                for to in known.pod(server) {
                    for (way, protocol) in WAYS {
                        for (size, bytes) in [("", 0), (", large packets", large(way))] {
                            let family = family(to);
                            let name = format!("pod to pod {where_to}, {family} {protocol}{size}");
                            let attempt = attempt(way, to, PORT, 1, bytes);
                            self.add(name, client, attempt, Expected::By(vec![server.clone()]));
                        }
                    }
                }
            }
        }
    }

    /// A client to the cluster IPs.
    fn services(&mut self, known: &Known, client: &str, servers: &[String]) {
        if known.service("all").len() < 2 {
            self.skip("Services of a second family", "the cluster has one family");
        }
        let is_first = client == "client-1";
        let local = match is_first {
            true => Expected::By(vec!["server-1".to_owned()]),
            false => Expected::Failure("no answer"),
        };
        let all = Expected::By(servers.to_vec());
        for (service, what, count, expected) in [
            ("all", "Service", SPREAD, all),
            ("affinity", "session affinity", 8, Expected::ByOne),
            ("local", "internalTrafficPolicy Local", 1, local),
            (
                "empty",
                "Service without endpoints",
                1,
                Expected::Failure("refused"),
            ),
        ] {
            for to in known.service(service) {
                for (way, protocol) in WAYS {
                    let name = format!("{what}, {} {protocol}", family(to));
                    let attempt = attempt(way, to, SERVICE_PORT, count, 0);
                    self.add(name, client, attempt, expected.clone());
                }
            }
        }
        for to in known.service("lone") {
            for (way, protocol) in WAYS {
                let name = format!("Service, {} {protocol}, large packets", family(to));
                let attempt = attempt(way, to, SERVICE_PORT, 1, large(way));
                self.add(
                    name,
                    client,
                    attempt,
                    Expected::By(vec!["server-1".to_owned()]),
                );
            }
        }
    }

    /// A client to the node ports of the tested nodes.
    fn node_ports(&mut self, known: &Known, client: &str, servers: &[String], places: &[Place]) {
        let families: Vec<&str> = known.service("all").into_iter().map(family).collect();
        for place in places {
            for to in Known::addresses(&known.nodes, &place.node, "/status/addresses") {
                for (way, protocol) in WAYS {
                    let port = known.node_port("all", protocol);
                    let Some(port) = port.filter(|_| families.contains(&family(to))) else {
                        continue;
                    };
                    let name = format!("node port of {}, {} {protocol}", place.node, family(to));
                    let attempt = attempt(way, to, port, SPREAD, 0);
                    self.add(name, client, attempt, Expected::By(servers.to_vec()));
                }
            }
        }
    }

    /// A client to the cluster's DNS.
    fn dns(&mut self, known: &Known, client: &str) {
        let name = known
            .dns
            .iter()
            .find_map(|dns| text_of(dns, "/metadata/name"));
        let Some(name) = name else {
            return self.skip(
                "DNS",
                "no Service with the label k8s-app=kube-dns is visible",
            );
        };
        for to in Known::addresses(&known.dns, &name, "/spec/clusterIPs") {
            let attempt = attempt(Way::Dns, to, 53, 1, 0);
            let answered = Expected::By(vec!["DNS".to_owned()]);
            self.add(format!("DNS, {}", family(to)), client, attempt, answered);
        }
    }

    /// The attempts of each client, in the order of the checks.
    pub(super) fn by_client(&self) -> BTreeMap<String, Vec<Attempt>> {
        let mut all: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
        for planned in &self.0 {
            if let Some(attempt) = &planned.attempt {
                all.entry(planned.client.clone())
                    .or_default()
                    .push(attempt.clone());
            }
        }
        all
    }

    /// Compares the answers with what should be.
    pub(super) fn judge(&self, answers: &[(String, Answers)]) -> Vec<Check> {
        let mut left: BTreeMap<&str, std::slice::Iter<'_, Answer>> = BTreeMap::new();
        for (client, answers) in answers {
            left.insert(client, answers.iter());
        }
        let mut checks = Vec::new();
        for planned in &self.0 {
            let answer = match planned.attempt {
                Some(_) => left
                    .get_mut(planned.client.as_str())
                    .and_then(Iterator::next),
                None => None,
            };
            let none = Answer::default();
            let verdict = planned.expected.compare(answer.unwrap_or(&none));
            let (state, text) = match (&planned.expected, verdict) {
                (Expected::Skipped(why), _) => (State::Skipped, (*why).to_owned()),
                (_, Ok(())) => (State::Passed, String::new()),
                (_, Err(text)) => (State::Failed, text),
            };
            checks.push(Check {
                name: planned.name.clone(),
                from: planned.client.clone(),
                to: planned
                    .attempt
                    .as_ref()
                    .map(|attempt| attempt.to.to_string()),
                state,
                text,
            });
        }
        checks
    }
}

/// Bytes that need several full packets.
fn large(way: Way) -> usize {
    if way == Way::Udp { DATAGRAM } else { STREAM }
}

fn attempt(way: Way, to: IpAddr, port: u16, count: usize, bytes: usize) -> Attempt {
    Attempt {
        way,
        to: SocketAddr::new(to, port),
        count,
        bytes,
    }
}

impl Expected {
    /// What differs, if something does.
    fn compare(&self, answer: &Answer) -> Result<(), String> {
        let servers: Vec<&String> = answer.servers.keys().collect();
        let is_as_expected = match self {
            Expected::By(names) => {
                answer.failures.is_empty() && names.iter().eq(servers.iter().copied())
            }
            Expected::ByOne => answer.failures.is_empty() && servers.len() == 1,
            Expected::Failure(kind) => {
                servers.is_empty()
                    && answer.failures.keys().all(|found| found == kind)
                    && !answer.failures.is_empty()
            }
            Expected::Skipped(_) => true,
        };
        if is_as_expected {
            return Ok(());
        }
        let counted = |map: &BTreeMap<String, usize>| {
            let parts: Vec<String> = map
                .iter()
                .map(|(name, n)| format!("{name} ({n})"))
                .collect();
            parts.join(", ")
        };
        let expected = match self {
            Expected::By(names) => format!("answers of {}", names.join(" and ")),
            Expected::ByOne => "answers of one server".to_owned(),
            Expected::Failure(kind) => (*kind).to_owned(),
            Expected::Skipped(_) => String::new(),
        };
        let found = match (counted(&answer.servers), counted(&answer.failures)) {
            (servers, failures) if servers.is_empty() && failures.is_empty() => {
                "nothing".to_owned()
            }
            (servers, failures) if servers.is_empty() => failures,
            (servers, failures) if failures.is_empty() => format!("answers of {servers}"),
            (servers, failures) => format!("answers of {servers}; {failures}"),
        };
        Err(format!("expected {expected}, got {found}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(servers: &[(&str, usize)], failures: &[(&str, usize)]) -> Answer {
        let map = |of: &[(&str, usize)]| {
            of.iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect()
        };
        Answer {
            servers: map(servers),
            failures: map(failures),
        }
    }

    #[test]
    fn answers_of_other_servers_and_other_failures_differ() {
        let both = Expected::By(vec!["server-1".into(), "server-2".into()]);
        assert_eq!(
            both.compare(&answer(&[("server-1", 9), ("server-2", 7)], &[])),
            Ok(())
        );
        let text = both
            .compare(&answer(&[("server-1", 31)], &[("no answer", 1)]))
            .unwrap_err();
        assert_eq!(
            text,
            "expected answers of server-1 and server-2, got answers of server-1 (31); no answer (1)"
        );
        assert!(both.compare(&answer(&[("server-1", 32)], &[])).is_err());
        let refused = Expected::Failure("refused");
        assert_eq!(refused.compare(&answer(&[], &[("refused", 1)])), Ok(()));
        let text = refused
            .compare(&answer(&[], &[("no answer", 1)]))
            .unwrap_err();
        assert_eq!(text, "expected refused, got no answer (1)");
        assert!(refused.compare(&answer(&[], &[])).is_err());
        assert!(
            Expected::ByOne
                .compare(&answer(&[("a", 1), ("b", 7)], &[]))
                .is_err()
        );
    }
}
