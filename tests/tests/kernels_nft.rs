//! Every table we write, read by every nft that people use: each version lists it, and loads its own listing into an
//! empty namespace, which then holds the same tables. The overlay's filter is listed only: no nft loads that.
//!
//! `PORTOLAN_NFT` names the versions (`1.0.6=/path/to/nft,...`; `cargo xtask kernels` fills it with Debian's); without
//! it the installed one is the witness. `PORTOLAN_EVERY=N` reads one case in N, for slow machines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, scenario};
use nft::{Family, Rule, Statement, TableContents};
use portolan_tests::cluster::Generator;
use portolan_tests::exceptions::{cannot_load_protocols_in_intervals, kernel as kernel_name};
use portolan_tests::overlay::OverlayStage;
use portolan_tests::written::{Held, held, load, nft, write};
use portolan_tests::{case, number_from_env, product};
use service_dataplane::{guard, layout};

/// nft 1.0.6 lists the rule that learns affinity in an IPv6 table, and ends in an assertion of its own when it loads
/// that listing (`netlink_gen_expr: dreg < ctx->reg_low`).
fn loads(version: &str, tables: &[TableContents]) -> bool {
    let learns = |rule: &Rule| {
        rule.statements
            .iter()
            .any(|s| matches!(s, Statement::UpdateMap { .. }))
    };
    let wide = tables
        .iter()
        .filter(|table| table.table.family == Family::Ip6);
    version != "1.0.6"
        || !wide
            .flat_map(|table| table.chains.values())
            .any(|chain| chain.rules.iter().any(learns))
}

/// The inner source of a frame is bytes at an offset to nft, and these versions cannot read what they print of such a
/// key. Any other has to.
const WITHOUT_RAW_KEYS: [&str; 3] = ["1.0.6", "1.1.3", "1.1.7"];

/// A program `nft` and the version it is.
struct Reader {
    version: String,
    program: PathBuf,
    /// This kernel takes nothing from it that holds an interval set with a protocol in its key, as every table of Services
    /// does.
    is_refused: bool,
}

fn readers() -> Result<Vec<Reader>> {
    let named = std::env::var("PORTOLAN_NFT").unwrap_or_default();
    let mut readers = Vec::new();
    for reader in named.split(',').filter(|reader| !reader.is_empty()) {
        let (version, program) = reader
            .split_once('=')
            .context("PORTOLAN_NFT is VERSION=PATH,...")?;
        readers.push(Reader::new(version, program)?);
    }
    if readers.is_empty() {
        // `nftables v1.0.6 (Lester Gooch #5)`
        let told = nft(Path::new("nft"), &["--version"])?;
        let version = told
            .split_whitespace()
            .find_map(|word| word.strip_prefix('v'));
        readers.push(Reader::new(
            version.context("nft tells no version")?,
            "nft",
        )?);
    }
    Ok(readers)
}

/// Writes the tables over netlink, has each version list them, and load its listing.
fn check(readers: &[Reader], table: &'static str, tables: &[TableContents; 2]) -> Result<()> {
    let written = Namespace::new("written")?;
    let wanted = tables.clone();
    let by_netlink = written.run(move || write(table, &wanted))??;
    ensure!(
        by_netlink == tables.clone().map(Some),
        "the kernel holds another table"
    );
    for reader in readers {
        let listing = reader.list(&written)?;
        if reader.is_refused {
            println!(
                "EXCEPTION: nft {} lists every table but can load none on {}, which refuses its step for one-byte fields",
                reader.version,
                kernel_name()?
            );
            continue;
        }
        if !loads(&reader.version, tables) {
            println!(
                "EXCEPTION: nft {} lists IPv6 affinity but cannot load it",
                reader.version
            );
            continue;
        }
        reader.load(listing, table, &by_netlink)?;
    }
    Ok(())
}

impl Reader {
    fn new(version: &str, program: &str) -> Result<Reader> {
        let program = PathBuf::from(program);
        Ok(Reader {
            version: version.into(),
            is_refused: cannot_load_protocols_in_intervals(&program)?,
            program,
        })
    }

    /// All that is in a network namespace.
    fn list(&self, namespace: &Namespace) -> Result<String> {
        let program = self.program.clone();
        let listing = namespace.run(move || nft(&program, &["list", "ruleset"]))?;
        listing.with_context(|| format!("nft {} cannot list", self.version))
    }

    /// Loads a listing into an empty namespace, which must hold the same table then.
    fn load(&self, listing: String, table: &'static str, wanted: &Held) -> Result<()> {
        let program = self.program.clone();
        let loaded = Namespace::new("again")?.run(move || load(&program, &listing, table))?;
        let loaded =
            loaded.with_context(|| format!("nft {} cannot load its listing", self.version))?;
        for (loaded, wanted) in loaded.iter().zip(wanted) {
            let missing = wanted
                .as_ref()
                .map(|wanted| ::nft::diff::diff(loaded.as_ref(), wanted).operations);
            ensure!(
                loaded == wanted,
                "nft {}: its listing makes another table, which lacks {missing:?}",
                self.version
            );
        }
        Ok(())
    }
}

#[scenario(Nft)]
fn every_nft_lists_every_table_and_loads_its_listing() -> Result<()> {
    let readers = readers()?;
    let mut read = 0;
    let every = number_from_env("PORTOLAN_EVERY", 1) as usize;
    for case in case::all()?.into_iter().step_by(every) {
        let tables = product::contents(&case.cluster, &case.node);
        check(&readers, layout::TABLE, &tables).with_context(|| case.name.clone())?;
        read += 1;
    }
    let seed = number_from_env("PORTOLAN_SEED", 1);
    for seed in seed..seed + number_from_env("PORTOLAN_SEEDS", 3) {
        let cluster = Generator::new(seed).cluster();
        let tables = product::contents(&cluster, &cluster.nodes[0]);
        check(&readers, layout::TABLE, &tables).with_context(|| format!("PORTOLAN_SEED={seed}"))?;
        read += 1;
    }
    check(&readers, guard::TABLE, &Family::ALL.map(guard::contents)).context("the guard")?;
    let versions: Vec<&str> = readers
        .iter()
        .map(|reader| reader.version.as_str())
        .collect();
    println!("{read} clusters, read by nft {}", versions.join(", "));
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn every_nft_lists_the_table_of_the_overlay() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    // The listing of an owned table has flags that make whoever loads it the owner.
    let flags = ["--overlay-filter=enforce", "--ip-masq", "--no-table-owner"];
    let _daemons = stage.start_all(&flags)?;
    let node = stage.nodes[0].namespace();
    let by_netlink = node.run(|| held(vxlan_overlay::TABLE))??;
    ensure!(
        by_netlink.iter().all(Option::is_some),
        "the overlay has no table"
    );
    for reader in readers()? {
        let listing = reader.list(node)?;
        ensure!(
            listing.matches(vxlan_overlay::TABLE).count() >= 2,
            "{listing}"
        );
        let loaded = reader.load(listing, vxlan_overlay::TABLE, &by_netlink);
        match (loaded, WITHOUT_RAW_KEYS.contains(&&*reader.version)) {
            (Err(_), true) => println!(
                "EXCEPTION: nft {} lists the filter of the overlay but cannot load it",
                reader.version
            ),
            (loaded, _) => loaded?,
        }
    }
    Ok(())
}
