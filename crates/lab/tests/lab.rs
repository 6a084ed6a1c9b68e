//! The lab by itself, with rules written by hand: links and routes of both families, what probes say,
//! and that the layout of the Service table carries packets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use lab::{Lab, Node, Outcome, Pod, PodLinks, Probe, Protocol, scenario};

const SHORT: Duration = Duration::from_millis(100);
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Two nodes with two serving pods each.
fn cluster(lab: &Lab) -> Result<([Node; 2], [Pod; 4])> {
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let pods = [a.pod("a-1")?, a.pod("a-2")?, b.pod("b-1")?, b.pod("b-2")?];
    for pod in &pods {
        for protocol in BOTH {
            pod.serve(protocol, 8080)?;
        }
    }
    Ok(([a, b], pods))
}

fn assert_answered_from(outcome: &Outcome, server: &str, source: IpAddr) {
    assert_eq!(
        (outcome.server(), outcome.peer().map(|peer| peer.ip())),
        (Some(server), Some(source)),
        "{outcome:?}"
    );
}

fn every_pod_reaches_every_pod(pod_links: PodLinks) -> Result<()> {
    let lab = Lab::builder().pod_links(pod_links).build()?;
    let (_, pods) = cluster(&lab)?;
    for from in &pods {
        for to in &pods {
            for protocol in BOTH {
                for (source, target) in from.addresses().into_iter().zip(to.addresses()) {
                    let outcome = from.connect(protocol, (target, 8080))?;
                    let server = format!("{}:8080", to.name());
                    assert_answered_from(&outcome, &server, source);
                }
            }
        }
    }
    Ok(())
}

#[scenario]
fn routed_pods_reach_each_other_across_nodes_in_both_families() -> Result<()> {
    every_pod_reaches_every_pod(PodLinks::Routed)
}

#[scenario]
fn bridged_pods_reach_each_other_across_nodes_in_both_families() -> Result<()> {
    every_pod_reaches_every_pod(PodLinks::Bridged)
}

#[scenario]
fn outside_client_reaches_nodes_and_pods_only_by_a_route() -> Result<()> {
    let lab = Lab::new()?;
    let ([a, _], [_, _, pod, _]) = cluster(&lab)?;
    let client = lab.client("outside")?;
    a.serve(Protocol::Udp, 53)?;
    for ((node, pod), source) in a
        .addresses()
        .into_iter()
        .zip(pod.addresses())
        .zip(client.addresses())
    {
        assert_answered_from(
            &client.connect(Protocol::Udp, (node, 53))?,
            "node-a:53",
            source,
        );
        assert_eq!(client.connect(Protocol::Tcp, (node, 53))?, Outcome::Refused);
        assert_eq!(
            client.connect(Protocol::Tcp, (pod, 8080))?,
            Outcome::Unreachable
        );
    }
    client.route_via(&a, lab::CLUSTER_CIDR_V4.parse::<IpNet>()?)?;
    client.route_via(&a, lab::CLUSTER_CIDR_V6.parse::<IpNet>()?)?;
    for (pod, source) in pod.addresses().into_iter().zip(client.addresses()) {
        assert_answered_from(
            &client.connect(Protocol::Tcp, (pod, 8080))?,
            "b-1:8080",
            source,
        );
    }
    Ok(())
}

#[scenario]
fn untranslated_service_addresses_are_unreachable_at_once() -> Result<()> {
    let lab = Lab::builder().without_pod_routes().build()?;
    let ([a, _], [pod, beside, remote, _]) = cluster(&lab)?;
    let services: [IpAddr; 2] = ["10.96.0.1".parse()?, "fd00:96::1".parse()?];
    for (service, remote) in services.into_iter().zip(remote.addresses()) {
        for protocol in BOTH {
            for target in [service, remote] {
                let probe = Probe::new(protocol, (target, 8080));
                assert_eq!(pod.probe(probe)?, Outcome::Unreachable, "{probe:?}");
                assert_eq!(a.probe(probe)?, Outcome::Unreachable, "{probe:?}");
            }
        }
    }
    let near = pod.connect(Protocol::Udp, (beside.ipv6(), 8080))?;
    assert_eq!(near.server(), Some("a-2:8080"));
    Ok(())
}

