//! `/v1/checks`: what on this node can keep Service traffic from its endpoints.

use net_types::Family;

use super::Origin;
use super::documents::{NodeCheck, NodeChecks};
use super::knowledge::Knowledge;
use super::status::clean;
use crate::node_checks::{self, Known};

pub(super) fn answer(known: &Knowledge) -> NodeChecks {
    let published = &known.sources.published;
    let catalog = known.catalog.borrow();
    let facts = catalog.facts();
    let own = facts.iter().flat_map(|facts| &facts.own_addresses);
    let services = catalog.services();
    let cluster_ips = services.flat_map(|service| {
        let addresses = service.cluster_ips.iter();
        addresses.map(|address| (*address, service.name.clone()))
    });
    let checks = node_checks::examine(&Known {
        has_services: published.status.is_some(),
        families: own.map(|address| Family::of(*address)).collect(),
        has_probes: known.sources.has_probes,
        cluster_ips: cluster_ips.collect(),
        fallbacks: published.fallbacks.load().to_vec(),
        alarm: published.alarm.load_full().map(|alarm| alarm.to_string()),
        suspects: published.failover.load().to_vec(),
        clock: match &known.sources.origin {
            Origin::ApiServer(client) => client.clock_difference(),
            Origin::Directory(_) => None,
        },
    });
    let lines = |lines: &[String]| lines.iter().map(|line| clean(line)).collect();
    NodeChecks {
        node: clean(&known.sources.node),
        overlay: published.overlay.is_some(),
        probes_off: published.overlay.is_some() && !known.sources.has_probes,
        checks: checks
            .iter()
            .map(|check| NodeCheck {
                check: check.name.to_owned(),
                faults: lines(&check.faults),
                notes: lines(&check.notes),
            })
            .collect(),
    }
}
