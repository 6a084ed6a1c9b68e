//! `/v1/status`: the state of the daemon in one document, from what its parts have published.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use net_types::Family;
use service_model::{ObjectName, printable};

use super::catalog::Catalog;
use super::documents::{Listener, OverlayStatus, ServicesStatus, Source, State, Status};
use super::knowledge::Knowledge;
use super::{Origin, Sources};
use crate::published::Published;
use crate::status::{Health, Quarantined, STUCK_AFTER};

/// Items of a list; the document has their number besides.
const LISTED: usize = 100;
/// Characters of an item.
const LONGEST: usize = 500;

pub(super) fn answer(known: &Knowledge) -> Status {
    let mut catalog = known.catalog.borrow_mut();
    let (now, wall) = (Instant::now(), SystemTime::now());
    let sources = &known.sources;
    let ignored = catalog.ignored();
    let conflicts = conflicts(&mut catalog);
    let quarantined = catalog.quarantined().iter();
    let quarantined: Vec<String> = quarantined
        .map(|(service, quarantined)| format!("{service}: {}", quarantined.reason))
        .collect();
    let quarantine = quarantine_reasons(catalog.quarantined());
    let mut status = Status {
        node: clean(&sources.node),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel(),
        uptime_seconds: sources.published.configz.uptime().as_secs_f64(),
        source: source(sources, &catalog, wall),
        services: services(sources, &catalog, now, wall),
        ignored_count: ignored.len(),
        ignored: first(&ignored),
        conflict_count: conflicts.len(),
        conflicts: first(&conflicts),
        quarantined: first(&quarantined),
        overlay: overlay(sources),
        fallbacks: sources.published.fallbacks.load().to_vec(),
        listeners: listeners(sources),
        ..Status::default()
    };
    judge(&mut status, sources, quarantine, now);
    status
}