#[scenario(Nft)]
fn outcomes_tell_reject_drop_and_closed_port_apart() -> Result<()> {
    let lab = Lab::new()?;
    let ([a, _], [from, _, to, _]) = cluster(&lab)?;
    a.nft_stdin(
        "table inet filter {
            chain forward {
                type filter hook forward priority 0
                th dport 1001 reject
                th dport 1002 drop
                th dport 1003 reject with icmpx admin-prohibited
            }
            chain output { type filter hook output priority 0; th dport 1002 drop; }
        }",
    )?;
    for protocol in BOTH {
        for target in to.addresses() {
            // More than the kernel's own limit on ICMP messages would let through.
            for _ in 0..20 {
                let rejected = from.connect(protocol, (target, 1001))?;
                assert_eq!(rejected, Outcome::Refused);
            }
            let dropped = Probe::new(protocol, (target, 1002)).within(SHORT);
            assert_eq!(from.probe(dropped)?, Outcome::TimedOut);
            assert_eq!(a.probe(dropped)?, Outcome::TimedOut);
            let prohibited = from.connect(protocol, (target, 1003))?;
            assert_eq!(prohibited, Outcome::Unreachable);
            let closed = from.connect(protocol, (target, 1004))?;
            assert_eq!(closed, Outcome::Refused);
        }
    }
    Ok(())
}

#[scenario]
fn a_fixed_source_port_is_used_and_can_be_used_again_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let (_, [from, _, to, _]) = cluster(&lab)?;
    for protocol in BOTH {
        for _ in 0..3 {
            let probe = Probe::new(protocol, (to.ipv4(), 8080)).from_port(4000);
            let seen = from.probe(probe)?.peer();
            assert_eq!(seen, Some(SocketAddr::from((from.ipv4(), 4000))));
        }
    }
    Ok(())
}

#[scenario]
fn stopped_server_refuses_and_deleted_pod_stays_silent() -> Result<()> {
    let lab = Lab::new()?;
    let (_, [from, _, to, _]) = cluster(&lab)?;
    let held = from.hold((to.ipv6(), 8080), 3, Duration::from_millis(1))?;
    lab::wait_until("some exchanges", Duration::from_secs(5), || {
        held.report().exchanges > 10
    })?;
    assert_eq!(held.report().servers["b-1:8080"], 3);
    assert_eq!(held.report().lost, []);
    to.stop_serving(Protocol::Tcp, 8080)?;
    assert_eq!(
        from.connect(Protocol::Tcp, (to.ipv6(), 8080))?,
        Outcome::Refused
    );
    lab::wait_until("the loss of three", Duration::from_secs(5), || {
        held.report().lost.len() == 3
    })?;
    to.delete();
    let probe = Probe::new(Protocol::Udp, (to.ipv4(), 8080)).within(SHORT);
    lab::wait_until("silence", Duration::from_secs(5), || {
        !matches!(from.probe(probe), Ok(Outcome::Answered { .. }))
    })?;
    assert!(to.connect(Protocol::Udp, (from.ipv4(), 8080)).is_err());
    Ok(())
}

/// The Service table's layout in one family, balancing `vip` port 80 over two pods.
fn service_table(family: &str, vip: &str, backends: [IpAddr; 2], pods: &str) -> String {
    let [first, second] = backends;
    format!(
        "table {family} lab {{
            map backends {{
                typeof {family} daddr . meta l4proto . th dport . numgen random mod 65536 : {family} daddr . th dport
                elements = {{
                    {vip} . tcp . 80 . 0 : {first} . 8080, {vip} . tcp . 80 . 1 : {second} . 8080,
                    {vip} . udp . 80 . 0 : {first} . 8080, {vip} . udp . 80 . 1 : {second} . 8080,
                }}
            }}
            set frontends_2 {{
                typeof {family} daddr . meta l4proto . th dport
                elements = {{ {vip} . tcp . 80, {vip} . udp . 80 }}
            }}
            set cluster_ips {{ typeof {family} daddr; elements = {{ {vip} }}; }}
            set hairpin {{
                typeof {family} saddr . {family} daddr
                elements = {{ {first} . {first}, {second} . {second} }}
            }}
            set pod_cidrs {{ typeof {family} saddr; flags interval; elements = {{ {pods} }}; }}
            chain pick_2 {{
                dnat {family} to {family} daddr . meta l4proto . th dport . symhash mod 2 map @backends
                dnat {family} to {family} daddr . meta l4proto . th dport . symhash mod 1 map @backends
            }}
            chain cluster {{
                {family} daddr . meta l4proto . th dport @frontends_2 goto pick_2
                reject
            }}
            chain services {{ {family} daddr @cluster_ips goto cluster; }}
            chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain output {{ type nat hook output priority -100; jump services; }}
            chain postrouting {{
                type nat hook postrouting priority srcnat
                {family} saddr . {family} daddr @hairpin masquerade fully-random
                ct original {family} daddr @cluster_ips {family} saddr != @pod_cidrs masquerade fully-random
            }}
        }}"
    )
}

