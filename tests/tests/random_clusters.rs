//! Random clusters: the rendered table against the reference model, every packet, every slot.
//!
//! `PORTOLAN_CLUSTERS` says how many (default: a taste), `PORTOLAN_SEED` where to begin. Cluster number i
//! comes from seed + i, so the seed a failure prints, with one cluster, is that cluster.

use nft::{Bytes, Data, Element, Hook, Statement, Verdict};
use portolan_tests::cluster::Generator;
use portolan_tests::judge::compare;
use portolan_tests::{in_parallel, number_from_env, product};
use rand::seq::IndexedRandom;

#[test]
fn random_clusters_agree_with_the_reference_model() {
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

/// Established packets meet none of our rules, and nothing that other tables forbid is allowed by us.
#[test]
fn tables_have_nat_chains_only_and_accept_nothing() {
    for seed in 1..50 {
        let cluster = Generator::new(seed).cluster();
        for table in product::contents(&cluster, &cluster.nodes[0]) {
            for chain in table.chains.values() {
                assert_ne!(chain.hook, Some(Hook::Unknown), "{}", chain.name);
                let accepts = Statement::Verdict(Verdict::Accept);
                let mut rules = chain.rules.iter();
                assert!(rules.all(|rule| !rule.statements.contains(&accepts)));
            }
        }
    }
}

/// The test of the test. Slot 0 is left alone, because tables may hold it twice, and so are external addresses, which a
/// source range or the want of a detector may keep everyone from.
#[test]
fn one_cluster_ip_too_few_or_one_backend_misdirected_is_noticed() {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let noticed = in_parallel(seed..seed + 300, |seed| {
        let mut generator = Generator::new(seed);
        let cluster = generator.cluster();
        let node = &cluster.nodes[0];
        let mut tables = product::contents(&cluster, node);
        let mut places = Vec::new();
        for (family, table) in tables.iter().enumerate() {
            let cluster_ips = table.elements.get("cluster_ips");
            let cluster_ips = cluster_ips.map(Vec::as_slice).unwrap_or_default();
            let is_internal = |key: &Bytes| {
                let mut addresses = cluster_ips.iter().map(|ip| ip.key.as_slice());
                addresses.any(|address| key.as_slice().starts_with(address))
            };
            for (set, elements) in &table.elements {
                let matters = |e: &Element| match e.data {
                    Data::Value(_) => {
                        set.starts_with("backends")
                            && is_internal(&e.key)
                            && !e.key.as_slice().ends_with(&[0; 4])
                    }
                    _ => set == "cluster_ips",
                };
                let indices = (0..elements.len()).filter(|i| matters(&elements[*i]));
                places.extend(indices.map(|index| (family, set.clone(), index)));
            }
        }
        let (family, set, index) = places.choose(generator.rng())?;
        let elements = tables[*family].elements.get_mut(set)?;
        match &mut elements[*index].data {
            Data::Value(to) => {
                let mut wrong = to.as_slice().to_vec();
                wrong[1] ^= 1;
                *to = Bytes::from_slice(&wrong)?;
            }
            _ => drop(elements.remove(*index)),
        }
        let is_noticed = compare(&cluster, node, &tables).is_err();
        assert!(is_noticed, "PORTOLAN_SEED={seed}: element {index} of {set}");
        Some(())
    });
    let tried = noticed.into_iter().flatten().count();
    assert!(tried > 200, "only {tried} clusters had something to damage");
}
