use net_types::Family;
use proptest::prelude::*;

use super::*;
use crate::plan::plan;
use crate::samples::{Cluster, cluster};
use crate::underlay::OnLink;

fn tunnel(cluster: &Cluster, family: Family) -> Tunnel {
    plan(cluster.facts(), cluster.nodes.iter()).tunnels[family]
        .clone()
        .unwrap()
}

/// Deletes what the kernel deletes with a device.
fn lose_device(found: &mut ObservedTunnel) {
    *found = ObservedTunnel {
        foreign_nexthops: std::mem::take(&mut found.foreign_nexthops),
        rivals: std::mem::take(&mut found.rivals),
        ..ObservedTunnel::default()
    };
}

/// Changes the state as the kernel does; tests in the lab carry out the same steps on the real kernel.
fn carry_out(found: &mut ObservedTunnel, steps: &[Operation]) {
    for step in steps {
        match step.clone() {
            Operation::CreateDevice(device) => {
                let vxlan = ObservedVxlan {
                    vni: device.vni,
                    port: device.port,
                    parent: device.parent,
                    local: Some(device.local),
                    remote: None,
                    learning: false,
                };
                assert!(found.device.is_none(), "a device in the way");
                lose_device(found);
                found.device = Some(ObservedDevice {
                    index: 9,
                    up: false,
                    mac: device.mac,
                    mtu: device.mtu,
                    vxlan: Some(vxlan),
                });
            }
            Operation::DeleteDevice(_) => lose_device(found),
            Operation::SetMtu(_, mtu) => found.device.as_mut().unwrap().mtu = mtu,
            Operation::SetMac(_, mac) => {
                found.device.as_mut().unwrap().mac = mac;
                found.neighbors.clear();
            }
            Operation::SetOuter(_, parent, local) => {
                let vxlan = found.device.as_mut().unwrap().vxlan.as_mut().unwrap();
                (vxlan.parent, vxlan.local, vxlan.learning) = (parent, Some(local), false);
            }
            Operation::SetUp(_) => found.device.as_mut().unwrap().up = true,
            Operation::AddAddress(_, address) => assert!(found.addresses.insert(address)),
            Operation::DeleteAddress(_, address) => assert!(found.addresses.remove(&address)),
            Operation::PutNeighbor(_, address, mac) => {
                found.neighbors.insert(address, mac);
            }
            Operation::DeleteNeighbor(_, address) => {
                found.neighbors.remove(&address).unwrap();
            }
            Operation::PutForwarding(_, mac, node) => {
                found.fdb.retain(|(other, _)| *other != mac);
                assert!(!found.odd_fdb.contains(&mac), "an entry of another kind");
                found.fdb.insert((mac, node));
            }
            Operation::DeleteForwarding(_, mac) => {
                let before = found.fdb.len() + found.odd_fdb.len();
                found.fdb.retain(|(other, _)| *other != mac);
                found.odd_fdb.remove(&mac);
                assert!(
                    found.fdb.len() + found.odd_fdb.len() < before,
                    "nothing to delete"
                );
            }
            Operation::MakeNexthop(_, id) => {
                assert!(!found.foreign_nexthops.contains(&id), "somebody else's");
                assert!(found.nexthops.insert(id));
            }
            Operation::MoveNexthop(_, id) => {
                assert!(found.misplaced_nexthops.remove(&id));
                assert!(found.nexthops.insert(id));
            }
            Operation::DeleteNexthop(_, id) => {
                assert!(found.nexthops.remove(&id) || found.misplaced_nexthops.remove(&id));
                let names_it = |route: &ObservedRoute| route.way == Some(Way::Nexthop(id));
                found.routes.retain(|route| !names_it(route));
            }
            Operation::PutRoute(_, destination, way) => {
                assert!(
                    found.device.as_ref().unwrap().up,
                    "the kernel takes no route through a device that is down"
                );
                if let Way::Tunnel(gateway) = way {
                    assert!(
                        found.neighbors.contains_key(&gateway),
                        "a route before its neighbor"
                    );
                }
                if let Way::Nexthop(id) = way {
                    assert!(found.nexthops.contains(&id), "a route before its nexthop");
                }
                // The kernel replaces the first route with this destination and metric, and leaves the others.
                let new = route(destination, way);
                let same = |old: &&ObservedRoute| {
                    (old.destination, old.metric) == (destination, new.metric)
                };
                let replaced = found.rivals.iter().chain(&found.routes).find(same).cloned();
                if let Some(replaced) = replaced {
                    found.rivals.remove(&replaced);
                    found.routes.remove(&replaced);
                }
                found.routes.insert(new);
            }
            Operation::DeleteRoute(_, route) => {
                assert!(found.routes.remove(&route) || found.rivals.remove(&route));
            }
        }
    }
}

