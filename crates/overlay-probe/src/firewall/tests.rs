use std::net::{IpAddr, UdpSocket};

use lab::{Lab, Node, scenario};
use net_types::{Family, Protocol};

use super::*;

const PORT: u16 = 8472;
const PLENTY: Duration = Duration::from_secs(10);
const NO_LEGACY: LegacyIptables = LegacyIptables {
    tables: Vec::new,
    dropping_forwarders: Vec::new,
};

/// Sends datagrams from one to the other until a rule at `at` that drops one is found.
fn found(at: &Node, from: &Node, to: IpAddr) -> Result<Blocker> {
    let source = match to {
        IpAddr::V4(_) => from.ipv4().into(),
        IpAddr::V6(_) => from.ipv6().into(),
    };
    let suspect = Suspect {
        source,
        destination: to,
        protocol: Protocol::Udp,
        port: PORT,
    };
    let looking = at.thread(move || who_drops(&[suspect], PLENTY))?;
    while !looking.is_finished() {
        from.run(move || -> std::io::Result<()> {
            let socket = UdpSocket::bind((source, 0))?;
            // A rule that drops on the way out makes this an error.
            let _ = socket.send_to(b"probe", (to, PORT));
            Ok(())
        })??;
    }
    looking.join().expect("no panic")?.context("nobody drops")
}

#[scenario(Nft, TableOwner)]
fn the_dropping_rule_is_found_with_its_hook_at_both_ends() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let wall = |hook| {
        format!(
            "table inet wall {{
                chain inner {{ udp dport {PORT} drop; }}
                chain outer {{ type filter hook {hook} priority 0; jump inner; }}
            }}"
        )
    };
    for (wall_at, hook) in [(&b, "input"), (&b, "prerouting"), (&a, "output")] {
        wall_at.nft_stdin(&wall(hook))?;
        for address in b.addresses() {
            let found = found(wall_at, &a, address)?;
            assert_eq!(
                (found.table.as_str(), found.chain.as_str()),
                ("wall", "inner")
            );
            assert_eq!(found.hook, Some(hook));
            let handle = found.rule.context("a rule")?;
            // The words lead to the rule.
            wall_at.nft(&[
                "delete",
                "rule",
                "inet",
                "wall",
                "inner",
                "handle",
                &handle.to_string(),
            ])?;
            wall_at.nft_stdin(&format!("add rule inet wall inner udp dport {PORT} drop"))?;
        }
        wall_at.nft(&["delete", "table", "inet", "wall"])?;
    }
    Ok(())
}

#[scenario(Nft)]
fn forward_chains_that_drop_are_found_by_family() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let found = |families: &'static [Family]| node.run(|| forward_chains(NO_LEGACY, families))?;
    assert_eq!(found(&Family::ALL)?, Forwarding::default());
    node.nft_stdin(
        "table inet docker {
            chain a { type filter hook forward priority 0; policy drop; iifname cni0 accept; }
            chain b { type filter hook input priority 0; policy drop; }
            chain c { type filter hook forward priority 1; policy accept; }
        }
        table ip6 docker {
            chain d { type filter hook forward priority 2; reject; }
        }",
    )?;
    let both = found(&Family::ALL)?;
    assert_eq!((both.notes.len(), both.faults.len()), (1, 1));
    assert!(both.notes[0].starts_with("table inet docker, chain a "));
    assert!(both.faults[0].starts_with("table ip6 docker, chain d "));
    assert_eq!(found(&[Family::Ip])?.faults, Vec::<String>::new());
    Ok(())
}

#[test]
fn names_that_are_not_plain_are_escaped_and_get_no_command() {
    let mut blocker = Blocker {
        family: AnyFamily::INET,
        table: "firewalld".into(),
        chain: "filter_IN_public".into(),
        rule: Some(12),
        hook: Some("input"),
        queued: false,
    };
    assert_eq!(
        blocker.to_string(),
        "table inet firewalld, chain filter_IN_public, rule handle 12, on input \
         (nft -a list chain inet firewalld filter_IN_public)"
    );
    for name in ["a\u{1b}[31m", "$(reboot)", "-f", "a b", ""] {
        blocker.chain = name.into();
        let told = blocker.to_string();
        assert!(
            !told.contains("nft -a") && !told.contains('\u{1b}'),
            "{told}"
        );
    }
}

#[scenario]
fn legacy_tables_and_their_forward_chains_are_named() -> Result<()> {
    let legacy = LegacyIptables {
        tables: || vec!["iptables-legacy -t filter".to_owned()],
        dropping_forwarders: || vec!["iptables-legacy"],
    };
    assert_eq!(untraceable(NO_LEGACY), None);
    let named = untraceable(legacy).context("no legacy table is named")?;
    assert!(named.contains("iptables-legacy -t filter"), "{named}");
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let found = node
        .run(move || forward_chains(legacy, &Family::ALL))??
        .notes;
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("iptables-legacy, chain FORWARD "),
        "{found:?}"
    );
    Ok(())
}
