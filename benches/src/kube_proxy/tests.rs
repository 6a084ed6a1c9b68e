use super::*;
use crate::Sandbox;
use anyhow::Result;
use lab::{Capability, Lab, Protocol};

const NEEDED: &[Capability] = &[
    Capability::Namespaces,
    Capability::Setpriv,
    Capability::Veth,
    Capability::Nft,
];

fn count(listing: &str, what: &str) -> usize {
    listing.matches(what).count()
}

#[test]
fn every_service_and_endpoint_is_in_the_layout_that_nft_loads() -> Result<()> {
    if !lab::require(NEEDED) {
        return Ok(());
    }
    let shape = Shape::new(20, 3);
    let sandbox = Sandbox::new()?;
    sandbox.nft(&["-f", "-"], &load(shape))?;
    let (listing, _) = sandbox.nft_output(&["list", "table", "ip", "kube-proxy"], "")?;
    assert_eq!(count(&listing, "numgen random mod 3 map"), 20);
    for service in 0..20 {
        let key = format!("{} . tcp . 80 : goto service-", shape.cluster_ip(service));
        assert_eq!(count(&listing, &key), 1, "{key}");
        for endpoint in 0..3 {
            let value = format!(" : {} . 8080", shape.endpoint(service, endpoint));
            assert_eq!(count(&listing, &value), 1, "{value}");
        }
    }
    Ok(())
}

#[test]
fn a_change_replaces_one_endpoint_and_nothing_else() -> Result<()> {
    if !lab::require(NEEDED) {
        return Ok(());
    }
    let shape = Shape::new(7, 4);
    let sandbox = Sandbox::new()?;
    sandbox.nft(&["-f", "-"], &load(shape))?;
    let (before, _) = sandbox.nft_output(&["list", "table", "ip", "kube-proxy"], "")?;
    sandbox.nft(&["-f", "-"], &change(shape, 5))?;
    let (after, _) = sandbox.nft_output(&["list", "table", "ip", "kube-proxy"], "")?;
    let (service, endpoint, address) = shape.change(5);
    let old = shape.endpoint(service, endpoint).to_string();
    assert_ne!(before, after);
    assert_eq!(
        before.replace(&format!("{old} . 8080"), &format!("{address} . 8080")),
        after
    );
    Ok(())
}

#[test]
fn the_layout_carries_connections() -> Result<()> {
    if !lab::require(NEEDED) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let node = lab.node("node")?;
    let (client, web) = (node.pod("client")?, node.pod("web")?);
    web.serve(Protocol::Tcp, TARGET_PORT)?;
    let cluster_ip = Shape::new(1, 1).cluster_ip(0);
    let mut commands = BASE.replace("@TABLE", TABLE);
    add_service(
        &mut commands,
        "service-ABCDEFGH-a/b/tcp/http",
        cluster_ip,
        &[web.ipv4()],
    );
    node.nft_stdin(&commands)?;
    let outcome = client.connect(Protocol::Tcp, (cluster_ip, PORT))?;
    assert_eq!(outcome.server(), Some("web:8080"));
    Ok(())
}
