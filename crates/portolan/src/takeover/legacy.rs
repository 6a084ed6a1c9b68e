//! Chains in iptables' legacy variant, which only iptables' own programs can change.
//!
//! Parses the output of `iptables-save` and writes the input of `iptables-restore`: one restore per table, which the kernel
//! applies atomically. Rules of base chains that jump to removed chains are deleted by the exact text that the program
//! printed; otherwise only chain names are used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use nft::Family;

use super::owner::{ChainOwner, FORWARD, Removed};

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The kernel's list of legacy tables in this network namespace, which only root and group 0 can read, and the names of the
/// program: that of the legacy variant, and one that either variant may have.
const fn names_and_programs(family: Family) -> (&'static str, [&'static str; 2]) {
    match family {
        Family::Ip => (
            "/proc/thread-self/net/ip_tables_names",
            ["iptables-legacy", "iptables"],
        ),
        Family::Ip6 => (
            "/proc/thread-self/net/ip6_tables_names",
            ["ip6tables-legacy", "ip6tables"],
        ),
    }
}

/// Legacy tables of this network namespace, with the program for each. A table exists once it has been read, even if empty.
pub(crate) fn tables() -> Vec<String> {
    let tables = FAMILIES.into_iter().flat_map(|family| {
        let (names, [program, _]) = names_and_programs(family);
        let names = std::fs::read_to_string(names).unwrap_or_default();
        let named = names.lines().map(|name| format!("{program} -t {name}"));
        named.collect::<Vec<_>>()
    });
    tables.collect()
}

/// Programs whose FORWARD chain drops by default. Tables that cannot be read are skipped.
pub(crate) fn dropping_forwarders() -> Vec<&'static str> {
    let drops = |family| {
        let (names, programs) = names_and_programs(family);
        let names = std::fs::read_to_string(names).ok()?;
        names.lines().find(|name| *name == "filter")?;
        let program = programs.iter().find(|program| is_legacy(program))?;
        let saved = run(&format!("{program}-save"), &["-t", "filter"], "").ok()?;
        let forward = saved.lines().any(|line| line.starts_with(":FORWARD DROP"));
        forward.then_some(*program)
    };
    FAMILIES.into_iter().filter_map(drops).collect()
}

/// Writes `rules` as the only rules of a chain that no rule jumps to, and creates table and chain if needed. Chain and
/// rules must be trusted: they are part of the input of `iptables-restore`.
///
/// Errors: when the program is not installed or refuses the input.
pub(crate) fn write_chain(
    family: Family,
    table: &'static str,
    chain: &'static str,
    rules: &[&'static str],
) -> Result<()> {
    let (_, programs) = names_and_programs(family);
    let program = legacy(&programs)?;
    let mut text = format!("*{table}\n:{chain} - [0:0]\n");
    for rule in rules {
        // Writing to a String does not fail.
        let _ = writeln!(text, "-A {chain} {rule}");
    }
    text.push_str("COMMIT\n");
    run(
        &format!("{program}-restore"),
        &["-w", "5", "--noflush"],
        &text,
    )?;
    Ok(())
}

/// Removes the chains of one family.
pub(super) fn remove(owner: &ChainOwner, family: Family, removed: &mut Removed) {
    let (file, programs) = names_and_programs(family);
    let names = match std::fs::read_to_string(file) {
        Ok(names) => names,
        // Nobody has used the legacy variant since the node started.
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            removed.failures.push(format!(
                "cannot look for legacy iptables rules in {file}: {error}: run as root, or with supplemental group 0"
            ));
            return;
        }
    };
    let exists = |table: &&&str| names.lines().any(|name| name == **table);
    // Usual, and no reason to run a program.
    if !owner.tables.iter().any(|table| exists(&table)) {
        return;
    }
    if legacy(&programs).is_err() {
        // A program that writes several tables is suspected only where all of them exist.
        if owner.tables.iter().all(|table| exists(&table)) {
            let named = owner.tables.iter().map(|table| format!("{family} {table}"));
            removed.unreadable.extend(named);
        }
        return;
    }
    let tables = owner.tables.iter().filter(exists);
    for table in tables {
        match remove_table(owner, &programs, table) {
            Ok(removal) => {
                removed.legacy_chains += removal.chains;
                removed.kept.extend(removal.kept);
                removed.permitting |= removal.permitting;
            }
            Err(error) => removed
                .failures
                .push(format!("legacy table {table}: {error:#}")),
        }
    }
}

