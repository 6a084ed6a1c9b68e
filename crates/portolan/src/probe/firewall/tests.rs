use std::net::{IpAddr, UdpSocket};

use lab::{Capability, Lab, Node, require};
use nft::Protocol;

use super::*;

const PORT: u16 = 8472;
const PLENTY: Duration = Duration::from_secs(10);

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

#[test]
fn the_rule_that_drops_is_found_with_its_hook_at_the_receiver_and_at_the_sender() -> Result<()> {
    if !require(&[Capability::Nft, Capability::TableOwner]) {
        return Ok(());
    }
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

#[test]
fn chains_that_forward_nothing_by_default_are_found() -> Result<()> {
    if !require(&[Capability::Nft]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    assert_eq!(node.run(forwarding_drops)??, Vec::<String>::new());
    node.nft_stdin(
        "table inet docker {
            chain a { type filter hook forward priority 0; policy drop; }
            chain b { type filter hook input priority 0; policy drop; }
            chain c { type filter hook forward priority 1; policy accept; }
        }",
    )?;
    let found = node.run(forwarding_drops)??;
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("table inet docker, chain a "),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn legacy_iptables_is_said_to_be_out_of_sight_and_what_it_does_not_forward_is_found() -> Result<()>
{
    if !require(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    assert_eq!(node.run(untraceable)?, None);
    let mut command = node.command("iptables-legacy");
    command.args(["-P", "FORWARD", "DROP"]);
    let output = node.output(command)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(
            std::env::var_os("CI").is_none(),
            "no legacy iptables: {why}"
        );
        eprintln!("SKIPPED: no legacy iptables: {why}");
        return Ok(());
    }
    let told = node.run(untraceable)?.context("nothing is out of sight")?;
    assert!(told.contains("iptables-legacy -t filter"), "{told}");
    let found = node.run(forwarding_drops)??;
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("iptables-legacy, chain FORWARD "),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn the_names_of_others_reach_neither_a_terminal_nor_a_command_unless_they_are_plain() {
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
