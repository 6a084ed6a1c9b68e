//! Commands that ask the daemon every second: `portolan services --top` and `portolan flows --follow`.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::client::{self, Unanswered, complain, query, unanswered};
use super::documents::{Flow, Flows, Rate, Services, Top, Traffic};
use super::print::{self, Terminal, json, out};
use crate::cli::{FlowsArgs, OutputForm, ServicesArgs};

/// Interval between requests. Conntrack keeps entries of ended connections for several intervals.
const INTERVAL: Duration = Duration::from_secs(1);

/// `portolan services --top`
pub(super) fn top(args: &ServicesArgs) -> ExitCode {
    let name = args.name.as_ref().map(|name| ("name", name.as_str()));
    let parameters: Vec<(&str, &str)> = name.into_iter().chain([("measure", "1")]).collect();
    let path = format!("/v1/services{}", query(&parameters));
    let mut before: Option<(Instant, BTreeMap<String, Traffic>)> = None;
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
                OutputForm::Text => out(&print::top(&top, terminal)),
                OutputForm::Json => json(&top, true),
            };
            if !is_read {
                return ExitCode::SUCCESS;
            }
        }
        let measured = services.services.into_iter();
        let measured = measured.map(|service| (service.name, service.measured));
        before = Some((now, measured.collect()));
        std::thread::sleep(INTERVAL.saturating_sub(now.elapsed()));
    }
}

fn difference(services: &Services, earlier: &BTreeMap<String, Traffic>, elapsed: Duration) -> Top {
    let seconds = elapsed.as_secs_f64();
    let rates = services.services.iter().map(|service| {
        let before = earlier.get(&service.name).copied().unwrap_or_default();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let now = service.measured;
        Rate {
            service: service.name.clone(),
            connections: service.traffic.connections,
            connections_per_second: rate(now.connections, before.connections),
            packets_per_second: rate(now.packets, before.packets),
            bytes_per_second: rate(now.bytes, before.bytes),
        }
    });
    let mut rates: Vec<Rate> = rates
        .filter(|rate| rate.connections > 0 || rate.bytes_per_second > 0.0)
        .collect();
    rates.sort_by(|a, b| {
        let by_bytes = b.bytes_per_second.total_cmp(&a.bytes_per_second);
        by_bytes.then(b.connections.cmp(&a.connections))
    });
    Top {
        elapsed_seconds: seconds,
        counts_bytes: services.counts_bytes,
        services: rates,
    }
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
