use net_types::PerFamily;
use nft::{Backend, Fake};

use super::*;
use crate::plan::plan;
use crate::samples::cluster;

fn made(nodes: u8, options: RuleOptions) -> PerFamily<Option<TableContents>> {
    let cluster = cluster(nodes);
    let plan = plan(cluster.facts(), cluster.nodes.iter());
    PerFamily::from_fn(|family| table(&cluster.config, options, &plan, family))
}

#[test]
fn difference_of_any_two_tables_leads_to_the_second() {
    let all = [Filter::Off, Filter::Monitor, Filter::Enforce]
        .into_iter()
        .flat_map(|filter| {
            [true, false].map(|masquerade| RuleOptions {
                masquerade,
                filter,
                probe_port: masquerade.then_some(8473),
            })
        })
        .flat_map(|options| [1, 2, 9].map(|nodes| made(nodes, options)));
    let mut fake = Fake::new();
    for tables in all {
        for wanted in tables.values().flatten() {
            let family = wanted.table.family;
            let found = fake.list(family).unwrap();
            let transaction = nft::diff::diff(found.as_ref(), wanted);
            fake.commit(&transaction).unwrap();
            assert_eq!(fake.list(family).unwrap().as_ref(), Some(wanted));
        }
    }
}

#[test]
fn segments_are_clamped_while_further_headers_are_added() {
    let mut cluster = cluster(2);
    let chains = |cluster: &crate::samples::Cluster| {
        let plan = plan(cluster.facts(), cluster.nodes.iter());
        let options = RuleOptions::default();
        let table = table(&cluster.config, options, &plan, Family::Ip6).unwrap();
        table.chains.get("clamp").cloned()
    };
    assert_eq!(chains(&cluster), None);
    cluster.carriers.overhead = PerFamily::new(60, 80);
    let chain = chains(&cluster).unwrap();
    assert_eq!(chain.hook, Some(Hook::FilterForward));
    let name = "flannel-v6.1".into();
    let expected = [Statement::OutputInterface { name }, Statement::ClampMaxseg];
    assert_eq!(chain.rules, [Rule::from(expected.to_vec())]);
}

#[test]
fn packets_to_other_pods_leave_by_a_sealed_tunnel_alone() {
    let mut cluster = cluster(3);
    let made = |cluster: &crate::samples::Cluster| {
        let plan = plan(cluster.facts(), cluster.nodes.iter());
        table(&cluster.config, RuleOptions::default(), &plan, Family::Ip).unwrap()
    };
    let open = made(&cluster);
    assert!(!open.chains.contains_key("sealed"));
    cluster.carriers.sealed = true;
    let sealed = made(&cluster);
    let chain = &sealed.chains["sealed"];
    assert_eq!(chain.hook, Some(Hook::FilterPostrouting));
    let last = Rule::from(refuse(Filter::Enforce));
    assert_eq!(chain.rules.last(), Some(&last));
    // Back and forth, as the kernel allows it.
    let mut fake = Fake::new();
    for wanted in [&sealed, &open, &sealed] {
        let found = fake.list(Family::Ip).unwrap();
        let transaction = nft::diff::diff(found.as_ref(), wanted);
        fake.commit(&transaction).unwrap();
        assert_eq!(fake.list(Family::Ip).unwrap().as_ref(), Some(wanted));
    }
}

#[test]
fn a_sealed_family_without_a_tunnel_has_a_barrier() {
    let mut cluster = cluster(3);
    let made = |cluster: &crate::samples::Cluster| {
        let plan = plan(cluster.facts(), cluster.nodes.iter());
        PerFamily::from_fn(|family| table(&cluster.config, RuleOptions::default(), &plan, family))
    };
    // Room for IPv4, and not for the least that IPv6 asks for.
    cluster.carriers.overhead = PerFamily::new(260, 260);
    assert!(made(&cluster)[Family::Ip6].is_none());
    cluster.carriers.sealed = true;
    let tables = made(&cluster);
    let barred = tables[Family::Ip6].as_ref().unwrap();
    assert_eq!(barred.chains.keys().collect::<Vec<_>>(), ["sealed"]);
    let chain = &barred.chains["sealed"];
    assert_eq!(chain.hook, Some(Hook::FilterPostrouting));
    assert_eq!(
        chain.rules.last(),
        Some(&Rule::from(refuse(Filter::Enforce)))
    );
    assert!(!barred.elements["own_pods"].is_empty());
    assert!(
        tables[Family::Ip]
            .as_ref()
            .unwrap()
            .sets
            .contains_key("peers")
    );
    // A node without pods of the family has none to let pass.
    for node in &mut cluster.nodes {
        node.pod_cidrs.retain(|range| range.addr().is_ipv4());
    }
    let tables = made(&cluster);
    let barred = tables[Family::Ip6].as_ref().unwrap();
    assert!(barred.elements.get("own_pods").is_none_or(Vec::is_empty));
    assert!(barred.chains.contains_key("sealed"));
}

#[test]
fn a_peer_may_send_from_its_pods_and_from_its_own_addresses() {
    let tables = made(
        3,
        RuleOptions {
            masquerade: false,
            filter: Filter::Enforce,
            probe_port: None,
        },
    );
    let elements = &tables[Family::Ip].as_ref().unwrap().elements;
    assert_eq!(elements["sources_24"].len(), 2);
    assert_eq!(elements["sources_32"].len(), 2);
    assert_eq!(elements["peers"].len(), 2);
}

#[test]
fn pods_are_counted_only_where_no_byte_distinguishes_them() {
    let options = RuleOptions::default();
    for (length, counts) in [(24, false), (26, true)] {
        let mut cluster = cluster(3);
        for (number, node) in (0..).zip(&mut cluster.nodes) {
            let range = format!("10.244.{number}.0/{length}");
            node.pod_cidrs = [range.parse().unwrap()].into_iter().collect();
        }
        let plan = plan(cluster.facts(), cluster.nodes.iter());
        let table = table(&cluster.config, options, &plan, Family::Ip).unwrap();
        let tunnel = plan.tunnels[Family::Ip].as_ref().unwrap();
        let kind = &table.sets[&source_set(length)].kind;
        assert_eq!(*kind == SetKind::Counters, counts, "{length}");
        for (set, key) in tunnel.peers.iter().flat_map(|peer| arrivals(tunnel, peer)) {
            assert_eq!(table.sets[&set].kind, SetKind::Counters);
            assert!(table.elements[&set].contains(&Element::member(key)));
        }
    }
}
