//! Portolan and kube-proxy on the same random clusters, with the same real packets.
//!
//! Needs the control plane's kube-proxies (`cargo xtask control-plane`, found by `PORTOLAN_CONTROL_PLANE`).
//! `PORTOLAN_PEER_CLUSTERS` says how many clusters the newest of them meets (default: a taste), `PORTOLAN_SEED`
//! where to begin. The way from one cluster to the next is part of the test, so a failure is repeated with the
//! same seed and number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use lab::{scenario, wait_until};
use portolan_tests::cluster::space::cluster_cidr;
use portolan_tests::cluster::{Cluster, Detect, Generator, NodePortAddresses, Space};
use portolan_tests::differential::{
    Arena, CLIENT_POD, Kind, KubeProxy, NODES, PODS, PORTS, Seen, differences, its_service_cidrs,
    kube_proxies, metrics,
};
use portolan_tests::oracle::{Expected, Packet, outcome};
use portolan_tests::{number_from_env, packets};
use rand::seq::SliceRandom;

/// Two labs and two daemons are load enough for one machine.
static ALONE: Mutex<()> = Mutex::new(());

const FOLLOWING: Duration = Duration::from_secs(60);
/// Clusters with the same nodes and flags, one after the other without a restart.
const RUN: u64 = 20;
/// Clusters among which every difference shows, the rarest by far most likely.
const MANY: u64 = 1000;
/// Packets of a cluster that are sent, drawn from all that are interesting.
const PACKETS: usize = 40;
/// Of these, packets that no rule touches.
const PASSING: usize = 8;
/// Those that each deliberate difference is about.
const DIFFERING: usize = 3;
/// Of these, packets without an answer.
const DROPPED: usize = 6;

#[scenario(KubeProxy, Nft, TableOwner)]
#[ignore = "needs kube-proxy"]
fn packets_agree_with_the_newest_kube_proxy() -> Result<()> {
    let kube_proxies = kube_proxies()?;
    let newest = kube_proxies.last().context("no kube-proxy")?;
    compare_with(
        newest,
        Kind::Fake,
        number_from_env("PORTOLAN_PEER_CLUSTERS", 20),
    )
}

#[scenario(ControlPlane, KubeProxy, Nft, TableOwner)]
#[ignore = "needs a control plane"]
fn packets_agree_with_kube_proxy_behind_a_real_api_server() -> Result<()> {
    let kube_proxies = kube_proxies()?;
    let newest = kube_proxies.last().context("no kube-proxy")?;
    compare_with(
        newest,
        Kind::Real,
        number_from_env("PORTOLAN_PEER_CLUSTERS", 20).div_ceil(10),
    )
}

#[scenario(KubeProxy, Nft, TableOwner)]
#[ignore = "needs older kube-proxies"]
fn packets_agree_with_older_kube_proxies() -> Result<()> {
    let kube_proxies = kube_proxies()?;
    let older = kube_proxies
        .split_last()
        .map_or(&[][..], |(_, older)| older);
    // One run of each, without a restart.
    for kube_proxy in older {
        compare_with(
            kube_proxy,
            Kind::Fake,
            number_from_env("PORTOLAN_PEER_CLUSTERS", 20)
                .div_ceil(15)
                .min(RUN),
        )?;
    }
    Ok(())
}

