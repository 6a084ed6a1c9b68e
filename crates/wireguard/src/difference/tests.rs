use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::key::PrivateKey;
use crate::state::Seal;

const NAME: &str = "portolan-wg";
const TABLE: u32 = 5182;
const NOW: Duration = Duration::from_secs(1_700_000_000);

fn peer(n: u8) -> (PublicKey, Peer) {
    let address = IpAddr::from([192, 0, 2, n]);
    let peer = Peer {
        endpoint: SocketAddr::new(address, 51820),
        addresses: [address].into(),
    };
    (PublicKey([n; 32]), peer)
}

fn wanted(seal: bool) -> Wanted {
    let device = Device {
        private: PrivateKey::from_random([1; 32]),
        port: 51820,
        mtu: 1440,
        table: TABLE,
        peers: [peer(1), peer(2)].into(),
        ready: true,
    };
    Wanted {
        devices: [(NAME, device)].into(),
        seal: seal.then_some(Seal {
            port: 8472,
            table: TABLE,
        }),
    }
}

/// A kernel as far as steps change it.
fn apply(found: &mut Observed, steps: &[Step]) {
    for step in steps {
        let at = |found: &mut Observed, index: u32| {
            let mut names = found.devices.iter();
            let name = names.find(|(_, device)| device.index == index);
            name.map(|(name, _)| name.clone())
                .expect("the device is there")
        };
        match step {
            Step::CreateDevice(name, mtu) => {
                let device = ObservedDevice {
                    index: 7,
                    is_wireguard: true,
                    mtu: *mtu,
                    rp_filter: Some(1),
                    ..ObservedDevice::default()
                };
                found.devices.insert((*name).to_owned(), device);
            }
            Step::DeleteDevice(index, name) => {
                found.devices.remove(name);
                found.routes.retain(|(_, _, through)| through != index);
            }
            Step::AddRoute(family, table, index) => {
                if *index != UNREACHABLE {
                    let name = at(found, *index);
                    assert!(found.devices[&name].up, "the network is down");
                }
                found.routes.insert((*family, *table, *index));
            }
            Step::DeleteRoute(family, table, index) => {
                found.routes.remove(&(*family, *table, *index));
            }
            Step::AddRule(family, rule) => drop(found.rules.insert((*family, rule.clone()))),
            Step::DeleteRule(family, rule) => drop(found.rules.remove(&(*family, rule.clone()))),
            Step::SetMtu(index, _)
            | Step::SetLooseFilter(index)
            | Step::AddAddress(index)
            | Step::SetKey(index, ..)
            | Step::ChangePeers(index, _)
            | Step::SetUp(index) => {
                let name = at(found, *index);
                change(found.devices.get_mut(&name).expect("a device"), step);
            }
        }
    }
}

fn change(device: &mut ObservedDevice, step: &Step) {
    match step {
        Step::SetMtu(_, mtu) => device.mtu = *mtu,
        Step::SetLooseFilter(_) => device.rp_filter = Some(2),
        Step::AddAddress(_) => device.has_address = true,
        Step::SetKey(_, private, port) => {
            (device.private, device.port, device.mark) = (Some(private.clone()), *port, 0);
        }
        Step::ChangePeers(_, changes) => {
            for change in changes {
                match change {
                    PeerChange::Put(key, peer) => {
                        let whole = |address: &IpAddr| (*address, 32);
                        let found = ObservedPeer {
                            endpoint: Some(peer.endpoint),
                            keepalive: KEEPALIVE,
                            allowed: peer.addresses.iter().map(whole).collect(),
                            ..ObservedPeer::default()
                        };
                        for other in device.peers.values_mut() {
                            other.allowed = &other.allowed - &found.allowed;
                        }
                        device.peers.insert(*key, found);
                    }
                    PeerChange::Remove(key) => drop(device.peers.remove(key)),
                }
            }
        }
        _ => device.up = true,
    }
}

fn settle(wanted: &Wanted, found: &mut Observed) -> Vec<Step> {
    let mut all = Vec::new();
    for _ in 0..4 {
        let steps = difference(wanted, found, Deletions::Allowed, NOW);
        apply(found, &steps);
        all.extend(steps);
    }
    assert_eq!(difference(wanted, found, Deletions::Allowed, NOW), []);
    all
}

#[test]
fn a_device_has_its_peers_before_it_is_up_and_routes_after() {
    let mut found = Observed::default();
    let steps = settle(&wanted(true), &mut found);
    let place = |is: fn(&Step) -> bool| steps.iter().position(is).expect("there is such a step");
    let seal = place(|step| matches!(step, Step::AddRule(_, Rule::Seal(_))));
    let create = place(|step| matches!(step, Step::CreateDevice(..)));
    let peers = place(|step| matches!(step, Step::ChangePeers(..)));
    let up = place(|step| matches!(step, Step::SetUp(_)));
    let last = place(|step| matches!(step, Step::AddRoute(_, _, UNREACHABLE)));
    let route = place(|step| matches!(step, Step::AddRoute(_, _, 7)));
    assert!(last < seal && seal < create && create < peers && peers < up && up < route);
}

