//! Random clusters with real packets: generated over a fixed pool of pods, each table led to the next by its
//! difference, packets sent and refusals counted.
//!
//! `PORTOLAN_KERNEL_CLUSTERS` says how many (default: a taste), `PORTOLAN_SEED` where to begin. The way from
//! one table to the next is part of the test, so a failure is repeated with the same seed and number.

use anyhow::Result;
use lab::scenario;
use portolan_tests::cluster::{Generator, Space};
use portolan_tests::field::Field;
use portolan_tests::oracle::{Expected, outcome, outcome_after};
use portolan_tests::{number_from_env, packets, product};
use rand::seq::SliceRandom;

const NODES: u8 = 2;
const PODS: u8 = 6;
const PORTS: [u16; 3] = [8080, 8443, 53];
/// Packets of a cluster that are sent, drawn from all that are interesting.
const PACKETS: usize = 40;
/// Of these, packets of each kind without an answer.
const SILENT: usize = 3;

#[scenario(Nft)]
fn real_packets_on_random_clusters_agree_with_the_model() -> Result<()> {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let clusters = number_from_env("PORTOLAN_KERNEL_CLUSTERS", 50);
    // One pod beyond the pool is never an endpoint.
    let client_pod = 2 + PODS;
    let field = Field::new(NODES, client_pod, &PORTS)?;
    let mut generator = Generator::in_space(seed, Space::real(NODES, PODS, PORTS.to_vec()));
    let first = generator.cluster();
    let mut installed = field.install_on(&first.nodes[0])?;
    let (mut balanced, mut kept, mut refused, mut dropped, mut passed) = (0, 0, 0, 0, 0);
    for number in 0..clusters {
        let cluster = generator.cluster();
        let node = &cluster.nodes[0];
        installed.replace(&product::contents(&cluster, node))?;
        let mut packets = packets::interesting(&cluster, node, client_pod);
        packets.shuffle(generator.rng());
        let expected = packets
            .into_iter()
            .map(|packet| (packet, outcome(&cluster, node, &packet)));
        let possible = expected.filter(|(packet, expected)| field.can_send(node, packet, expected));
        // Waiting for nothing takes its time, and most packets that pass go nowhere.
        let (mut passing, mut dropping) = (0, 0);
        let worth_it = possible.filter(|(_, expected)| {
            passing += usize::from(*expected == Expected::NotOurs);
            dropping += usize::from(*expected == Expected::Dropped);
            match expected {
                Expected::NotOurs => passing <= SILENT,
                Expected::Dropped => dropping <= SILENT,
                _ => true,
            }
        });
        let mut chosen = Vec::new();
        for (packet, _) in worth_it.take(PACKETS) {
            let expected = outcome_after(&cluster, node, &chosen, &packet);
            match &expected {
                Expected::Balanced(_) => balanced += 1,
                Expected::Refused => refused += 1,
                Expected::Dropped => dropped += 1,
                Expected::NotOurs => passed += 1,
            }
            kept += u64::from(expected != outcome(&cluster, node, &packet));
            match field.check_once(node, &packet, &expected) {
                Ok(to) => chosen.extend(to.map(|to| (packet, to))),
                Err(error) => panic!(
                    "{}PORTOLAN_SEED={seed}, cluster {number}: {packet}\n  expected: {expected:?}\n  got: {error:#}",
                    cluster.to_manifests()
                ),
            }
        }
    }
    println!(
        "{clusters} clusters from seed {seed}: {balanced} balanced, {kept} of them by affinity, {refused} refused, \
         {dropped} dropped, {passed} passed"
    );
    for (what, count) in [
        ("balanced", balanced),
        ("balanced by affinity", 4 * kept),
        ("refused", refused),
        ("dropped", dropped),
        ("passed", passed),
    ] {
        assert!(count >= clusters, "only {count} packets were {what}");
    }
    Ok(())
}