/// Changes any state to the wanted one: a pass creates the device, one fills it, one corrects what only then is visible.
fn settle(wanted: &Tunnel, found: &mut ObservedTunnel) {
    for _ in 0..3 {
        let steps = difference(wanted, found, Deletions::Allowed).unwrap();
        carry_out(found, &steps);
    }
    assert_eq!(difference(wanted, found, Deletions::Allowed).unwrap(), []);
    assert_eq!(found.after(wanted).as_ref(), Some(&*found));
}

fn settled(wanted: &Tunnel) -> ObservedTunnel {
    let mut found = ObservedTunnel::default();
    settle(wanted, &mut found);
    found
}

#[test]
fn two_passes_build_everything_and_a_third_has_no_steps() {
    for family in Family::ALL {
        let wanted = tunnel(&cluster(5), family);
        let found = settled(&wanted);
        assert_eq!(
            (found.routes.len(), found.neighbors.len(), found.fdb.len()),
            (4, 4, 4)
        );
        assert!(
            found
                .device
                .is_some_and(|device| device.up && device.mac == wanted.device.mac)
        );
    }
}

#[test]
fn nothing_is_deleted_while_deletions_are_held() {
    let found = settled(&tunnel(&cluster(5), Family::Ip));
    let fewer = tunnel(&cluster(2), Family::Ip);
    assert_eq!(difference(&fewer, &found, Deletions::Held).unwrap(), []);
    assert_eq!(stale(&fewer, &found), (3, 4));
    assert_eq!(
        difference(&fewer, &found, Deletions::Allowed)
            .unwrap()
            .len(),
        9
    );
}

#[test]
fn changed_mac_restores_all_neighbors_in_the_same_steps() {
    let wanted = tunnel(&cluster(5), Family::Ip);
    let mut found = settled(&wanted);
    found.device.as_mut().unwrap().mac = Mac([2, 0, 0, 0, 0, 9]);
    let steps = difference(&wanted, &found, Deletions::Allowed).unwrap();
    assert_eq!(steps.len(), 5);
    assert!(matches!(steps[0], Operation::SetMac(..)));
}

#[test]
fn foreign_route_to_a_pod_cidr_is_replaced_not_deleted() {
    let wanted = tunnel(&cluster(2), Family::Ip);
    let mut found = settled(&wanted);
    let ours = found.routes.pop_first().unwrap();
    // flannel's: protocol boot.
    found.routes.insert(ObservedRoute {
        protocol: 3,
        ..ours.clone()
    });
    let steps = difference(&wanted, &found, Deletions::Allowed).unwrap();
    assert_eq!(
        steps,
        [Operation::PutRoute(9, ours.destination, ours.way.unwrap())]
    );
}

#[test]
fn a_device_that_cannot_be_changed_is_made_anew_once_listed() {
    let wanted = tunnel(&cluster(2), Family::Ip);
    let vxlan = |device: &mut ObservedDevice, change: fn(&mut ObservedVxlan)| {
        change(device.vxlan.as_mut().unwrap());
    };
    for what in ["kind", "VNI", "port", "remote", "outer family"] {
        let mut found = settled(&wanted);
        let device = found.device.as_mut().unwrap();
        match what {
            "kind" => device.vxlan = None,
            "VNI" => vxlan(device, |vxlan| vxlan.vni = 2),
            "port" => vxlan(device, |vxlan| vxlan.port = 4789),
            "remote" => vxlan(device, |vxlan| vxlan.remote = vxlan.local),
            _ => vxlan(device, |vxlan| vxlan.local = "2001:db8::1".parse().ok()),
        }
        assert_eq!(
            difference(&wanted, &found, Deletions::Held),
            Err(Mismatch { what })
        );
        settle(&wanted, &mut found);
    }
}

#[test]
fn better_and_longer_foreign_routes_are_named_and_left() {
    let wanted = tunnel(&cluster(3), Family::Ip6);
    let mut found = settled(&wanted);
    let rival = |destination: &str, metric| ObservedRoute {
        destination: destination.parse().unwrap(),
        metric,
        way: None,
        protocol: 4,
    };
    let (better, longer) = (
        rival("fd00:244:0:1::/64", 100),
        rival("fd00:244:0:2:8000::/65", 0),
    );
    // The same destination and metric, a worse metric, and other destinations.
    let others = [
        rival("fd00:244:0:1::/64", 0),
        rival("fd00:244:0:1::/64", 2000),
        rival("fd00:244::/32", 0),
    ];
    found.rivals.extend([better.clone(), longer.clone()]);
    found.rivals.extend(others.clone());
    assert_eq!(found.overriding(&wanted), [&better, &longer]);
    let steps = difference(&wanted, &found, Deletions::Allowed).unwrap();
    assert_eq!(steps, [Operation::DeleteRoute(9, others[0].clone())]);
}