#[scenario(KubeProxy, Nft, TableOwner)]
#[ignore = "needs kube-proxy"]
fn service_cidr_changes_apply_at_once_unlike_kube_proxys() -> Result<()> {
    let kube_proxies = kube_proxies()?;
    let newest = kube_proxies.last().context("no kube-proxy")?;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut generator = Generator::in_space(1, Space::real(NODES, PODS, PORTS.to_vec()));
    let mut cluster = Cluster {
        nodes: generator.cluster().nodes,
        service_cidrs: its_service_cidrs(),
        ..Cluster::default()
    };
    cluster.nodes[0].zone = Some("zone-0".into());
    let mut arena = Arena::new(Kind::Fake)?;
    arena.start(newest, &cluster)?;
    cluster.service_cidrs.clear();
    arena.change_surroundings(&cluster)?;
    wait_until("Portolan to follow", FOLLOWING, || {
        arena
            .know_service_cidrs(&cluster)
            .is_ok_and(|(_, ours)| ours)
    })?;
    let (theirs, ours) = arena.know_service_cidrs(&cluster)?;
    assert!(
        !theirs && ours,
        "kube-proxy follows: strike it from the list"
    );
    // Leads to a full sync.
    cluster.nodes[0].zone = Some("zone-1".into());
    arena.change_surroundings(&cluster)?;
    wait_until("kube-proxy to follow", FOLLOWING, || {
        arena
            .know_service_cidrs(&cluster)
            .is_ok_and(|(theirs, ours)| theirs && ours)
    })
}

#[scenario(KubeProxy, Nft, TableOwner)]
#[ignore = "needs kube-proxy"]
fn scrape_has_kube_proxys_names_types_labels_and_bounds() -> Result<()> {
    let kube_proxies = kube_proxies()?;
    let newest = kube_proxies.last().context("no kube-proxy")?;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut generator = Generator::in_space(1, Space::real(NODES, PODS, PORTS.to_vec()));
    let mut cluster = generator.cluster();
    as_both_understand(&mut cluster);
    cluster.settings.detect = detector(0);
    let mut arena = Arena::new(Kind::Fake)?;
    arena.start(newest, &cluster)?;
    arena.switch_to(&cluster)?;
    let (theirs, ours) = arena.metrics()?;
    let missing = metrics::missing(&theirs, &ours)?;
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(ours.contains("\nkubeproxy_sync_proxy_rules_duration_seconds_count"));
    Ok(())
}

fn compare_with(kube_proxy: &KubeProxy, kind: Kind, clusters: u64) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let mut generator = Generator::in_space(seed, Space::real(NODES, PODS, PORTS.to_vec()));
    let mut arena = Arena::new(kind)?;
    let mut first = Cluster::default();
    let mut seen = Seen::default();
    for number in 0..clusters {
        let mut cluster = generator.cluster();
        while kind == Kind::Real && shares_a_node_port(&cluster) {
            cluster = generator.cluster();
        }
        as_both_understand(&mut cluster);
        if kube_proxy.minor < 37 {
            as_older_ones_understand(&mut cluster);
        }
        if kind == Kind::Real {
            cluster.service_cidrs = its_service_cidrs();
        }
        if number % RUN == 0 {
            first = cluster.clone();
            first.settings.detect = detector(number / RUN);
            arena.start(kube_proxy, &first)?;
        }
        cluster.nodes.clone_from(&first.nodes);
        cluster.settings.clone_from(&first.settings);
        cluster.service_cidrs.clone_from(&first.service_cidrs);
        if kube_proxy.minor < 36 {
            name_each_endpoint_once(&mut cluster);
        }
        let packets = drawn(&mut generator, &arena, kube_proxy.minor, &cluster);
        let compared = arena
            .switch_to(&cluster)
            .and_then(|()| arena.compare(&cluster, &cluster.nodes[0], &packets));
        seen += compared.with_context(|| {
            format!(
                "{}kube-proxy 1.{}, PORTOLAN_SEED={seed}, cluster {number}",
                cluster.to_manifests(),
                kube_proxy.minor
            )
        })?;
    }
    println!(
        "{clusters} clusters from seed {seed} beside kube-proxy 1.{}: {seen:?}",
        kube_proxy.minor
    );
    for (what, count) in [
        ("answered", seen.answered),
        ("refused", seen.refused),
        ("lost", seen.lost),
    ] {
        assert!(count as u64 >= clusters, "only {count} packets were {what}");
    }
    // Each side keeps a client at an endpoint that it draws: in a few clusters they may always have drawn the same.
    if clusters >= RUN {
        assert!(seen.kept > 0, "no packet was kept at an endpoint");
    }
    // A difference that has disappeared must be removed from the list.
    if clusters >= MANY {
        let shown = |name: &&str| seen.differing.contains_key(*name);
        let not_shown: Vec<_> = differences::shown_by_chance(kube_proxy.minor)
            .filter(|name| !shown(name))
            .collect();
        assert!(not_shown.is_empty(), "{not_shown:?} did not show");
    }
    Ok(())
}

