//! Leftovers of kube-proxy's IPVS mode are found where they are, and only there.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use lab::Namespace;
use portolan::takeover::ipvs::{DEVICE, Leftovers};

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn the_link_of_ipvs_mode_is_found_with_its_addresses() {
    if !lab::require(&[]) {
        return;
    }
    let (before, after) = Namespace::new("leftovers")
        .unwrap()
        .run(|| {
            let before = Leftovers::find().unwrap();
            // kube-proxy makes it of type dummy, which small kernels lack; what it is looks the same from here.
            let made = ["dummy", "bridge"]
                .into_iter()
                .any(|kind| ip(&["link", "add", DEVICE, "type", kind]));
            assert!(made, "no link of any kind");
            for address in ["10.96.0.1/32", "fd00:96::1/128"] {
                assert!(ip(&["addr", "add", address, "dev", DEVICE]));
            }
            (before, Leftovers::find().unwrap())
        })
        .unwrap();
    assert!(before.is_empty());
    assert!(after.device);
    let addresses: Vec<String> = after.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.1", "fd00:96::1"]);
}