#[test]
fn many_ipv4_routes_use_nexthops_but_no_foreign_one() {
    let mut cluster = cluster(5);
    cluster.config.nexthops_above = 3;
    let wanted = tunnel(&cluster, Family::Ip);
    let taken = u32::from_be_bytes([10, 244, 2, 0]);
    let mut found = ObservedTunnel {
        foreign_nexthops: BTreeSet::from([taken]),
        ..ObservedTunnel::default()
    };
    settle(&wanted, &mut found);
    let plain = |route: &&ObservedRoute| matches!(route.way, Some(Way::Tunnel(_)));
    assert_eq!((found.nexthops.len(), found.routes.len()), (3, 4));
    assert_eq!(found.routes.iter().filter(plain).count(), 1);
    // With few peers again, plain routes replace those with objects, then the objects are deleted.
    cluster.config.nexthops_above = 4;
    settle(&tunnel(&cluster, Family::Ip), &mut found);
    assert!(found.nexthops.is_empty() && found.routes.iter().all(|route| plain(&route)));
    cluster.config.nexthops_above = 0;
    assert!(!tunnel(&cluster, Family::Ip6).nexthops);
}

proptest! {
    /// The steps lead from any cluster to any other, whatever foreign changes come between.
    #[test]
    fn any_state_settles_to_any_plan(
        before in 1u8..12, after in 1u8..12, broken in any::<[bool; 14]>(), direct: bool, blackhole: bool, family in 0usize..2,
        above in any::<[u8; 2]>(), foreign in prop::collection::btree_set(0u8..12, 0..4),
    ) {
        let family = Family::ALL[family];
        let (mut target, mut earlier) = (cluster(after), cluster(before));
        (target.config.direct_routing, target.config.blackhole) = (direct, blackhole);
        let addresses = target.nodes.iter().flat_map(|node| &node.addresses);
        target.surroundings.ways = addresses.map(|address| (*address, Some(OnLink(2)))).collect();
        target.nodes.reverse();
        (target.config.nexthops_above, earlier.config.nexthops_above) = (above[0] as usize % 12, above[1] as usize % 12);
        let mut found = ObservedTunnel {
            foreign_nexthops: foreign.iter().map(|n| u32::from_be_bytes([10, 244, *n, 0])).collect(),
            ..ObservedTunnel::default()
        };
        settle(&tunnel(&earlier, family), &mut found);
        let device = found.device.as_mut().unwrap();
        if broken[0] {
            (device.up, found.routes, found.neighbors) = (false, BTreeSet::new(), BTreeMap::new());
            found.nexthops.clear();
        }
        if broken[1] { (device.mac, found.neighbors) = (Mac([2, 0, 0, 0, 0, 9]), BTreeMap::new()) }
        if broken[2] { device.mtu = 1000 }
        if broken[3] { device.vxlan.as_mut().unwrap().local = None }
        if broken[4] { device.vxlan.as_mut().unwrap().learning = true }
        if broken[5] { (found.addresses, found.routes) = (BTreeSet::new(), BTreeSet::new()) }
        if broken[6] { found.fdb = found.fdb.iter().map(|(mac, outer)| (*mac, Outer { via: Some(9), ..*outer })).collect() }
        if broken[7] { found.device = None }
        if broken[8] {
            found.nexthops.clear();
            found.routes.retain(|route| !matches!(route.way, Some(Way::Nexthop(_))));
        }
        if broken[9] {
            let odd = found.fdb.pop_first();
            found.odd_fdb.extend(odd.map(|(mac, _)| mac));
            found.odd_fdb.insert(Mac([2, 0, 0, 0, 0, 8]));
        }
        if broken[10] {
            let rivals = found.routes.iter().map(|route| ObservedRoute { protocol: 4, way: None, ..route.clone() });
            found.rivals = rivals.collect();
        }
        if broken[11] { found.routes.clear() }
        if broken[12] && let Some(device) = &mut found.device { device.vxlan = None }
        if broken[13] {
            found.misplaced_nexthops.extend(std::mem::take(&mut found.nexthops));
            found.misplaced_nexthops.insert(u32::from_be_bytes([10, 244, 99, 0]));
        }
        settle(&tunnel(&target, family), &mut found);
    }
}
