use std::time::Instant;

use nft::AnyFamily;

use super::*;
use crate::testing::{in_namespace, load, nft};

/// What iptables makes of a few rules of kube-proxy's, with foreign ones beside them.
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
fn chains_are_removed_with_the_jumps_to_them() {
    in_namespace(|| {
        load(RULES);
        let mut ruleset = ForeignRuleset::open().unwrap();
        let gone = ruleset.remove_chains(Family::Ip, "nat", kube).unwrap();
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
        // OTHERS jumps to it.
        assert_eq!(gone.kept, ["KUBE-MARK-MASQ".to_owned()].into());
        let left = nft(&["list", "table", "ip", "nat"], "");
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
            ruleset
                .has_chain(Family::Ip, "filter", "KUBE-SERVICES")
                .unwrap()
        );

        let again = ruleset.remove_chains(Family::Ip, "nat", kube).unwrap();
        assert_eq!((again.chains.len(), again.jumps), (0, 0));
    });
}

#[test]
fn removing_what_does_not_exist_succeeds() {
    in_namespace(|| {
        let mut ruleset = ForeignRuleset::open().unwrap();
        assert!(!ruleset.has_table(Family::Ip6, "nat").unwrap());
        assert!(
            !ruleset
                .has_chain(Family::Ip6, "nat", "KUBE-SERVICES")
                .unwrap()
        );
        assert_eq!(
            ruleset.remove_chains(Family::Ip6, "nat", kube),
            Ok(Leftovers::default())
        );
        assert_eq!(ruleset.delete_table(Family::Ip6, "kube-proxy"), Ok(false));
        assert_eq!(ruleset.destroy_ip_set("KUBE-CLUSTER-IP"), Ok(false));
    });
}

/// A refused batch takes a grace period of RCU, a thousand times as long as a look. The fastest of many, since the machine may
/// be busy.
#[test]
fn a_table_that_is_not_there_is_not_tried_to_delete() {
    in_namespace(|| {
        let mut ruleset = ForeignRuleset::open().unwrap();
        let fastest = |mut act: Box<dyn FnMut() + '_>| {
            let each = (0..20).map(|_| {
                let start = Instant::now();
                act();
                start.elapsed()
            });
            each.min().unwrap()
        };
        let look = fastest(Box::new(|| {
            assert!(!ruleset.has_table(Family::Ip, "kube-proxy").unwrap());
        }));
        let delete = fastest(Box::new(|| {
            assert!(!ruleset.delete_table(Family::Ip, "kube-proxy").unwrap());
        }));
        assert!(delete < look * 50, "{delete:?}, a look {look:?}");
    });
}

#[test]
fn a_table_is_deleted_with_its_contents() {
    in_namespace(|| {
        load(RULES);
        let mut ruleset = ForeignRuleset::open().unwrap();
        assert!(ruleset.has_table(Family::Ip, "kube-proxy").unwrap());
        assert_eq!(ruleset.delete_table(Family::Ip, "kube-proxy"), Ok(true));
        assert!(!ruleset.has_table(Family::Ip, "kube-proxy").unwrap());
        assert!(ruleset.has_table(Family::Ip, "nat").unwrap());
    });
}

#[test]
fn a_base_chain_stays_whatever_its_name() {
    in_namespace(|| {
        load("table ip nat { chain KUBE-X { type nat hook output priority 0; }; }");
        let mut ruleset = ForeignRuleset::open().unwrap();
        let gone = ruleset.remove_chains(Family::Ip, "nat", kube).unwrap();
        assert_eq!(gone, Leftovers::default());
    });
}

#[test]
fn a_chain_with_policy_drop_is_recognized() {
    in_namespace(|| {
        load(
            "table ip filter {
                chain FORWARD { type filter hook forward priority 0; policy drop; }
                chain INPUT { type filter hook input priority 0; }
                chain OTHERS { }
            }",
        );
        let mut ruleset = ForeignRuleset::open().unwrap();
        for (chain, drops) in [
            ("FORWARD", true),
            ("INPUT", false),
            ("OTHERS", false),
            ("NONE", false),
        ] {
            assert_eq!(
                ruleset.drops_by_default(Family::Ip, "filter", chain),
                Ok(drops),
                "{chain}"
            );
        }
    });
}

#[test]
fn base_chains_are_listed_with_hooks_and_policies() {
    in_namespace(|| {
        load(
            "table inet wall {
                chain called { }
                chain forwarding { type filter hook forward priority 7; policy drop; }
            }
            table bridge b { chain c { type filter hook input priority -200; }; }",
        );
        let mut chains = ForeignRuleset::open().unwrap().base_chains().unwrap();
        chains.sort_by_key(|chain| chain.family);
        let [wall, bridge] = chains.as_slice() else {
            panic!("{chains:?}");
        };
        assert_eq!(
            (wall.table.as_str(), wall.name.as_str()),
            ("wall", "forwarding")
        );
        assert_eq!((wall.family, wall.priority), (AnyFamily::INET, 7));
        assert_eq!((wall.hook_keyword(), wall.drops), (Some("forward"), true));
        assert_eq!(
            (bridge.family, bridge.hook_keyword(), bridge.drops),
            (AnyFamily::BRIDGE, Some("input"), false)
        );
    });
}

#[test]
fn a_chain_that_no_packet_passes_is_told_from_one_that_some_do() {
    in_namespace(|| {
        load(
            "table inet wall {
                chain called { accept; }
                chain a { type filter hook forward priority 1; ct state established accept; counter reject; }
                chain b { type filter hook forward priority 2; ip saddr 10.0.0.0/8 drop; counter log drop; accept; }
                chain c { type filter hook forward priority 3; tcp dport 80 reject; }
                chain d { type filter hook forward priority 4; policy drop; }
                chain e { type filter hook forward priority 5; policy drop; iifname \"lo\" jump called; }
                chain f { type filter hook forward priority 6; ip saddr vmap { 10.0.0.1 : accept }; drop; }
                chain g { type filter hook forward priority 7; reject with icmpx admin-prohibited; }
            }
            table ip wall {
                chain a { type filter hook forward priority 8; accept; drop; }
            }",
        );
        let mut ruleset = ForeignRuleset::open().unwrap();
        let mut chains = ruleset.base_chains().unwrap();
        chains.sort_by_key(|chain| chain.priority);
        let endings: Vec<Ending> = chains.iter().map(|c| ruleset.ending(c).unwrap()).collect();
        use Ending::{Drops, DropsAll, Passes};
        let expected = [
            Drops, DropsAll, Passes, DropsAll, Drops, Drops, DropsAll, Drops,
        ];
        assert_eq!(endings, expected);
    });
}
