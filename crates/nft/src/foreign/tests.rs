use super::*;
use crate::namespace::{in_namespace, load, nft};

/// What iptables makes of a few rules of kube-proxy's, with somebody else's beside them.
const RULES: &str = "
table ip nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat
        ip daddr 192.0.2.1 tcp dport 80 dnat to 198.51.100.1
        counter jump KUBE-SERVICES
    }
    chain OUTPUT {
        type nat hook output priority -100
        jump KUBE-SERVICES
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat
        goto KUBE-POSTROUTING
        jump OTHERS
    }
    chain KUBE-SERVICES {
        ip daddr 10.96.0.1 tcp dport 443 jump KUBE-SVC-A
    }
    chain KUBE-SVC-A {
        numgen random mod 2 0 jump KUBE-SEP-A
        jump KUBE-SEP-B
    }
    chain KUBE-SEP-A { meta l4proto tcp dnat to 10.0.0.1:6443; }
    chain KUBE-SEP-B { ip saddr 10.0.0.2 jump KUBE-MARK-MASQ; }
    chain KUBE-MARK-MASQ { meta mark set 0x4000; }
    chain KUBE-POSTROUTING { meta mark & 0x4000 != 0x4000 return; jump KUBE-DEEP; }
    chain KUBE-DEEP { masquerade; }
    chain OTHERS { jump KUBE-MARK-MASQ; }
}
table ip filter {
    chain KUBE-SERVICES { drop; }
}
table ip kube-proxy {
    map m { type ipv4_addr : verdict; elements = { 10.96.0.1 : goto c }; }
    chain c { }
}";

fn kube(chain: &str) -> bool {
    chain.starts_with("KUBE-")
}

#[test]
fn chains_go_with_the_jumps_to_them_and_nothing_else_does() {
    in_namespace(|| {
        load(RULES);
        let mut foreign = Foreign::open().unwrap();
        let gone = foreign.remove_chains(Family::Ip, "nat", kube).unwrap();
        let names = [
            "KUBE-DEEP",
            "KUBE-POSTROUTING",
            "KUBE-SEP-A",
            "KUBE-SEP-B",
            "KUBE-SERVICES",
            "KUBE-SVC-A",
        ];
        assert_eq!(
            gone.chains.iter().map(String::as_str).collect::<Vec<_>>(),
            names
        );
        assert_eq!(gone.jumps, 3);
        // Somebody else leads to it.
        assert_eq!(gone.kept, ["KUBE-MARK-MASQ".to_owned()].into());
        let left = nft(&["list", "table", "ip", "nat"], "").unwrap();
        for stays in [
            "dnat to 198.51.100.1",
            "jump OTHERS",
            "jump KUBE-MARK-MASQ",
            "0x00004000",
        ] {
            assert!(left.contains(stays), "{stays}: {left}");
        }
        assert!(
            !left.contains("KUBE-S") && !left.contains("KUBE-P"),
            "{left}"
        );
        assert!(
            foreign
                .has_chain(Family::Ip, "filter", "KUBE-SERVICES")
                .unwrap()
        );

        let again = foreign.remove_chains(Family::Ip, "nat", kube).unwrap();
        assert_eq!((again.chains.len(), again.jumps), (0, 0));
    });
}

#[test]
fn what_is_not_there_is_not_missed() {
    in_namespace(|| {
        let mut foreign = Foreign::open().unwrap();
        assert!(!foreign.has_table(Family::Ip6, "nat").unwrap());
        assert!(
            !foreign
                .has_chain(Family::Ip6, "nat", "KUBE-SERVICES")
                .unwrap()
        );
        assert_eq!(
            foreign.remove_chains(Family::Ip6, "nat", kube),
            Ok(Leftovers::default())
        );
        assert_eq!(foreign.delete_table(Family::Ip6, "kube-proxy"), Ok(false));
        assert_eq!(foreign.destroy_ip_set("KUBE-CLUSTER-IP"), Ok(false));
    });
}

#[test]
fn a_table_goes_with_all_in_it() {
    in_namespace(|| {
        load(RULES);
        let mut foreign = Foreign::open().unwrap();
        assert!(foreign.has_table(Family::Ip, "kube-proxy").unwrap());
        assert_eq!(foreign.delete_table(Family::Ip, "kube-proxy"), Ok(true));
        assert!(!foreign.has_table(Family::Ip, "kube-proxy").unwrap());
        assert!(foreign.has_table(Family::Ip, "nat").unwrap());
    });
}

#[test]
fn a_base_chain_stays_whatever_it_is_called() {
    in_namespace(|| {
        load("table ip nat { chain KUBE-X { type nat hook output priority 0; }; }");
        let mut foreign = Foreign::open().unwrap();
        let gone = foreign.remove_chains(Family::Ip, "nat", kube).unwrap();
        assert_eq!(gone, Leftovers::default());
    });
}

#[test]
fn a_chain_that_drops_by_default_is_told_from_others() {
    in_namespace(|| {
        load(
            "table ip filter {
                chain FORWARD { type filter hook forward priority 0; policy drop; }
                chain INPUT { type filter hook input priority 0; }
                chain OTHERS { }
            }",
        );
        let mut foreign = Foreign::open().unwrap();
        for (chain, drops) in [
            ("FORWARD", true),
            ("INPUT", false),
            ("OTHERS", false),
            ("NONE", false),
        ] {
            assert_eq!(
                foreign.drops_by_default(Family::Ip, "filter", chain),
                Ok(drops),
                "{chain}"
            );
        }
    });
}
