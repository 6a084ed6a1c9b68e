//! What happens to the daemon and to its tables, and what connections notice of it: nothing.
//!
//! `PORTOLAN_KILLS` and `PORTOLAN_FLUSHES` make it fewer than a hundred, for slow machines, or more, for `cargo xtask test
//! --nightly`; so does `PORTOLAN_VANDALISM` for foreign changes of a table without owner.

use anyhow::{Result, ensure};
use lab::{scenario, wait_until};
use nft::Feature;
use portolan_tests::number_from_env;
use portolan_tests::stage::{PATIENCE, Stage, has, service};
use portolan_tests::traffic::Traffic;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[scenario(Nft)]
fn a_hundred_kills_under_churn_lose_no_connection() -> Result<()> {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    println!("PORTOLAN_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let stage = Stage::new()?;
    let churning = service("churning", 81);
    let mut daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let traffic = Traffic::start(&stage)?;
    for round in 0..number_from_env("PORTOLAN_KILLS", 100) as usize {
        let backends = round % 4 + 1;
        stage.add(&churning, 0..backends)?;
        // A random moment, counted in connections: now in the start, now in the commit, now at rest.
        traffic.goes_on(random.random_range(0..60))?;
        if round % 10 == 9 {
            stage.wait_until_ready(&daemon)?;
            stage.wait_for_backends(&churning, backends)?;
        }
        daemon.kill()?;
        daemon = stage.start(&[])?;
    }
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&churning, 4)?;
    traffic.lost_nothing()?;
    Ok(())
}

#[scenario(Nft)]
fn a_hundred_foreign_flushes_lose_no_connection() -> Result<()> {
    // The fallback without this feature is tested in kernels.rs.
    if !has(Feature::TablePersist)? {
        return Ok(());
    }
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let before = stage.tables()?;
    let traffic = Traffic::start(&stage)?;
    for _ in 0..number_from_env("PORTOLAN_FLUSHES", 100) {
        stage.node.nft(&["flush", "ruleset"])?;
        traffic.goes_on(5)?;
    }
    for vandalism in [
        &["delete", "table", "ip", "portolan"][..],
        &["flush", "table", "ip6", "portolan"],
    ] {
        ensure!(
            stage.node.nft(vandalism).is_err(),
            "somebody else could {vandalism:?}"
        );
    }
    ensure!(stage.tables()? == before, "the tables have changed");
    traffic.lost_nothing()?;
    Ok(())
}

#[scenario(Nft)]
fn a_table_without_owner_is_repaired_whatever_is_done_to_it() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&["--no-table-owner"])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let before = stage.tables()?;
    let listing = stage.node.nft(&["list", "table", "ip", "portolan"])?;
    ensure!(
        !listing.contains("flags owner"),
        "the table has an owner: {listing}"
    );
    const VANDALISM: [&str; 10] = [
        "flush ruleset",
        "delete table ip portolan",
        "flush chain ip portolan arriving",
        "flush set ip portolan cluster_ips",
        "delete element ip6 portolan frontends_4 { fd00:96::80 . tcp . 80 }",
        "add element ip portolan cluster_ips { 192.0.2.1 }",
        "add rule ip portolan arriving drop",
        "add chain ip portolan strange",
        "add set ip portolan strange { type ipv4_addr; }",
        "flush chain ip portolan prerouting; delete chain ip portolan prerouting",
    ];
    let acts = number_from_env("PORTOLAN_VANDALISM", 10) as usize;
    for vandalism in VANDALISM.into_iter().cycle().take(acts) {
        stage.node.nft(&[vandalism])?;
        let healed = || stage.tables().is_ok_and(|tables| tables == before);
        wait_until(&format!("repair after `{vandalism}`"), PATIENCE, healed)?;
        stage.wait_for_backends(&stage.web, 4)?;
    }
    Ok(())
}

#[scenario(Nft)]
fn rules_stay_when_the_daemon_is_asked_to_stop() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let traffic = Traffic::start(&stage)?;
    daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(daemon.wait(PATIENCE)?.success(), "it did not end well");
    traffic.goes_on(100)?;
    traffic.lost_nothing()?;
    Ok(())
}
