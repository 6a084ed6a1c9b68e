use super::*;
use crate::{Sandbox, Shape, encode};
use lab::Capability;
use nft::Operation;

#[test]
fn the_kernel_holds_a_key_for_every_endpoint_and_frontend() -> Result<()> {
    if !lab::require(&[Capability::Namespaces, Capability::Nft]) {
        return Ok(());
    }
    let shape = Shape::new(30, 4);
    let sandbox = Sandbox::new()?;
    let mut node = Node::new(sandbox.kernel()?, shape.facts());
    node.list(shape.services(), shape.slices())?;
    let (listing, _) = sandbox.nft_output(&["list", "map", "ip", "portolan", "backends"], "")?;
    for service in 0..30 {
        for endpoint in 0..4 {
            let value = format!(" : {} . 8080", shape.endpoint(service, endpoint));
            assert_eq!(listing.matches(&value).count(), 1, "{value}");
        }
    }
    let (listing, _) = sandbox.nft_output(&["list", "set", "ip", "portolan", "frontends_4"], "")?;
    assert_eq!(listing.matches(" . tcp . 80").count(), 30);
    Ok(())
}

#[test]
fn the_floor_makes_the_same_tables_as_the_node() -> Result<()> {
    if !lab::require(&[Capability::Namespaces, Capability::Nft]) {
        return Ok(());
    }
    let shape = Shape::new(20, 3);
    let (ours, floor) = (Sandbox::new()?, Sandbox::new()?);
    let mut node = Node::new(ours.kernel()?, shape.facts());
    node.dataplane.backend_mut().record = true;
    node.list(shape.services(), shape.slices())?;
    let mut slice = shape.slices().swap_remove(3);
    if let Some(endpoint) = slice.endpoints.get_mut(1) {
        endpoint.address = shape.change(0).2.into();
    }
    node.apply(slice)?;
    let bare = floor.bare()?;
    let recorded = std::mem::take(&mut node.dataplane.backend_mut().recorded);
    assert_eq!(recorded.len(), 2);
    for transaction in &recorded {
        bare.send(&encode(transaction)?)?;
    }
    let mut wanted = ours.kernel()?;
    let mut made = floor.kernel()?;
    for family in Family::ALL {
        assert_eq!(made.list(family)?, wanted.list(family)?);
    }
    assert!(recorded[0].element_count() > 20 * 4);
    assert!(recorded[1].operations.iter().all(|(_, step)| {
        matches!(
            step,
            Operation::AddElements { .. } | Operation::DeleteElements { .. }
        )
    }));
    Ok(())
}

#[test]
fn a_batch_the_kernel_refuses_is_no_sample() -> Result<()> {
    if !lab::require(&[Capability::Namespaces]) {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    transaction.push(Family::Ip, Operation::DeleteTable);
    assert!(
        Sandbox::new()?
            .bare()?
            .send(&encode(&transaction)?)
            .is_err()
    );
    Ok(())
}
