//! What happens to the daemon and to its tables, and what connections notice of it: nothing.
//!
//! `PORTOLAN_KILLS` and `PORTOLAN_FLUSHES` make it fewer than a hundred, for slow machines, or more, for `cargo xtask test
//! --nightly`; so does `PORTOLAN_VANDALISM` for foreign changes of a table without owner.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{scenario, wait_until};
use netlink::{Connection, NetlinkFamily, Writer, flag};
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

/// Adds a table with a chain and user data, all named by bytes that are no UTF-8: the kernel takes any, nft writes none.
fn add_table_of_any_bytes() -> Result<()> {
    const BATCH: [u16; 2] = [0x10, 0x11];
    /// Subsystem nftables.
    const NFTABLES: u16 = 10;
    const NEW_TABLE: u16 = NFTABLES << 8;
    const NEW_CHAIN: u16 = NEW_TABLE | 3;
    const IPV4: [u8; 4] = [2, 0, 0, 0];
    const ODD: &[u8] = b"\xff\xfeodd\0";
    let mut connection = Connection::open(NetlinkFamily::Netfilter)?;
    let mut number = connection.next_sequence();
    let mut out = Writer::default();
    let mut message = |kind, flags, header: [u8; 4], fill: &dyn Fn(&mut Writer)| {
        let start = out.start(kind, flags, number, &header);
        fill(&mut out);
        out.finish(start);
        number += 1;
    };
    let limit = [0, 0, 0, NFTABLES.to_be_bytes()[1]];
    let add = flag::CREATE;
    message(BATCH[0], 0, limit, &|_| {});
    message(NEW_TABLE, add, IPV4, &|out| {
        out.put(1, ODD);
        out.put(6, b"\x00\x06\xff\xfe\xfd\xfc");
    });
    message(NEW_CHAIN, add | flag::ACK, IPV4, &|out| {
        out.put(1, ODD);
        out.put(3, ODD);
        out.put(12, b"\xff\xff\xff");
    });
    message(BATCH[1], 0, limit, &|_| {});
    let mut refused = None;
    let last = number - 2;
    connection.send_batch(&out.bytes, last, |at, answer| {
        refused = Some((at, answer.errno));
        false
    })?;
    ensure!(refused.is_none(), "{refused:?}");
    Ok(())
}

#[scenario(Nft)]
fn a_foreign_table_of_any_bytes_stops_neither_start_nor_service() -> Result<()> {
    let stage = Stage::new()?;
    stage.node.run(add_table_of_any_bytes)??;
    let daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    daemon.kill()?;
    stage.add(&stage.web, 0..2)?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 2)?;
    // A foreign change, so that the tables are read again.
    let _ = stage.node.nft(&["delete", "table", "ip", "portolan"]);
    stage.add(&stage.web, 0..3)?;
    stage.wait_for_backends(&stage.web, 3)
}

/// What the daemon holds, and the processor time that it has used.
#[derive(Debug)]
struct Usage {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
    ticks: u64,
}

fn usage(pid: i32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no such line")?.parse()?)
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name in brackets: the state is field 3, user and system time are 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let times = fields.split(' ').skip(11).take(2);
    Ok(Usage {
        resident_kib: field("VmRSS:")?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: field("Threads:")?,
        ticks: times.map(str::parse::<u64>).sum::<Result<u64, _>>()?,
    })
}

/// Services that come, change and go for `PORTOLAN_SOAK_SECONDS`, an hour in `cargo xtask test --nightly`.
#[scenario(Nft)]
fn churn_leaves_memory_descriptors_and_cpu_flat() -> Result<()> {
    let part = Duration::from_secs(number_from_env("PORTOLAN_SOAK_SECONDS", 4)) / 4;
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let (mut round, mut parts) = (0_usize, Vec::new());
    for _ in 0..4 {
        let (start, before, first) = (Instant::now(), usage(daemon.pid())?, round);
        while start.elapsed() < part || round < first + 10 {
            let number = u8::try_from(round % 40)?;
            let churning = service(&format!("churning-{number}"), 100 + number);
            let file = format!("{}.yaml", churning.name);
            match round % 3 {
                2 => stage.manifests.write_objects(&file, &[])?,
                _ => stage.add(&churning, 0..round % 4 + 1)?,
            }
            let outcome = stage.connect(&stage.client, &stage.web)?;
            ensure!(outcome.server().is_some(), "round {round}: {outcome:?}");
            round += 1;
        }
        let after = usage(daemon.pid())?;
        let rounds = u64::try_from(round - first)?;
        let ticks = (after.ticks - before.ticks) * 1_000 / rounds;
        parts.push((after, ticks));
    }
    println!("{round} rounds; usage, and ticks in 1,000 rounds: {parts:#?}");
    // The first part warms up.
    let [_, (early, early_ticks), _, (late, late_ticks)] = parts.as_slice() else {
        anyhow::bail!("four parts")
    };
    ensure!(late.resident_kib <= early.resident_kib * 6 / 5 + 4096);
    ensure!(late.descriptors <= early.descriptors + 4 && late.threads <= early.threads + 2);
    ensure!(*late_ticks <= early_ticks * 2 + 1_000);
    Ok(())
}
