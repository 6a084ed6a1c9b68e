//! What must not leave this node.

use nft::{Family, Operand, Side, Statement, Verdict};

use super::frame::{ICMP_TYPE, quoted_port, quoted_protocol};
use super::{
    Filter, RuleOptions, elsewhere, equals, in_set, refuse, to_port_of_peers, vxlan_packets,
};
use crate::plan::Tunnel;
use crate::underlay::LOOPBACK;

/// The rules for packets that others send through this node, before any masquerading.
///
/// They see the first packet of a connection only: a chain that each packet of a pod passes costs each a third of a
/// microsecond.
pub(super) fn of_others(tunnel: &Tunnel, options: RuleOptions) -> Vec<Vec<Statement>> {
    let mut rules = Vec::new();
    if options.filter != Filter::Off {
        let mut forwarded = vxlan_packets(tunnel);
        forwarded.push(match tunnel.inputs.is_empty() {
            true => in_set(Operand::SourceAddress, "own_pods", false),
            false => Statement::ConnectionIsDnat,
        });
        forwarded.push(in_set(Operand::DestinationAddress, "peers", false));
        forwarded.extend(refuse(options.filter));
        rules.push(forwarded);
    }
    // Without a filter too: where another program masquerades a pod's request, a peer would take it for one of this node.
    rules.extend(to_port_of_peers(options.probe_port).map(|mut rule| {
        match tunnel.inputs.is_empty() {
            true => rule.push(in_set(Operand::SourceAddress, "own_pods", false)),
            false => {
                // Packets of this node itself have no input interface.
                rule.push(Statement::LocalAddress {
                    of: Side::Source,
                    negate: true,
                });
                rule.extend(elsewhere(tunnel));
            }
        }
        rule.extend(refuse(Filter::Enforce));
        rule
    }));
    rules
}

/// The rules for whatever leaves a node whose traffic with other nodes' pods has to be encrypted.
///
/// While the tunnel device or a route is missing, the kernel would send it by another route, mostly the default one, in
/// clear text. It would also answer encapsulated packets that still arrive by an error that quotes them (RFC 1122, section
/// 3.2.2; RFC 4443, section 2.4). Nodes may have addresses in the network of the pods, and are reached.
pub(super) fn sealed(tunnel: &Tunnel, family: Family) -> Vec<Vec<Statement>> {
    let mut rules = vec![passes(leaves_by(&tunnel.device.name))];
    rules.extend(quotes(tunnel, family));
    rules.push(passes(to("peers", false)));
    rules.extend(barred());
    rules
}

/// The same where there is no tunnel.
pub(super) fn barred() -> Vec<Vec<Statement>> {
    let passing = [
        to("cluster", true),
        to("own_pods", false),
        leaves_by(LOOPBACK),
    ];
    let mut rules: Vec<_> = passing.map(passes).into();
    rules.push(refuse(Filter::Enforce));
    rules
}

fn leaves_by(name: &str) -> Statement {
    Statement::OutputInterface {
        name: name.to_owned().into(),
    }
}

fn to(set: &'static str, negate: bool) -> Statement {
    in_set(Operand::DestinationAddress, set, negate)
}

fn passes(statement: Statement) -> Vec<Statement> {
    vec![statement, Statement::Verdict(Verdict::Return)]
}

/// Rules that drop ICMP errors about packets to the port of the tunnel.
fn quotes(tunnel: &Tunnel, family: Family) -> impl Iterator<Item = Vec<Statement>> {
    const UDP: u8 = 17;
    // Destination unreachable, time exceeded, parameter problem; of ICMPv6 also packet too big.
    let kinds: &[u8] = match family {
        Family::Ip => &[3, 11, 12],
        Family::Ip6 => &[1, 2, 3, 4],
    };
    let port = tunnel.device.port.to_be_bytes();
    kinds.iter().map(move |kind| {
        let mut rule = vec![
            equals(ICMP_TYPE, &[*kind]),
            equals(quoted_protocol(family), &[UDP]),
            equals(quoted_port(family), &port),
        ];
        rule.extend(refuse(Filter::Enforce));
        rule
    })
}
