//! The addresses of this node's interfaces, followed over rtnetlink.
//!
//! Node ports may be served on interface addresses (`--nodeport-addresses` with CIDRs). kube-proxy lists them once an
//! hour; here an address serves as soon as the kernel has it. A notification only leads to a new list, so lost
//! notifications (ENOBUFS) are safe. Addresses of the loopback interface and link-local IPv6 addresses are skipped:
//! other nodes cannot reach them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use futures::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;

use crate::parts::Parts;

/// The loopback interface of every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;
/// Addresses that come together (an interface going up) are listed together.
const SETTLE: Duration = Duration::from_millis(5);
/// After the netlink socket failed.
const RETRY: Duration = Duration::from_secs(1);
/// The kernel answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the first list is tried.
const ATTEMPTS: u32 = 5;

/// Lists the addresses, sorted, and follows them.
pub async fn follow(parts: &Parts) -> anyhow::Result<watch::Receiver<Vec<IpAddr>>> {
    let (mut connection, addresses) = open_patiently().await?;
    let (sender, receiver) = watch::channel(addresses);
    parts.task(
        "node-addresses",
        &tokio::runtime::Handle::current(),
        async move {
            loop {
                if let Err(error) = connection.follow(&sender).await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot follow interface addresses; retrying"
                    );
                }
                loop {
                    tokio::time::sleep(RETRY).await;
                    if let Ok((again, addresses)) = Connection::open().await {
                        connection = again;
                        publish(&sender, addresses);
                        break;
                    }
                }
            }
        },
    );
    Ok(receiver)
}

async fn open_patiently() -> anyhow::Result<(Connection, Vec<IpAddr>)> {
    for _ in 1..ATTEMPTS {
        match Connection::open().await {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot list interface addresses; retrying");
            }
        }
    }
    Connection::open().await
}

/// An rtnetlink socket that receives address changes. Closed when dropped.
struct Connection {
    handle: Handle,
    changes: Box<dyn Stream<Item = ()> + Send + Unpin>,
    _closed_on_drop: tokio_util::task::AbortOnDropHandle<()>,
}

impl Connection {
    /// Opens the socket, then lists, so that a change in between is received.
    async fn open() -> anyhow::Result<(Self, Vec<IpAddr>)> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (socket, handle, changes) =
            rtnetlink::new_multicast_connection(&groups).context("opening an rtnetlink socket")?;
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(socket));
        let addresses = list(&handle).await?;
        let connection = Connection {
            handle,
            changes: Box::new(changes.map(|_| ())),
            _closed_on_drop: task,
        };
        Ok((connection, addresses))
    }

    /// Publishes every change; returns when the socket fails.
    async fn follow(&mut self, sender: &watch::Sender<Vec<IpAddr>>) -> anyhow::Result<()> {
        loop {
            self.changes
                .next()
                .await
                .context("the rtnetlink socket failed")?;
            let mut settled = pin!(tokio::time::sleep(SETTLE));
            loop {
                tokio::select! {
                    () = &mut settled => break,
                    change = self.changes.next() => change.context("the rtnetlink socket failed")?,
                }
            }
            publish(sender, list(&self.handle).await?);
        }
    }
}

async fn list(handle: &Handle) -> anyhow::Result<Vec<IpAddr>> {
    list_within(handle, ANSWER).await
}

/// Notifications that overrun the socket can take a part of the answer along, its end for instance: then nothing more comes.
async fn list_within(handle: &Handle, limit: Duration) -> anyhow::Result<Vec<IpAddr>> {
    let listed = tokio::time::timeout(limit, read(handle)).await;
    listed.context("the kernel's list of interface addresses does not end")?
}

async fn read(handle: &Handle) -> anyhow::Result<Vec<IpAddr>> {
    let mut messages = handle.address().get().execute();
    let mut addresses = BTreeSet::new();
    while let Some(message) = messages
        .try_next()
        .await
        .context("listing interface addresses")?
    {
        addresses.extend(serving(&message));
    }
    Ok(addresses.into_iter().collect())
}

fn publish(sender: &watch::Sender<Vec<IpAddr>>, addresses: Vec<IpAddr>) {
    sender.send_if_modified(|known| {
        let changed = *known != addresses;
        if changed {
            let listed: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            tracing::debug!(addresses = listed.join(" "), "interface addresses changed");
            *known = addresses;
        }
        changed
    });
}

/// The address of a message, if other nodes may reach it.
fn serving(message: &AddressMessage) -> Option<IpAddr> {
    if message.header.index == LOOPBACK {
        return None;
    }
    // On a point-to-point link `Address` is the peer's and `Local` this node's; elsewhere both are this node's, or only
    // one is present.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    let address = local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })?;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!link_local && !address.is_loopback()).then_some(address)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Runs in a network namespace of its own: a thread of its own enters it.
    fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("the tests run as root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
        })
        .join()
        .unwrap();
    }

    fn ip(words: &str) {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    async fn until(addresses: &mut watch::Receiver<Vec<IpAddr>>, expected: &[&str]) {
        let expected: Vec<IpAddr> = expected.iter().map(|a| a.parse().unwrap()).collect();
        let found = tokio::time::timeout(
            Duration::from_secs(5),
            addresses.wait_for(|a| *a == expected),
        )
        .await;
        assert!(found.is_ok(), "not in time: {expected:?}");
    }

    #[test]
    fn a_list_that_never_ends_is_an_error() {
        in_namespace(|| async {
            // Nobody receives what the kernel answers.
            let (_socket, handle, _) = rtnetlink::new_connection().unwrap();
            let listed = list_within(&handle, Duration::from_millis(50));
            assert!(listed.await.is_err());
        });
    }

    #[test]
    fn addresses_are_followed_but_loopback_and_link_local() {
        in_namespace(|| async {
            ip("link set lo up");
            ip("address add 192.0.2.99/32 dev lo");
            ip("link add d0 type bridge");
            ip("address add 192.0.2.2/24 dev d0");
            ip("address add fe80::1/64 dev d0");
            ip("link set d0 up");
            let mut addresses = follow(&crate::parts::parts(CancellationToken::new()).0)
                .await
                .unwrap();
            until(&mut addresses, &["192.0.2.2"]).await;
            ip("address add 2001:db8::1/64 dev d0 nodad");
            ip("address add 192.0.2.1/24 dev d0");
            until(&mut addresses, &["192.0.2.1", "192.0.2.2", "2001:db8::1"]).await;
            ip("address del 192.0.2.2/24 dev d0");
            until(&mut addresses, &["2001:db8::1"]).await;
        });
    }

    #[test]
    fn a_point_to_point_link_has_its_local_address() {
        in_namespace(|| async {
            ip("link add d0 type bridge");
            ip("address add 192.0.2.1 peer 192.0.2.7/32 dev d0");
            let addresses = follow(&crate::parts::parts(CancellationToken::new()).0)
                .await
                .unwrap();
            assert_eq!(
                *addresses.borrow(),
                ["192.0.2.1".parse::<IpAddr>().unwrap()]
            );
        });
    }
}