fn the_service_layout_carries_packets(pod_links: PodLinks) -> Result<()> {
    let lab = Lab::builder().pod_links(pod_links).build()?;
    let ([a, b], [local, other, remote, _]) = cluster(&lab)?;
    let client = lab.client("outside")?;
    for (index, (family, vip, pods, services)) in [
        (
            "ip",
            "10.96.0.1",
            lab::CLUSTER_CIDR_V4,
            lab::SERVICE_CIDR_V4,
        ),
        (
            "ip6",
            "fd00:96::1",
            lab::CLUSTER_CIDR_V6,
            lab::SERVICE_CIDR_V6,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let address = |host: &lab::Host| host.addresses()[index];
        let vip_address: IpAddr = vip.parse()?;
        let backends = [address(&local), address(&remote)];
        for node in [&a, &b] {
            node.nft_stdin(&service_table(family, vip, backends, pods))?;
        }
        client.route_via(&a, services.parse()?)?;
        let both = ["a-1:8080", "b-1:8080"];
        for protocol in BOTH {
            // From a pod beside the endpoint, from the node, from outside.
            for (from, source) in [
                (&*other, vec![address(&other)]),
                (&*a, vec![address(&a), a.pod_gateway()[index]]),
                (&*client, vec![address(&a), a.pod_gateway()[index]]),
            ] {
                let tally = from.connect_many(protocol, (vip_address, 80), 40)?;
                assert_eq!(tally.server_names(), both, "{}: {tally:?}", from.name());
                assert_eq!(tally.failed(), 0, "{tally:?}");
                assert!(
                    tally.peers.iter().all(|peer| source.contains(peer)),
                    "{} was seen as {:?}",
                    from.name(),
                    tally.peers
                );
            }
            // A pod to itself: masqueraded, or the answer would not come back through the node.
            let tally = local.connect_many(protocol, (vip_address, 80), 40)?;
            assert_eq!(tally.server_names(), both);
            assert_eq!(tally.failed(), 0, "{tally:?}");
            let seen = [address(&local), a.pod_gateway()[index]];
            assert_eq!(Vec::from_iter(tally.peers), {
                let mut seen = Vec::from(seen);
                seen.sort();
                seen
            });
            assert_eq!(
                other.connect(protocol, (vip_address, 81))?,
                Outcome::Refused
            );
        }
    }
    Ok(())
}

#[scenario(Nft)]
fn the_service_layout_carries_packets_between_routed_pods() -> Result<()> {
    the_service_layout_carries_packets(PodLinks::Routed)
}

#[scenario(Nft, BridgeNetfilter)]
fn the_service_layout_carries_packets_between_bridged_pods() -> Result<()> {
    the_service_layout_carries_packets(PodLinks::Bridged)
}

#[scenario]
fn held_connections_and_streams_see_no_loss_on_a_good_path() -> Result<()> {
    let lab = Lab::new()?;
    let (_, [from, _, to, _]) = cluster(&lab)?;
    let held = from.hold((to.ipv4(), 8080), 50, Duration::from_millis(5))?;
    let probe = Probe::new(Protocol::Tcp, (to.ipv4(), 8080));
    let stream = from.stream_connections(probe, Duration::from_micros(100))?;
    lab::wait_until("traffic", Duration::from_secs(10), || {
        stream.report().tally.answered() >= 200 && held.report().exchanges >= 1_000
    })?;
    let (stream, held) = (stream.stop(), held.stop());
    assert_eq!((stream.failures, held.lost), (vec![], vec![]));
    Ok(())
}

#[scenario]
fn a_stream_reports_what_was_not_answered() -> Result<()> {
    let lab = Lab::new()?;
    let (_, [from, _, to, _]) = cluster(&lab)?;
    let probe = Probe::new(Protocol::Tcp, (to.ipv4(), 8080));
    let stream = from.stream_connections(probe, Duration::from_micros(100))?;
    let timeout = Duration::from_secs(10);
    lab::wait_until("answers", timeout, || stream.report().tally.answered() > 10)?;
    to.stop_serving(Protocol::Tcp, 8080)?;
    lab::wait_until("refusals", timeout, || stream.report().tally.refused > 10)?;
    let report = stream.stop();
    assert!(report.failures.len() >= report.tally.refused);
    assert!(report.failures.is_sorted(), "{:?}", report.failures);
    Ok(())
}