fn remove_table(owner: &ChainOwner, programs: &[&'static str], table: &str) -> Result<Removal> {
    let program = legacy(programs)?;
    let saved = run(&format!("{program}-save"), &["-t", table], "")?;
    let removal = removal(owner, table, &saved);
    if removal.chains == 0 {
        return Ok(removal);
    }
    let restore = ["-w", "5", "--noflush", "--counters"];
    run(&format!("{program}-restore"), &restore, &removal.text)?;
    Ok(removal)
}

/// The first of the programs that is installed and of the legacy variant.
fn legacy(programs: &[&'static str]) -> Result<&'static str> {
    let found = programs.iter().find(|program| is_legacy(program));
    let missing = || {
        format!(
            "no legacy variant of {} is installed",
            programs.join(" or ")
        )
    };
    found.copied().with_context(missing)
}

/// Whether the program is installed and of the legacy variant; before 1.8 there was no other.
fn is_legacy(program: &str) -> bool {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("nf_tables")
    })
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    // On a thread of its own, so that neither side waits for the other.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let written = writer.join();
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    if !matches!(written, Ok(Ok(()))) {
        bail!("{program} did not read its input");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The removal of a program's chains from one table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Removal {
    /// Input of `iptables-restore --noflush`.
    text: String,
    chains: usize,
    kept: BTreeSet<String>,
    permitting: bool,
}

/// Plans the removal from what `iptables-save -t TABLE` printed.
fn removal(owner: &ChainOwner, table: &str, saved: &str) -> Removal {
    let mut chains = BTreeMap::new();
    let mut jumps = Vec::new();
    let mut drops = false;
    for line in saved.lines() {
        if let Some(chain) = line.strip_prefix(':') {
            // `:NAME POLICY [PACKETS:BYTES]`; only base chains have a policy.
            let mut words = chain.split(' ');
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                chains.insert(name.to_owned(), policy != "-");
                drops |= name == FORWARD && policy == "DROP";
            }
        } else if let Some((from, rule)) = rule(line)
            && let Some(to) = target(rule)
        {
            jumps.push((from, to, rule));
        }
    }
    let named: Vec<(&str, &str)> = jumps.iter().map(|(from, to, _)| (*from, *to)).collect();
    let leftovers = netfilter::leftovers(&chains, &named, |chain| {
        owner.is_removable(table, chain, drops)
    });
    let mut text = format!("*{table}\n");
    // Writing to a String does not fail.
    for chain in &leftovers.chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (from, to, rule) in &jumps {
        if chains.get(*from) == Some(&true) && leftovers.chains.contains(*to) {
            let _ = writeln!(text, "-D {from} {rule}");
        }
    }
    for chain in &leftovers.chains {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    Removal {
        text,
        chains: leftovers.chains.len(),
        kept: leftovers.kept,
        permitting: chains.keys().any(|chain| owner.is_kept(chain, drops)),
    }
}

/// The chain and the rest of `-A CHAIN ...`.
fn rule(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("-A ")?.split_once(' ')
}

/// The target of a rule: the word after `-j` or `-g`, outside of quotes (a comment may contain anything).
fn target(rule: &str) -> Option<&str> {
    let (mut quoted, mut escaped, mut word_start) = (false, false, 0);
    let mut after_jump = false;
    for (at, byte) in rule.bytes().chain([b' ']).enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b' ' if !quoted => {
                let word = rule.get(word_start..at)?;
                if after_jump {
                    return Some(word);
                }
                after_jump = word == "-j" || word == "-g";
                word_start = at + 1;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takeover::CHAINS;

    #[test]
    fn own_chains_are_removed_and_others_kept() {
        let saved = r#"# Generated by iptables-save v1.8.9 on a day
*nat
:PREROUTING ACCEPT [1:60]
:OUTPUT ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:CNI-X - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES \" -j KUBE-SVC-A" -j CNI-X
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -j DNAT --to-destination 10.0.0.1:6443
-A CNI-X -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
"#;
        let expected = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D OUTPUT -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-A
COMMIT
"#;
        let removal = removal(&CHAINS, "nat", saved);
        assert_eq!(removal.text, expected);
        assert_eq!(removal.chains, 2);
        assert_eq!(removal.kept, ["KUBE-MARK-MASQ".to_owned()].into());
    }

    #[test]
    fn a_table_without_kube_proxys_chains_is_unchanged() {
        let saved = "*filter\n:INPUT DROP [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n";
        assert_eq!(removal(&CHAINS, "filter", saved).chains, 0);
        assert_eq!(removal(&CHAINS, "filter", "").chains, 0);
    }
}
