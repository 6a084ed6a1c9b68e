//! What `portolan render` prints, loaded by nft into a fresh namespace, is what we write over netlink; and what a restart
//! writes.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use lab::{Namespace, scenario, wait_for};
use portolan_tests::cluster::Generator;
use portolan_tests::exceptions::{self, cannot_load_protocols_in_intervals};
use portolan_tests::stage::PATIENCE;
use portolan_tests::written::{held, kernel, load, write};
use portolan_tests::{number_from_env, product};
use service_dataplane::{Dataplane, Update, layout};

#[scenario(Nft)]
fn rendered_text_and_netlink_make_the_same_tables() -> Result<()> {
    let is_refused = cannot_load_protocols_in_intervals(Path::new("nft"))?;
    if is_refused {
        let kernel = exceptions::kernel()?;
        println!("EXCEPTION: nft 1.0.6 can load no table of Services on {kernel}");
    }
    let seed = number_from_env("PORTOLAN_SEED", 1);
    for seed in seed..seed + number_from_env("PORTOLAN_SEEDS", 20) {
        let mut cluster = Generator::new(seed).cluster();
        // nft 1.0.6 lists the rules of IPv6 affinity but has too few registers to load them (netlink_linearize.c).
        for service in &mut cluster.services {
            if service.cluster_ips.iter().any(IpAddr::is_ipv6) {
                service.affinity = None;
            }
        }
        let tables = product::contents(&cluster, &cluster.nodes[0]);
        let wanted = tables.clone().map(Some);
        let text: String = tables.iter().map(nft::text::table).collect();
        let by_netlink =
            Namespace::new("netlink")?.run(move || write(layout::TABLE, &tables))??;
        ensure!(
            by_netlink == wanted,
            "PORTOLAN_SEED={seed}: netlink makes another table"
        );
        if is_refused {
            continue;
        }
        let by_text =
            Namespace::new("text")?.run(move || load(Path::new("nft"), &text, layout::TABLE))??;
        ensure!(
            by_text == wanted,
            "PORTOLAN_SEED={seed}: text makes another table"
        );
    }
    Ok(())
}

#[scenario(Nft)]
fn restart_without_changes_only_adopts_owned_tables() -> Result<()> {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let seeds = seed..seed + number_from_env("PORTOLAN_SEEDS", 20);
    for (seed, owner) in seeds.flat_map(|seed| [(seed, false), (seed, true)]) {
        let cluster = Generator::new(seed).cluster();
        let node = &cluster.nodes[0];
        let (index, facts) = (product::index(&cluster), product::facts(&cluster, node));
        let intents = index
            .service_names()
            .filter_map(|name| Some(index.plan(name, &facts)?.intent));
        let updates: Vec<Update> = intents.map(Update::from).collect();
        Namespace::new("restart")?.run(move || {
            let mut first = Dataplane::new(kernel(layout::TABLE, owner)?, facts.clone());
            first.commit(updates.clone())?;
            drop(first);
            let mut second = Dataplane::new(kernel(layout::TABLE, owner)?, facts.clone());
            // A child that another test has forked but not yet executed holds the first socket for a moment.
            if second.commit(updates).is_err() {
                wait_for("the first socket to be closed", PATIENCE, || {
                    Ok(second.repair()?)
                })?;
            }
            let sent = second.backend().sent();
            // A message for each table that can be owned.
            let owned = second.backend().table_flags().owner;
            let adoptions = if owned { 2 } else { 0 };
            ensure!(
                sent.messages == adoptions,
                "PORTOLAN_SEED={seed}, owner {owner}: {sent:?}"
            );
            let wanted = second.desired().map(Some);
            ensure!(
                held(layout::TABLE)? == wanted,
                "PORTOLAN_SEED={seed}, owner {owner}: another table"
            );
            Ok(())
        })??;
    }
    Ok(())
}
