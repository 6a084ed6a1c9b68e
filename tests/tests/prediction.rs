//! What `portolan trace` decides, against the reference model: random clusters, and every packet worth trying on each.
//!
//! `PORTOLAN_CLUSTERS` says how many clusters (default: a taste), `PORTOLAN_SEED` where to begin.

use portolan_tests::cluster::{Cluster, Generator, Node, Space, Transport};
use portolan_tests::oracle::{Expected, Origin, Packet, Protocol, outcome};
use portolan_tests::{in_parallel, number_from_env, packets, product};
use service_dataplane::predict::{self, Fate, Frontends, Surroundings, predict};

/// Outside the addresses of endpoints.
const CLIENT_POD: u8 = 200;

/// The packet in the product's terms; `None` for ICMP.
fn packet(node: &Node, packet: &Packet) -> Option<predict::Packet> {
    let Protocol::Transport(transport) = packet.protocol else {
        return None;
    };
    let from_node = packet.origin == Origin::Node;
    let interface = (!from_node).then(|| node.interface_of(packet.source).as_str().into());
    Some(predict::Packet {
        from_node,
        source: packet.source,
        interface,
        destination: packet.destination,
        protocol: match transport {
            Transport::Tcp => net_types::Protocol::Tcp,
            Transport::Udp => net_types::Protocol::Udp,
            Transport::Sctp => net_types::Protocol::Sctp,
        },
        port: packet.port,
    })
}

fn expected(fate: &Fate) -> Expected {
    match fate {
        Fate::Untouched => Expected::NotOurs,
        Fate::Refused(_) => Expected::Refused,
        Fate::Dropped(_) => Expected::Dropped,
        Fate::Balanced(targets) => {
            let targets = targets.iter().map(|target| {
                let to = (target.backend.address, target.backend.port).into();
                (to, target.masquerade.is_some())
            });
            Expected::Balanced(targets.collect())
        }
    }
}

/// Compares all packets on one node, and returns their number.
fn compare(cluster: &Cluster, node: &Node, seed: u64) -> usize {
    let (index, facts) = (product::index(cluster), product::facts(cluster, node));
    let plans = index
        .service_names()
        .filter_map(|name| index.plan(name, &facts));
    let frontends = Frontends::of(plans.map(|plan| plan.intent.into()));
    let around = Surroundings {
        facts: &facts,
        own_addresses: &node.interfaces,
    };
    let mut compared = 0;
    for sent in packets::interesting(cluster, node, CLIENT_POD) {
        let Some(packet) = packet(node, &sent) else {
            continue;
        };
        let prediction = predict(&frontends, around, &packet, |_| None);
        let (predicted, wanted) = (expected(&prediction.fate), outcome(cluster, node, &sent));
        assert_eq!(
            predicted,
            wanted,
            "{}PORTOLAN_SEED={seed}, on {}: {sent}\n{prediction:?}",
            cluster.to_manifests(),
            node.name
        );
        compared += 1;
    }
    compared
}

#[test]
fn predictions_on_random_clusters_agree_with_the_model() {
    let first = number_from_env("PORTOLAN_SEED", 1);
    let clusters = number_from_env("PORTOLAN_CLUSTERS", 300);
    let compared = in_parallel(first..first + clusters, |seed| {
        let cluster = Generator::in_space(seed, Space::anything()).cluster();
        let nodes = cluster.nodes.iter();
        nodes
            .map(|node| compare(&cluster, node, seed))
            .sum::<usize>()
    });
    let compared: usize = compared.iter().sum();
    println!("{compared} packets on {clusters} clusters from seed {first}");
    assert!(compared as u64 > 100 * clusters, "only {compared} packets");
}