#[test]
fn a_device_that_is_not_ready_stays_down() {
    let (mut wanted, mut found) = (wanted(false), Observed::default());
    wanted.devices.get_mut(NAME).unwrap().ready = false;
    settle(&wanted, &mut found);
    assert!(!found.devices[NAME].up && found.routes.is_empty());
}

#[test]
fn every_foreign_change_is_undone() {
    let wanted = wanted(true);
    let meddle: [fn(&mut Observed); 13] = [
        |found| found.devices.get_mut(NAME).unwrap().has_address = false,
        |found| drop(found.devices.remove(NAME)),
        |found| found.devices.get_mut(NAME).unwrap().is_wireguard = false,
        |found| found.devices.get_mut(NAME).unwrap().up = false,
        |found| found.devices.get_mut(NAME).unwrap().mtu = 1280,
        |found| found.devices.get_mut(NAME).unwrap().rp_filter = Some(1),
        |found| found.devices.get_mut(NAME).unwrap().private = None,
        |found| found.devices.get_mut(NAME).unwrap().mark = 5,
        |found| found.devices.get_mut(NAME).unwrap().port = 1,
        |found| drop(found.devices.get_mut(NAME).unwrap().peers.pop_first()),
        |found| {
            let peers = &mut found.devices.get_mut(NAME).unwrap().peers;
            peers.get_mut(&peer(1).0).unwrap().has_preshared_key = true;
            peers.get_mut(&peer(2).0).unwrap().allowed.clear();
            peers.insert(PublicKey([9; 32]), ObservedPeer::default());
        },
        |found| found.routes.clear(),
        |found| found.rules.clear(),
    ];
    for meddle in meddle {
        let mut found = Observed::default();
        settle(&wanted, &mut found);
        let before = found.clone();
        meddle(&mut found);
        assert!(!settle(&wanted, &mut found).is_empty());
        assert_eq!(found, before);
    }
}

#[test]
fn peers_stay_while_deletions_are_held() {
    let mut found = Observed::default();
    settle(&wanted(false), &mut found);
    let mut fewer = wanted(false);
    fewer.devices.get_mut(NAME).unwrap().peers.clear();
    assert_eq!(difference(&fewer, &found, Deletions::Held, NOW), []);
    assert!(!settle(&fewer, &mut found).is_empty());
}

#[test]
fn an_endpoint_is_set_again_only_for_a_silent_peer() {
    let mut found = Observed::default();
    settle(&wanted(false), &mut found);
    let elsewhere = "203.0.113.9:4000".parse().unwrap();
    let peers = &mut found.devices.get_mut(NAME).unwrap().peers;
    let moved = peers.get_mut(&peer(1).0).unwrap();
    moved.endpoint = Some(elsewhere);
    moved.last_handshake = Some(NOW - Duration::from_secs(100));
    assert_eq!(
        difference(&wanted(false), &found, Deletions::Allowed, NOW),
        []
    );
    let later = NOW + Duration::from_secs(300);
    let steps = difference(&wanted(false), &found, Deletions::Allowed, later);
    assert_eq!(steps.len(), 1);
}

#[test]
fn an_address_moves_to_the_peer_with_the_new_key() {
    let mut found = Observed::default();
    settle(&wanted(false), &mut found);
    let mut rekeyed = wanted(false);
    let peers = &mut rekeyed.devices.get_mut(NAME).unwrap().peers;
    let (old, moved) = peer(1);
    peers.remove(&old);
    peers.insert(PublicKey([11; 32]), moved);
    settle(&rekeyed, &mut found);
    assert!(!found.devices[NAME].peers.contains_key(&old));
}

#[test]
fn a_handshake_with_an_earlier_key_does_not_count() {
    let mut found = Observed::default();
    settle(&wanted(false), &mut found);
    for peer in found.devices.get_mut(NAME).unwrap().peers.values_mut() {
        peer.last_handshake = Some(NOW);
    }
    let mut rekeyed = wanted(false);
    rekeyed.devices.get_mut(NAME).unwrap().private = PrivateKey::from_random([2; 32]);
    settle(&rekeyed, &mut found);
    let mut peers = found.devices[NAME].peers.values();
    assert!(peers.all(|peer| peer.last_handshake.is_none()));
}

#[test]
fn nothing_is_left_when_nothing_is_wanted() {
    let mut found = Observed::default();
    settle(&wanted(true), &mut found);
    settle(&Wanted::default(), &mut found);
    assert_eq!(found, Observed::default());
}