/// How the programs of a run recognize local pods: each way in turn.
fn detector(run: u64) -> Detect {
    match run % 9 {
        0 => Detect::NodeCidr,
        1 => Detect::ClusterCidr([true, false].map(cluster_cidr).to_vec()),
        2 => Detect::InterfacePrefix("pod".into()),
        3 => Detect::ClusterCidr(vec![cluster_cidr(true)]),
        4 => Detect::Interface("eth0".into()),
        5 => Detect::ClusterCidr(Vec::new()),
        6 => Detect::Interface("pod3".into()),
        7 => Detect::ClusterCidr(vec![cluster_cidr(false)]),
        _ => Detect::InterfacePrefix("eth".into()),
    }
}

/// Keeps the settings that both programs have: kube-proxy has none for which external addresses are allowed, nor for Services of
/// another proxy.
fn as_both_understand(cluster: &mut Cluster) {
    cluster.settings.allowed_external_ips = Some(everywhere());
    cluster.settings.service_proxy_name = None;
}

/// What kube-proxy serves: all external addresses.
fn everywhere() -> Vec<IpNet> {
    vec![IpNet::V4(Default::default()), IpNet::V6(Default::default())]
}

/// Before 1.37, either the primary address or ranges.
fn as_older_ones_understand(cluster: &mut Cluster) {
    let primary = NodePortAddresses::Primary;
    let list = &mut cluster.settings.nodeport_addresses;
    if list.contains(&primary) {
        *list = vec![primary];
    }
}

/// Whether two Services have one node port, if only with different protocols, or two ports of one: a real API server gives
/// a number to one port of one Service, whatever its protocols.
fn shares_a_node_port(cluster: &Cluster) -> bool {
    let mut owners = BTreeMap::new();
    cluster.services.iter().enumerate().any(|(index, service)| {
        let mut ports = service.ports.iter().filter(|port| port.node_port != 0);
        ports.any(|port| {
            let owner = (index, port.port);
            *owners.entry(port.node_port).or_insert(owner) != owner
        })
    })
}

/// Before 1.36, which of two entries for one endpoint counted was left to chance: the first that was met, in a Go map
/// of slices. Since then it is the one that does not terminate, as with Portolan.
fn name_each_endpoint_once(cluster: &mut Cluster) {
    let mut known = BTreeSet::new();
    for slice in &mut cluster.slices {
        let owner = (slice.namespace.clone(), slice.service.clone());
        slice.endpoints.retain(|endpoint| {
            let address = endpoint.addresses.first().cloned();
            known.insert((owner.clone(), address))
        });
    }
}

/// Some of the packets worth trying that the labs can carry.
fn drawn(generator: &mut Generator, arena: &Arena, minor: u32, cluster: &Cluster) -> Vec<Packet> {
    let node = &cluster.nodes[0];
    let all = packets::interesting(cluster, node, CLIENT_POD);
    let mut packets = arena.sendable(cluster, node, all);
    packets.shuffle(generator.rng());
    let (mut passing, mut dropped) = (0, 0);
    let mut differing: BTreeMap<&str, usize> = BTreeMap::new();
    packets.retain(|packet| {
        let (count, most) = match differences::about(minor, cluster, node, packet) {
            Some(name) => (differing.entry(name).or_default(), DIFFERING),
            None => match outcome(cluster, node, packet) {
                Expected::NotOurs => (&mut passing, PASSING),
                Expected::Dropped => (&mut dropped, DROPPED),
                _ => return true,
            },
        };
        *count += 1;
        *count <= most
    });
    // What differs comes first, so that every difference is met.
    packets.sort_by_cached_key(|packet| differences::about(minor, cluster, node, packet).is_none());
    packets.truncate(PACKETS);
    packets
}