/// Counts the quarantined Services with and without last good rules, one sentence each.
fn quarantine_reasons(services: &BTreeMap<ObjectName, Quarantined>) -> Vec<String> {
    let with_rules = services.values().filter(|one| one.last_good.is_some());
    let with_rules = with_rules.count();
    let counts = [
        ("whose last good rules serve", with_rules),
        (
            "which have no earlier rules and are not served",
            services.len() - with_rules,
        ),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    counts
        .map(|(which, count)| format!("quarantined Services, {which}: {count}"))
        .collect()
}

/// One line, without control characters.
pub(super) fn clean(text: &str) -> String {
    printable(text, LONGEST)
}

fn first(all: &[String]) -> Vec<String> {
    all.iter().take(LISTED).map(|text| clean(text)).collect()
}

fn kernel() -> String {
    let uname = nix::sys::utsname::uname();
    let release = uname
        .ok()
        .map(|uname| uname.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

fn since(time: Option<SystemTime>, now: SystemTime) -> Option<f64> {
    let elapsed = now.duration_since(time?).unwrap_or_default();
    Some(elapsed.as_secs_f64())
}

fn source(sources: &Sources, catalog: &Catalog, now: SystemTime) -> Source {
    let (kind, addresses) = match &sources.origin {
        Origin::Directory(path) => ("directory", vec![path.display().to_string()]),
        Origin::ApiServer(client) => ("API server", client.server_names()),
    };
    let outages = catalog.outages().iter();
    Source {
        kind: kind.to_owned(),
        addresses: first(&addresses),
        outages: outages
            .map(|(kind, outage)| clean(&format!("{kind}: {outage}")))
            .collect(),
        last_event_seconds: since(catalog.last_event(), now),
    }
}

fn services(
    sources: &Sources,
    catalog: &Catalog,
    now: Instant,
    wall: SystemTime,
) -> Option<ServicesStatus> {
    let status = sources.published.status.as_ref()?.load();
    let (services, endpoints) = catalog.size();
    let commits = catalog.commits();
    let pending = status.pending_since;
    let pending = pending.map(|since| now.saturating_duration_since(since));
    Some(ServicesStatus {
        services,
        endpoints,
        synced: status.synced,
        waiting_for: status.waiting_for.iter().map(ToString::to_string).collect(),
        pending_seconds: pending.map(|pending| pending.as_secs_f64()),
        last_commit_seconds: since(commits.last, wall),
        commits: commits.count,
        failed: commits.failed,
        commit_latency: commits.latency(),
        programming_latency: commits.programming(),
        repairs: commits.repairs,
        last_repair_seconds: since(commits.last_repair, wall),
    })
}

fn conflicts(catalog: &mut Catalog) -> Vec<String> {
    let conflicts = catalog.conflicts().iter().map(|conflict| {
        let (claim, winner, loser) = (conflict.claim, &conflict.winner, &conflict.loser);
        format!("{claim}: {winner} has it, {loser} does not")
    });
    conflicts.collect()
}

fn overlay(sources: &Sources) -> Option<OverlayStatus> {
    let status = sources.published.overlay.as_ref()?.load();
    let probes = sources.published.probes.load();
    let devices = Family::ALL.into_iter().filter_map(|family| {
        let tunnel = status.plan.tunnels[family].as_ref()?;
        let (name, local) = (&tunnel.device.name, tunnel.device.local);
        Some(format!(
            "{name} ({}), from {local}, MTU {}",
            family.api_name(),
            tunnel.device.mtu
        ))
    });
    let problems: Vec<String> = status
        .plan
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    let findings: Vec<String> = probes
        .findings
        .iter()
        .map(|finding| finding.text.clone())
        .collect();
    Some(OverlayStatus {
        ready: status.ready,
        devices: devices.collect(),
        peers: status.plan.peer_count(),
        repairs: status.repairs,
        findings: first(&findings),
        problems: first(&problems),
        held: status.held.iter().map(|name| clean(name)).collect(),
        encryption: super::encryption::document(&status.encryption),
    })
}

fn listeners(sources: &Sources) -> Vec<Listener> {
    let listeners = sources.listeners.iter().map(|(name, bound)| Listener {
        name: (*name).to_owned(),
        address: bound.borrow().map(|address| address.to_string()),
    });
    listeners.collect()
}

/// What keeps pods from being reached, as `/readyz` names it.
fn overlay_faults(published: &Published) -> Vec<String> {
    let overlay = published.overlay.as_ref().map(|overlay| overlay.load());
    let is_missing = overlay.as_ref().is_some_and(|overlay| !overlay.ready);
    let mut faults = overlay.map_or_else(Vec::new, |overlay| overlay.faults());
    faults.extend(published.probes.load().faults.iter().cloned());
    let faults = faults.iter().map(|fault| format!("overlay: {fault}"));
    let not_ready = is_missing.then(|| "the overlay is not ready".to_owned());
    let all: Vec<String> = not_ready.into_iter().chain(faults).collect();
    first(&all)
}

/// Sets the verdict, with reasons and remarks. `quarantine`: what is to be said of quarantined Services.
fn judge(status: &mut Status, sources: &Sources, quarantine: Vec<String>, now: Instant) {
    let mut reasons = Vec::new();
    let mut state = State::Ok;
    if let Some(published) = sources
        .published
        .status
        .as_ref()
        .map(|status| status.load())
    {
        status.remarks.extend(first(&published.notes));
        if published.standby {
            state = State::Standby;
        } else if !published.synced {
            state = State::Starting;
            let kinds: Vec<String> = published
                .waiting_for
                .iter()
                .map(ToString::to_string)
                .collect();
            reasons.push(match kinds.is_empty() {
                true => "waiting for the first sync".to_owned(),
                false => format!("waiting for the first list of {}", kinds.join(", ")),
            });
            if published.serving_adopted().is_some() {
                reasons.push("the tables of an earlier process serve meanwhile".to_owned());
            }
        }
        if published.health(now) == Health::Stuck {
            let limit = STUCK_AFTER.as_secs();
            reasons.push(format!(
                "a change has not been committed for more than {limit} s"
            ));
        }
    }
    let mut degraded = Vec::new();
    degraded.extend(
        status
            .source
            .outages
            .iter()
            .map(|outage| format!("not watching {outage}")),
    );
    degraded.extend(quarantine);
    degraded.extend(overlay_faults(&sources.published));
    let findings = status.overlay.iter().flat_map(|overlay| &overlay.findings);
    degraded.extend(findings.cloned());
    degraded.extend(
        sources
            .published
            .alarm
            .load_full()
            .map(|alarm| clean(&alarm)),
    );
    let probes = sources.published.probes.load();
    status.remarks.extend(first(&probes.remedies));
    status.remarks.extend(first(&probes.notes));
    status
        .remarks
        .extend(first(&sources.published.failover.load()));
    if state == State::Ok && !(degraded.is_empty() && reasons.is_empty()) {
        state = State::Degraded;
    }
    reasons.extend(degraded);
    (status.state, status.reasons) = (state, reasons);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use kube_proxy_config::{CommandLine, Dialect};
    use overlay_probe::ProbeStatus;
    use service_model::ServiceIntent;

    use super::*;
    use crate::configz::Configz;
    use crate::metrics::Metrics;
    use crate::operator::notices::notices;
    use crate::overlay;
    use crate::status;

    /// The answer of a daemon that publishes this.
    fn answer_of(published: Published) -> Status {
        let sources = Sources {
            node: "node-a".into(),
            published,
            origin: Origin::Directory("/".into()),
            has_probes: true,
            listeners: Vec::new(),
        };
        let (_follower, notices) = notices();
        let known = Knowledge::new(sources, notices);
        known.update();
        answer(&known)
    }

    fn published() -> Published {
        let flags: &[&str] = &[];
        let line = CommandLine::read(Dialect::KubeProxy, flags, |_| None);
        let documents = line.resolve(None).unwrap().documents();
        Published::new(Configz::new(documents), Metrics::new())
    }

    #[test]
    fn faults_of_a_ready_overlay_are_reasons() {
        let mut overlay = overlay::OverlayStatus {
            ready: true,
            ..overlay::OverlayStatus::default()
        };
        let with = |overlay: &overlay::OverlayStatus, probes: ProbeStatus| {
            let mut published = published();
            published.overlay = Some(Arc::new(ArcSwap::from_pointee(overlay.clone())));
            published.probes.store(Arc::new(probes));
            answer_of(published)
        };
        let status = with(&overlay, ProbeStatus::default());
        assert_eq!((status.state, status.reasons), (State::Ok, Vec::new()));
        overlay.trouble = Some("EPERM".to_owned());
        let faults = vec!["forwarding is off".to_owned()];
        let status = with(
            &overlay,
            ProbeStatus {
                faults,
                ..ProbeStatus::default()
            },
        );
        assert_eq!(status.state, State::Degraded);
        let expected = ["overlay: EPERM", "overlay: forwarding is off"];
        assert_eq!(status.reasons, expected);
        overlay.ready = false;
        let status = with(&overlay, ProbeStatus::default());
        let expected = ["the overlay is not ready", "overlay: EPERM"];
        assert_eq!(status.reasons, expected);
    }

    #[test]
    fn suspects_are_remarks_and_quarantined_services_a_reason() {
        let mut published = published();
        let line = "failover: node node-b does not answer".to_owned();
        published.failover.store(Arc::new(vec![line.clone()]));
        let control = status::Status {
            synced: true,
            ..status::Status::default()
        };
        let shared = Arc::new(ArcSwap::from_pointee(control.clone()));
        published.status = Some(shared.clone());
        let status = answer_of(published.clone());
        assert_eq!(status.state, State::Ok);
        assert_eq!(status.remarks, [line]);
        let name = |name: &str| ObjectName::new("shop", name);
        let quarantined = |last_good| Quarantined {
            reason: "over its budget".to_owned(),
            last_good,
        };
        let last_good = ServiceIntent {
            service: name("web"),
            created: None,
            frontends: Vec::new(),
            load_balancer_ips: Vec::new(),
            relays: BTreeMap::new(),
            reset_removed: false,
            health_check: None,
        };
        let new = (name("new"), quarantined(None));
        let web = (name("web"), quarantined(Some(Arc::new(last_good))));
        let serve = "quarantined Services, whose last good rules serve: 1";
        let not_served = "quarantined Services, which have no earlier rules and are not served: 1";
        for (services, reasons) in [
            (vec![new.clone()], vec![not_served]),
            (vec![web.clone()], vec![serve]),
            (vec![new, web], vec![serve, not_served]),
        ] {
            let names = services
                .iter()
                .map(|(name, _)| format!("{name}: over its budget"));
            let names: Vec<String> = names.collect();
            shared.store(Arc::new(status::Status {
                quarantined: Arc::new(services.into_iter().collect()),
                ..control.clone()
            }));
            let status = answer_of(published.clone());
            assert_eq!(status.state, State::Degraded);
            assert_eq!(status.quarantined, names);
            assert_eq!(status.reasons, reasons);
        }
    }
}
