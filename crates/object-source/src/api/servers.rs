//! The API servers of one cluster, and which of them is asked first.
//!
//! All answer for the same cluster with the same objects, so any of them will do: the one that answered last is asked
//! first, and the others are tried in turn when it cannot be connected to. The servers that the configuration names
//! come first; those that the cluster names follow ([`super::remembered`]) and change with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arc_swap::ArcSwap;

use super::remembered::Memory;
use super::server::{Server, Template};

/// The clock difference before the first answer.
const UNKNOWN: i64 = i64::MIN;

/// The known API servers, in the order in which to ask them.
pub(super) struct Servers {
    known: ArcSwap<Known>,
    /// Builds further servers from addresses and remembers the addresses; `None` if the configuration names the one server.
    learning: Option<(Template, Memory)>,
    has_answered: AtomicBool,
    /// This node's clock minus that of the server that answered last, in seconds, or [`UNKNOWN`].
    clock: AtomicI64,
}

#[derive(Clone)]
struct Known {
    configured: Arc<[Arc<Server>]>,
    learned: Arc<[Arc<Server>]>,
    addresses: Arc<[SocketAddr]>,
    /// URL of the server to ask first.
    first: Arc<str>,
}

impl Known {
    fn all(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.configured.iter().chain(self.learned.iter())
    }
}

impl Servers {
    /// Begins with the configured servers and those that `learning` remembers.
    pub(super) fn new(configured: Vec<Server>, learning: Option<(Template, Memory)>) -> Servers {
        let configured: Arc<[Arc<Server>]> = configured.into_iter().map(Arc::new).collect();
        let first = configured.first().map(|server| server.url.clone());
        let known = Known {
            configured,
            learned: Arc::default(),
            addresses: Arc::default(),
            first: first.unwrap_or_default(),
        };
        let servers = Servers {
            known: ArcSwap::from_pointee(known),
            learning,
            has_answered: AtomicBool::new(false),
            clock: AtomicI64::new(UNKNOWN),
        };
        if let Some((_, memory)) = &servers.learning {
            servers.add(&memory.read());
        }
        servers
    }

    /// All servers, in the order in which to ask them.
    pub(super) fn in_turn(&self) -> Vec<Arc<Server>> {
        let known = self.known.load();
        let mut servers: Vec<_> = known.all().cloned().collect();
        let first = servers.iter().position(|server| server.url == known.first);
        servers.rotate_left(first.unwrap_or(0));
        servers
    }

    /// A server answered: it is asked first from now on.
    pub(super) fn answered(&self, server: &Server) {
        self.has_answered.store(true, Ordering::Relaxed);
        self.ask_first(&server.url);
    }

    /// A server could not be reached, or is silent: if it was asked first, the next one is asked first from now on.
    pub(super) fn failed(&self, server: &Server) {
        let order = self.in_turn();
        if let [first, next, ..] = order.as_slice()
            && first.url == server.url
        {
            self.ask_first(&next.url);
        }
    }

    fn ask_first(&self, url: &Arc<str>) {
        if self.known.load().first != *url {
            tracing::info!(server = %url, "the next requests go to this API server");
            self.known.rcu(|known| Known {
                first: url.clone(),
                ..Known::clone(known)
            });
        }
    }

    /// A server has told its time, which this node's clock differs from by so many seconds.
    pub(super) fn tells_time(&self, difference: i64) {
        self.clock.store(difference, Ordering::Relaxed);
    }

    /// The latest difference.
    pub(super) fn clock_difference(&self) -> Option<i64> {
        let difference = self.clock.load(Ordering::Relaxed);
        (difference != UNKNOWN).then_some(difference)
    }

    /// Whether any server has answered since the start.
    pub(super) fn have_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// Replaces the learned servers by those at `addresses`, and writes the addresses to disk.
    pub(super) fn learn(&self, addresses: &[SocketAddr]) {
        let Some((_, memory)) = &self.learning else {
            return;
        };
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        if *self.known.load().addresses == *sorted && *memory.read() == *sorted {
            return;
        }
        self.add(&sorted);
        let memory = memory.clone();
        tokio::task::spawn_blocking(move || memory.write(&sorted));
    }

    fn add(&self, addresses: &[SocketAddr]) {
        let Some((template, _)) = &self.learning else {
            return;
        };
        let known = self.known.load_full();
        let mut learned = Vec::new();
        for address in addresses {
            let url = template.url(*address);
            let earlier = known.all().find(|server| server.url == url);
            match earlier {
                Some(server) if known.configured.iter().any(|c| c.url == server.url) => {}
                Some(server) => learned.push(server.clone()),
                None => match template.server(*address) {
                    Ok(server) => learned.push(Arc::new(server)),
                    Err(error) => {
                        tracing::warn!(%address, "cannot use this API server: {error:#}");
                    }
                },
            }
        }
        let (learned, addresses): (Arc<[_]>, Arc<[_]>) = (learned.into(), addresses.into());
        self.known.rcu(|known| Known {
            learned: learned.clone(),
            addresses: addresses.clone(),
            ..Known::clone(known)
        });
    }
}
