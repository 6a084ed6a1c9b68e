use netlink::messages;

use super::*;

fn put(n: u8) -> PeerChange {
    let peer = Peer {
        endpoint: SocketAddr::new(IpAddr::from([192, 0, 2, n]), 51820),
        addresses: [IpAddr::from([192, 0, 2, n]), "2001:db8::7".parse().unwrap()].into(),
    };
    PeerChange::Put(PublicKey([n; 32]), peer)
}

/// The attributes as one message, as the kernel would send them.
fn message(attributes: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.start(0x20, 0, 1, &SET_DEVICE);
    out.bytes.extend_from_slice(attributes);
    out.finish(start);
    out.bytes
}

fn read_all(parts: &[Vec<u8>]) -> ObservedDevice {
    let mut device = ObservedDevice::default();
    for part in parts {
        for message in messages(&message(part)) {
            read(&message.unwrap(), &mut device).unwrap();
        }
    }
    device
}

#[test]
fn what_is_written_of_a_device_reads_back() {
    let private = PrivateKey::from_random([7; 32]);
    let key = requests(&Step::SetKey(3, private.clone(), 51821)).unwrap();
    let peers = requests(&Step::ChangePeers(3, vec![put(1), put(2)])).unwrap();
    let device = read_all(&[key, peers].concat());
    assert_eq!(device.private, Some(private));
    assert_eq!((device.port, device.mark), (51821, 0));
    let PeerChange::Put(key, wanted) = put(2) else {
        unreachable!()
    };
    let found = &device.peers[&key];
    assert_eq!(found.endpoint, Some(wanted.endpoint));
    assert_eq!(
        (found.keepalive, found.has_preshared_key),
        (KEEPALIVE, false)
    );
    let whole = |address: &IpAddr| (*address, if address.is_ipv4() { 32 } else { 128 });
    assert_eq!(found.allowed, wanted.addresses.iter().map(whole).collect());
}

#[test]
fn a_thousand_peers_take_several_messages_of_64_kb_at_most() {
    let changes: Vec<PeerChange> = (0..1000_u32)
        .map(|n| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_ne_bytes());
            let addresses = (0..16_u16).map(|m| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, n as u16, m]));
            let peer = Peer {
                endpoint: "[2001:db8::1]:51820".parse().unwrap(),
                addresses: addresses.collect(),
            };
            PeerChange::Put(PublicKey(key), peer)
        })
        .collect();
    let requests = requests(&Step::ChangePeers(3, changes)).unwrap();
    assert_eq!(requests.len(), 1000_usize.div_ceil(PEERS_AT_ONCE));
    assert!(requests.iter().all(|request| request.len() < 60_000));
    assert_eq!(read_all(&requests).peers.len(), 1000);
}

#[test]
fn a_peer_that_continues_in_the_next_message_has_all_addresses() {
    let part = |address: [u8; 4]| {
        let mut out = start(3);
        out.nest(attribute::PEERS, |out| {
            out.nest(ITEM, |out| {
                out.put(peer::PUBLIC_KEY, &[9; 32]);
                out.nest(peer::ALLOWED_IPS, |out| {
                    out.nest(ITEM, |out| write_address(address.into(), out));
                });
            });
        });
        out.bytes
    };
    let device = read_all(&[part([192, 0, 2, 1]), part([192, 0, 2, 2])]);
    assert_eq!(device.peers[&PublicKey([9; 32])].allowed.len(), 2);
}

#[test]
fn mutated_device_messages_do_no_harm() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/device");
    let key = requests(&Step::SetKey(3, PrivateKey::from_random([7; 32]), 51821)).unwrap();
    let peers = requests(&Step::ChangePeers(3, vec![put(1), put(2)])).unwrap();
    let mut out = start(3);
    out.nest(attribute::PEERS, |out| {
        out.nest(ITEM, |out| {
            out.put(peer::PUBLIC_KEY, &[9; 32]);
            out.put(peer::LAST_HANDSHAKE, &[1; 16]);
            out.put(peer::RX_BYTES, &[1; 8]);
            out.put(peer::TX_BYTES, &[2; 8]);
        });
    });
    let bytes: Vec<u8> = [key.concat(), peers.concat(), out.bytes].concat();
    fuzz::fuzz(&corpus, [message(&bytes)], |bytes| {
        let mut device = ObservedDevice::default();
        let mut results = Vec::new();
        for message in messages(bytes).flatten() {
            results.push(read(&message, &mut device).is_ok());
        }
        fuzz::outcome((results, device.peers.len(), device.port))
    });
}

#[test]
fn the_time_of_a_handshake_is_read_and_zero_is_never() {
    let bytes = |seconds: i64, nanoseconds: i64| {
        [seconds.to_ne_bytes(), nanoseconds.to_ne_bytes()].concat()
    };
    assert_eq!(time(&bytes(0, 0)), Ok(None));
    let time = time(&bytes(1_700_000_000, 5)).unwrap();
    assert_eq!(time, Some(Duration::new(1_700_000_000, 5)));
}
