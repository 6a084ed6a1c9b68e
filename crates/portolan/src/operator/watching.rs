//! Commands that ask the daemon every second: `portolan services --top` and `portolan flows --follow`.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::client::{self, Unanswered, complain, query, unanswered};
use super::documents::{
    Endpoint, EndpointRate, Flow, Flows, Rate, Rates, Service, Services, Top, Traffic,
};
use super::print::{self, Terminal, json, out};
use crate::cli::{FlowsArgs, OutputForm, ServicesArgs};

/// Interval between requests. Conntrack keeps entries of ended connections for several intervals.
const INTERVAL: Duration = Duration::from_secs(1);

/// `portolan services --top`
pub(super) fn top(args: &ServicesArgs) -> ExitCode {
    let name = args.name.as_ref().map(|name| ("name", name.as_str()));
    let parameters: Vec<(&str, &str)> = name.into_iter().chain([("measure", "1")]).collect();
    let path = format!("/v1/services{}", query(&parameters));
    let mut before: Option<(Instant, Measured)> = None;
    loop {
        let now = Instant::now();
        let services: Services = match client::document(&path) {
            Ok(services) => services,
            Err(error) => return unanswered(&error),
        };
        if let Some(reason) = &services.uncounted {
            // The next answer covers this time as well.
            complain(&Unanswered::because(format!(
                "connections are not counted: {reason}"
            )));
            std::thread::sleep(INTERVAL.saturating_sub(now.elapsed()));
            continue;
        }
        if let Some((at, earlier)) = &before {
            let top = difference(&services, earlier, now - *at);
            let terminal = Terminal::of_stdout();
            let is_read = match args.output {
                OutputForm::Text => out(&print::top(&top, args.name.is_some(), terminal)),
                OutputForm::Json => json(&top, true),
            };
            if !is_read {
                return ExitCode::SUCCESS;
            }
        }
        before = Some((now, Measured::of(&services)));
        std::thread::sleep(INTERVAL.saturating_sub(now.elapsed()));
    }
}

/// Name of a Service, and name of a port, protocol and address of an endpoint.
type EndpointKey = (String, String, String, String);

/// What was measured up to a question.
#[derive(Default)]
struct Measured {
    services: BTreeMap<String, Traffic>,
    endpoints: BTreeMap<EndpointKey, Traffic>,
}

fn endpoint_key(service: &Service, endpoint: &Endpoint) -> EndpointKey {
    let Endpoint {
        port_name,
        protocol,
        address,
        ..
    } = endpoint.clone();
    (service.name.clone(), port_name, protocol, address)
}

impl Measured {
    fn of(services: &Services) -> Measured {
        let mut measured = Measured::default();
        for service in &services.services {
            let name = service.name.clone();
            measured.services.insert(name, service.measured);
            for endpoint in &service.endpoints {
                let key = endpoint_key(service, endpoint);
                measured.endpoints.insert(key, endpoint.measured);
            }
        }
        measured
    }
}

impl Rates {
    /// A sum that is new, or smaller than before, has begun at an unknown time: its rate is 0.
    fn between(before: Option<&Traffic>, now: Traffic, seconds: f64, connections: u64) -> Rates {
        let is_earlier = |before: &&Traffic| {
            before.connections <= now.connections
                && before.packets <= now.packets
                && before.bytes <= now.bytes
        };
        let before = before.filter(is_earlier).copied().unwrap_or(now);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Rates {
            connections,
            connections_per_second: rate(now.connections, before.connections),
            packets_per_second: rate(now.packets, before.packets),
            bytes_per_second: rate(now.bytes, before.bytes),
        }
    }
}

