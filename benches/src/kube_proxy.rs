//! The layout of kube-proxy 1.36's nftables mode for the same Services, written by ourselves as the commands it
//! gives to `nft -f -`: a chain for each service port with an anonymous map of its endpoints, reached through a
//! verdict map. (1.33 to 1.35 had a chain for each endpoint as well; 1.37 leaves the map out where there is one
//! endpoint.)
//!
//! What kube-proxy spends before it starts nft is left out, in its favour: walking all Services, listing chains
//! and sets, and the second it may wait.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;

use crate::shape::{PORT, Shape, TARGET_PORT};

const TABLE: &str = "ip kube-proxy";

/// All of a cluster, from nothing: one transaction.
pub fn load(shape: Shape) -> String {
    let mut commands = BASE.replace("@TABLE", TABLE);
    for i in 0..shape.services {
        let endpoints: Vec<Ipv4Addr> = (0..shape.endpoints).map(|e| shape.endpoint(i, e)).collect();
        add_service(
            &mut commands,
            &chain_name(shape, i),
            shape.cluster_ip(i),
            &endpoints,
        );
    }
    commands
}

/// The `n`th change of a run ([`Shape::change`]): the chain is flushed and gets a new rule with a new map.
pub fn change(shape: Shape, n: u32) -> String {
    let (service, changed, address) = shape.change(n);
    let endpoints: Vec<Ipv4Addr> = (0..shape.endpoints)
        .map(|e| {
            if e == changed {
                address
            } else {
                shape.endpoint(service, e)
            }
        })
        .collect();
    let chain = chain_name(shape, service);
    let mut commands = format!("add chain {TABLE} {chain}\nflush chain {TABLE} {chain}\n");
    add_rule(&mut commands, &chain, &endpoints);
    commands
}

/// The commands for one Service port.
pub fn add_service(
    commands: &mut String,
    chain: &str,
    cluster_ip: Ipv4Addr,
    endpoints: &[Ipv4Addr],
) {
    let _ = write!(
        commands,
        "add chain {TABLE} {chain}\n\
         flush chain {TABLE} {chain}\n\
         add element {TABLE} cluster-ips {{ {cluster_ip} }}\n\
         add element {TABLE} service-ips {{ {cluster_ip} . tcp . {PORT} : goto {chain} }}\n"
    );
    add_rule(commands, chain, endpoints);
}

fn add_rule(commands: &mut String, chain: &str, endpoints: &[Ipv4Addr]) {
    let map: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(slot, address)| format!("{slot} : {address} . {TARGET_PORT}"))
        .collect();
    let _ = writeln!(
        commands,
        "add rule {TABLE} {chain} meta l4proto tcp dnat ip to numgen random mod {} map {{ {} }}",
        endpoints.len(),
        map.join(" , ")
    );
}

/// `service-HASH-namespace/name/protocol/port`. The hash only has to differ.
fn chain_name(shape: Shape, service: u32) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let name = format!("{}/tcp/http", shape.service_name(service));
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let hash = hasher.finish();
    let digit = |n: u64| char::from(DIGITS[(hash >> (5 * n)) as usize % 32]);
    let hash: String = (0..8).map(digit).collect();
    format!("service-{hash}-{name}")
}

/// What is there once, with a cluster CIDR and one node address.
const BASE: &str = r#"add table @TABLE { comment "rules for kube-proxy" ; }
add set @TABLE hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service ; comment "service hairpin connections" ; }
add set @TABLE cluster-ips { type ipv4_addr ; comment "Active ClusterIPs" ; }
add set @TABLE nodeport-ips { type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }
add map @TABLE firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "destinations that are subject to LoadBalancerSourceRanges" ; }
add map @TABLE no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to service nodeports with no endpoints" ; }
add map @TABLE no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to services with no endpoints" ; }
add map @TABLE service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic" ; }
add map @TABLE service-nodeports { type inet_proto . inet_service : verdict ; comment "NodePort traffic" ; }
add chain @TABLE cluster-ips-check
add chain @TABLE filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain @TABLE filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain @TABLE filter-forward { type filter hook forward priority 0 ; }
add chain @TABLE filter-input { type filter hook input priority 0 ; }
add chain @TABLE filter-output { type filter hook output priority 0 ; }
add chain @TABLE firewall-check
add chain @TABLE masquerading
add chain @TABLE nat-output { type nat hook output priority -100 ; }
add chain @TABLE nat-postrouting { type nat hook postrouting priority 100 ; }
add chain @TABLE nat-prerouting { type nat hook prerouting priority -100 ; }
add chain @TABLE nodeport-endpoints-check
add chain @TABLE reject-chain { comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }
add chain @TABLE services
add chain @TABLE service-endpoints-check
add rule @TABLE cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
add rule @TABLE filter-prerouting-pre-dnat ct state new jump firewall-check
add rule @TABLE filter-forward ct state new jump service-endpoints-check
add rule @TABLE filter-forward ct state new jump cluster-ips-check
add rule @TABLE filter-input ct state new jump nodeport-endpoints-check
add rule @TABLE filter-input ct state new jump service-endpoints-check
add rule @TABLE filter-output ct state new jump service-endpoints-check
add rule @TABLE filter-output-pre-dnat ct state new jump firewall-check
add rule @TABLE filter-output ct state new jump cluster-ips-check
add rule @TABLE firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule @TABLE masquerading mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
add rule @TABLE masquerading ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
add rule @TABLE nat-output jump services
add rule @TABLE nat-postrouting jump masquerading
add rule @TABLE nat-prerouting jump services
add rule @TABLE nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule @TABLE reject-chain reject
add rule @TABLE service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule @TABLE services ip daddr @cluster-ips ip saddr != 10.128.0.0/9 mark set mark or 0x4000 comment "masquerade clusterIP traffic from outside cluster"
add rule @TABLE services ip daddr . meta l4proto . th dport vmap @service-ips
add rule @TABLE services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add element @TABLE nodeport-ips { 192.168.77.10 }
"#;

#[cfg(test)]
mod tests;
