//! `/v1/verify`: compares what this node should have in its tables with what the kernel has.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nft::diff::diff;
use nft::text::TransactionText;
use nft::{Backend, Family, Kernel, TableContents, Transaction};
use service_dataplane::layout;

use super::documents::Verification;
use super::knowledge::Knowledge;
use super::status::clean;

/// Attempts: a commit may come between the reading of the catalog and that of the kernel.
const ATTEMPTS: usize = 5;
/// Pause between them.
const PAUSE: Duration = Duration::from_millis(200);
/// Differences that are listed.
const LISTED: usize = 200;

pub(super) async fn answer(known: &Knowledge) -> Result<Verification> {
    let mut kernel = Kernel::open_to_read(layout::TABLE.into()).context("cannot open nftables")?;
    let mut found = compare(known, &mut kernel)?;
    for _ in 1..ATTEMPTS {
        if found.difference_count == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        known.update();
        found = compare(known, &mut kernel)?;
    }
    Ok(found)
}

fn compare(known: &Knowledge, kernel: &mut Kernel) -> Result<Verification> {
    let catalog = known.catalog.borrow();
    let facts = catalog.facts().context("the first sync is not complete")?;
    let intents = catalog.intents(|_| true).map(Arc::unwrap_or_clone);
    let wanted = service_dataplane::contents(facts, intents);
    let mut verification = Verification {
        node: clean(&known.sources.node),
        ..Verification::default()
    };
    for (family, wanted) in Family::ALL.into_iter().zip(&wanted) {
        let found = kernel.list(family)?;
        let steps = diff(found.as_ref(), wanted);
        verification.compared.push(extent(family, wanted));
        let lines = text(&steps, wanted);
        verification.difference_count += lines.len();
        let space = LISTED.saturating_sub(verification.differences.len());
        verification
            .differences
            .extend(lines.into_iter().take(space));
    }
    for (has_rules, how) in [
        (true, "by their last good rules, since they are quarantined"),
        (
            false,
            "without rules, since they are quarantined and have no earlier ones",
        ),
    ] {
        let all = catalog.quarantined().iter();
        let listed = all.filter(|(_, quarantined)| quarantined.last_good.is_some() == has_rules);
        let names: Vec<String> = listed
            .take(LISTED)
            .map(|(name, _)| name.to_string())
            .collect();
        if !names.is_empty() {
            let text = format!("{how}: {}", names.join(", "));
            verification.compared.push(clean(&text));
        }
    }
    Ok(verification)
}

/// `table ip portolan: 24 sets, 60 chains, 130 rules, 412 elements`
fn extent(family: Family, table: &TableContents) -> String {
    let rules: usize = table.chains.values().map(|chain| chain.rules.len()).sum();
    let elements: usize = table.elements.values().map(Vec::len).sum();
    let (sets, chains) = (table.sets.len(), table.chains.len());
    format!(
        "table {family} {}: {sets} sets, {chains} chains, {rules} rules, {elements} elements",
        layout::TABLE
    )
}

/// The steps that would repair the table, one line each.
fn text(steps: &Transaction, wanted: &TableContents) -> Vec<String> {
    let text = TransactionText {
        transaction: steps,
        declaration: |_, name: &str| wanted.sets.values().find(|set| set.name == name),
    };
    text.to_string().lines().map(str::to_owned).collect()
}
