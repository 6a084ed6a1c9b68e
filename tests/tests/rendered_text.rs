//! What `portolan render` prints, loaded by nft into a fresh namespace, is what we write over netlink; and what nft
//! lists of that loads again.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Capability, Namespace, wait_for};
use nft::{Backend, Family, Kernel, KernelConfig, TableContents, Transaction};
use portolan_tests::cluster::Generator;
use portolan_tests::exceptions::{self, cannot_load_protocols_in_intervals};
use portolan_tests::stage::PATIENCE;
use portolan_tests::{number_from_env, product};
use service_dataplane::{Dataplane, Update, layout};

fn kernel(owner: bool) -> Result<Kernel> {
    let table = layout::TABLE.into();
    Ok(Kernel::open(KernelConfig { table, owner })?)
}

fn held() -> Result<[Option<TableContents>; 2]> {
    let mut kernel = kernel(false)?;
    Ok([kernel.list(Family::Ip)?, kernel.list(Family::Ip6)?])
}

/// Loads text into this thread's network namespace, which is a fresh one.
fn load(text: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let output = Command::new("nft").arg("-f").arg(file.path()).output()?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn listing() -> Result<String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output()?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn text_netlink_and_the_listing_of_either_make_the_same_tables() -> Result<()> {
    if !lab::require(&[Capability::Nft]) {
        return Ok(());
    }
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
        let netlink = Namespace::new("netlink")?;
        let (by_netlink, listing) = netlink.run(move || {
            let mut transaction = Transaction::new();
            for table in &tables {
                transaction
                    .operations
                    .extend(nft::diff::diff(None, table).operations);
            }
            kernel(false)?.commit(&transaction)?;
            anyhow::Ok((held()?, listing()?))
        })??;
        ensure!(
            by_netlink == wanted,
            "PORTOLAN_SEED={seed}: netlink makes another table"
        );
        if is_refused {
            continue;
        }
        let by_text = Namespace::new("text")?.run(move || load(&text).and_then(|()| held()))??;
        ensure!(
            by_text == wanted,
            "PORTOLAN_SEED={seed}: text makes another table"
        );
        let again = Namespace::new("listing")?
            .run(move || load(&listing).and_then(|()| held()))?
            .with_context(|| format!("PORTOLAN_SEED={seed}: nft's own listing"))?;
        ensure!(
            again == wanted,
            "PORTOLAN_SEED={seed}: the listing makes another table"
        );
    }
    Ok(())
}

#[test]
fn a_restart_with_nothing_changed_sends_nothing_but_the_adoption_of_owned_tables() -> Result<()> {
    if !lab::require(&[Capability::Nft]) {
        return Ok(());
    }
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
            let mut first = Dataplane::new(kernel(owner)?, facts.clone());
            first.commit(updates.clone())?;
            drop(first);
            let mut second = Dataplane::new(kernel(owner)?, facts.clone());
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
            let wanted = second.ledger().contents(&facts).map(Some);
            ensure!(
                held()? == wanted,
                "PORTOLAN_SEED={seed}, owner {owner}: another table"
            );
            Ok(())
        })??;
    }
    Ok(())
}
