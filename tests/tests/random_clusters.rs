//! Random clusters: the rendered table against the reference model, every packet, every slot.
//!
//! `PORTOLAN_CLUSTERS` says how many (default: a taste), `PORTOLAN_SEED` where to begin. Cluster number i
//! comes from seed + i, so the seed a failure prints, with one cluster, is that cluster.

use portolan_tests::cluster::Generator;
use portolan_tests::judge::compare;
use portolan_tests::{in_parallel, number_from_env, product};

#[test]
fn every_packet_of_a_random_cluster_fares_as_the_documentation_says() {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let clusters = number_from_env("PORTOLAN_CLUSTERS", 2_000);
    let packets = in_parallel(seed..seed + clusters, |seed| {
        let cluster = Generator::new(seed).cluster();
        // One node of each cluster, in turn: the others are the same code.
        let node = &cluster.nodes[seed as usize % cluster.nodes.len()];
        let tables = product::contents(&cluster, node);
        compare(&cluster, node, &tables).unwrap_or_else(|difference| {
            panic!("PORTOLAN_SEED={seed} PORTOLAN_CLUSTERS=1 {difference}")
        })
    });
    let packets: usize = packets.iter().sum();
    println!("{clusters} clusters from seed {seed}, {packets} packets, no difference");
    assert!(packets as u64 >= 20 * clusters, "only {packets} packets");
}
