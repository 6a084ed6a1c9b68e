//! Every case folder with real packets: the table committed to the kernel of a node, connections from pods,
//! nodes and a client outside, and what echo servers saw.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use lab::scenario;
use portolan_tests::case::{self, Case};
use portolan_tests::field::Field;
use portolan_tests::oracle::{self, Expected, Packet};
use portolan_tests::{number_from_env, product};

#[scenario(Nft)]
fn every_case_holds_with_real_packets() -> Result<()> {
    let field = Field::new(2, 14, &[8080, 8081, 9091, 5353])?;
    let (mut sent, mut left_out) = (0, 0);
    // Every nth case only, for slow machines.
    let every = number_from_env("PORTOLAN_EVERY", 1) as usize;
    for case in case::all()?.into_iter().step_by(every) {
        let mut installed = field.install_on(&case.node)?;
        installed.replace(&product::contents_of_manifests(
            &case.manifests,
            &case.cluster,
            &case.node,
        ))?;
        for (packet, expected) in &case.packets {
            if !field.can_send(&case.node, packet, expected) {
                left_out += 1;
                continue;
            }
            // A backend of N is missed by 25 N connections once in 10^10 cases. With affinity, one is all there is.
            let all = !oracle::has_affinity(&case.cluster, &case.node, packet);
            let attempts = match expected {
                Expected::Balanced(backends) if all => 25 * backends.len(),
                _ => 1,
            };
            sent += 1;
            if let Err(error) = field.check(&case.node, packet, expected, attempts, all) {
                panic!(
                    "{}: {packet}\n  expected: {expected:?}\n  got: {error:#}",
                    case.name
                );
            }
        }
        for session in &case.sessions {
            sent += session.len();
            follow(&field, &case, session).with_context(|| case.name.clone())?;
        }
        installed.remove()?;
    }
    println!("{sent} packets of cases sent, {left_out} left out");
    assert!(
        every > 1 || sent > 3 * left_out,
        "{left_out} packets left out, {sent} sent"
    );
    Ok(())
}

/// Sends the packets of one client, again and again, and finds them all at the endpoint of the first.
fn follow(field: &Field, case: &Case, session: &[Packet]) -> Result<()> {
    let mut chosen = BTreeSet::new();
    for packet in session.iter().cycle().take(4 * session.len()) {
        let expected = oracle::outcome(&case.cluster, &case.node, packet);
        ensure!(
            field.can_send(&case.node, packet, &expected),
            "{packet}: cannot be sent"
        );
        let to = field.check_once(&case.node, packet, &expected);
        chosen.extend(to.with_context(|| packet.to_string())?);
        ensure!(chosen.len() == 1, "{packet}: went to {chosen:?}");
    }
    Ok(())
}

/// Pearson's statistic exceeds this for 19 degrees of freedom once in a million (tables of chi-square).
const CHI_SQUARE_19: f64 = 63.0;

#[scenario(Nft)]
fn connections_spread_evenly_over_the_endpoints() -> Result<()> {
    let case = case::all()?
        .into_iter()
        .find(|case| case.name == "more-than-sixteen-endpoints");
    let case = case.context("the case is gone")?;
    let field = Field::new(2, 14, &[8080])?;
    let mut installed = field.install_on(&case.node)?;
    installed.replace(&product::contents(&case.cluster, &case.node))?;
    for (packet, expected) in &case.packets {
        let Expected::Balanced(backends) = expected else {
            continue;
        };
        let counts = count(&field, packet, expected, 100 * backends.len())?;
        let each = 100.0;
        let statistic: f64 = counts
            .values()
            .map(|n| (*n as f64 - each).powi(2) / each)
            .sum();
        let missing = (backends.len() - counts.len()) as f64 * each;
        assert!(
            statistic + missing < CHI_SQUARE_19,
            "{packet}: {counts:?}, chi-square {statistic}"
        );
    }
    installed.remove()
}

fn count(
    field: &Field,
    packet: &Packet,
    expected: &Expected,
    attempts: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..attempts {
        let outcome = field.send(packet, expected)?;
        let server = outcome.server().with_context(|| format!("{outcome:?}"))?;
        *counts.entry(server.to_owned()).or_default() += 1;
    }
    Ok(counts)
}
