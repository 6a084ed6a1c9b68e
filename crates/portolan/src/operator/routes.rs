//! The node's addresses and routes at this moment, over rtnetlink: for traces only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio_util::task::AbortOnDropHandle;

/// Addresses and interfaces, and a socket for routes.
pub(super) struct Network {
    /// All addresses of all interfaces.
    pub(super) addresses: Vec<IpAddr>,
    interfaces: BTreeMap<u32, Arc<str>>,
    handle: Handle,
    _closed_on_drop: AbortOnDropHandle<()>,
}

/// The kernel's route for a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// The outgoing interface.
    pub(super) interface: Option<Arc<str>>,
    /// The source address that the kernel selects.
    pub(super) source: Option<IpAddr>,
    /// The next hop; `None` for a destination on the link.
    pub(super) gateway: Option<IpAddr>,
}

impl Network {
    /// Lists addresses and interfaces.
    pub(super) async fn open() -> Result<Network> {
        let (socket, handle, _) =
            rtnetlink::new_connection().context("opening an rtnetlink socket")?;
        let task = AbortOnDropHandle::new(tokio::spawn(socket));
        let mut addresses = Vec::new();
        let mut listed = handle.address().get().execute();
        while let Some(message) = listed.try_next().await.context("listing addresses")? {
            let attributes = message.attributes.iter();
            addresses.extend(attributes.filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) | AddressAttribute::Local(address) => {
                    Some(*address)
                }
                _ => None,
            }));
        }
        let mut interfaces = BTreeMap::new();
        let mut listed = handle.link().get().execute();
        while let Some(message) = listed.try_next().await.context("listing interfaces")? {
            let mut attributes = message.attributes.iter();
            let name = attributes.find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(Arc::from(name.as_str())),
                _ => None,
            });
            interfaces.extend(name.map(|name| (message.header.index, name)));
        }
        Ok(Network {
            addresses,
            interfaces,
            handle,
            _closed_on_drop: task,
        })
    }

    /// The route to an address; `None` if there is none.
    pub(super) async fn route(&self, to: IpAddr) -> Option<Route> {
        let width = if to.is_ipv4() { 32 } else { 128 };
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, width)
            .ok()?
            .build();
        let mut found = self.handle.route().get(message).execute();
        let message = found.try_next().await.ok()??;
        let mut route = Route::default();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.interface = self.interfaces.get(index).cloned(),
                RouteAttribute::PrefSource(source) => route.source = ip(source),
                RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
                _ => {}
            }
        }
        Some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