/// Those with connections, the one with the most bytes first.
fn busiest<T>(all: impl Iterator<Item = T>, rates: impl Fn(&T) -> &Rates) -> Vec<T> {
    let is_busy = |rates: &Rates| rates.connections > 0 || rates.bytes_per_second > 0.0;
    let mut all: Vec<T> = all.filter(|one| is_busy(rates(one))).collect();
    all.sort_by(|a, b| {
        let (a, b) = (rates(a), rates(b));
        let by_bytes = b.bytes_per_second.total_cmp(&a.bytes_per_second);
        by_bytes.then(b.connections.cmp(&a.connections))
    });
    all
}

fn difference(services: &Services, earlier: &Measured, elapsed: Duration) -> Top {
    let seconds = elapsed.as_secs_f64();
    let rates = services.services.iter().map(|service| {
        let before = earlier.services.get(&service.name);
        let now = service.traffic.connections;
        Rate {
            service: service.name.clone(),
            rates: Rates::between(before, service.measured, seconds, now),
            endpoints: endpoint_rates(service, earlier, seconds),
        }
    });
    Top {
        elapsed_seconds: seconds,
        counts_bytes: services.counts_bytes,
        services: busiest(rates, |rate| &rate.rates),
    }
}

fn endpoint_rates(service: &Service, earlier: &Measured, seconds: f64) -> Vec<EndpointRate> {
    let rates = service.endpoints.iter().map(|endpoint| {
        let before = earlier.endpoints.get(&endpoint_key(service, endpoint));
        let now = endpoint.traffic.connections;
        EndpointRate {
            port_name: endpoint.port_name.clone(),
            protocol: endpoint.protocol.clone(),
            address: endpoint.address.clone(),
            pod: endpoint.pod.clone(),
            node: endpoint.node.clone(),
            rates: Rates::between(before, endpoint.measured, seconds, now),
        }
    });
    busiest(rates, |rate| &rate.rates)
}

/// `portolan flows`
pub fn flows(args: &FlowsArgs) -> ExitCode {
    let service = args
        .service
        .as_ref()
        .map(|name| query(&[("service", name)]));
    let path = format!("/v1/flows{}", service.unwrap_or_default());
    let mut seen: HashSet<(String, String, String)> = HashSet::new();
    let mut is_first = true;
    loop {
        let answer: Result<Flows, Unanswered> = client::document(&path);
        let found = match answer {
            Ok(found) => found,
            Err(error) if args.follow && !is_first => {
                complain(&error);
                std::thread::sleep(INTERVAL);
                continue;
            }
            Err(error) => return unanswered(&error),
        };
        let key = |flow: &Flow| (flow.protocol.clone(), flow.from.clone(), flow.to.clone());
        let new: Vec<Flow> = found
            .flows
            .iter()
            .filter(|flow| !seen.contains(&key(flow)))
            .cloned()
            .collect();
        seen = found.flows.iter().map(key).collect();
        let is_read = match args.output {
            OutputForm::Text => out(&print::flows(&found, &new, is_first, Terminal::of_stdout())),
            OutputForm::Json => new.iter().all(|flow| json(flow, true)),
        };
        is_first = false;
        if !args.follow || !is_read {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(connections: u64, bytes: u64) -> Traffic {
        Traffic {
            connections,
            packets: bytes / 100,
            bytes,
        }
    }

    #[test]
    fn a_sum_that_begins_or_falls_has_no_rate() {
        let now = traffic(4, 8_000);
        for (before, bytes_per_second) in [
            (Some(traffic(2, 6_000)), 1_000.0),
            (Some(now), 0.0),
            // Part of what was summed up is forgotten, or all of it.
            (Some(traffic(2, 9_000)), 0.0),
            (Some(traffic(5, 6_000)), 0.0),
            (None, 0.0),
        ] {
            let rates = Rates::between(before.as_ref(), now, 2.0, 3);
            assert_eq!(rates.connections, 3);
            assert_eq!(rates.bytes_per_second, bytes_per_second, "{before:?}");
        }
        let after = traffic(0, 0);
        let rates = Rates::between(Some(&now), after, 1.0, 0);
        assert_eq!(rates, Rates::default());
    }
}
