//! The ports where load balancers ask whether this node has endpoints of a Service (`healthCheckNodePort`; type
//! LoadBalancer with external policy Local).
//!
//! The control loop says what Services need ([`Announcer`]) once it stands in the kernel; a task beside the other ports
//! listens and answers. One port of a Service and one address are one listener: one that cannot be bound is reported,
//! disturbs no other, and is tried again until it can be or is not wanted any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use service_dataplane::Update;
use service_model::{Family, HealthCheck, NodeConfig, ObjectName};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::events::{Recorder, Severity, Subject};
use crate::http::{accept, health_check};
use crate::metrics::Metrics;
use crate::status::SharedStatus;

/// Between attempts to bind.
const RETRY: Duration = Duration::from_secs(1);

/// What changed for load balancers.
#[derive(Debug, Default)]
struct Change {
    /// A Service's port and endpoints, or none any more.
    services: BTreeMap<ObjectName, Option<HealthCheck>>,
    /// Where to listen, if that is elsewhere now.
    addresses: Option<Vec<IpAddr>>,
}

/// What the control loop tells.
#[derive(Debug)]
pub struct Announcer {
    config: NodeConfig,
    /// What the listeners know.
    told: BTreeMap<ObjectName, HealthCheck>,
    addresses: Vec<IpAddr>,
    /// What is planned, but not known to be in the kernel.
    planned: BTreeMap<ObjectName, Option<HealthCheck>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// What the listeners need to answer and to report.
pub struct Reports {
    /// Whether the proxy is well.
    pub status: Arc<SharedStatus>,
    /// Counts listeners, and those that could not be bound.
    pub metrics: Arc<Metrics>,
    /// Tells the cluster of those.
    pub recorder: Recorder,
}

/// Starts listening on a runtime, until `cancel`led.
pub fn start(
    runtime: &Handle,
    config: NodeConfig,
    reports: Reports,
    cancel: CancellationToken,
) -> Announcer {
    let (changes, receiver) = mpsc::unbounded_channel();
    let listeners = Listeners {
        reports,
        wanted: BTreeMap::new(),
        addresses: Vec::new(),
        open: BTreeMap::new(),
        failed: BTreeSet::new(),
    };
    runtime.spawn(cancel.run_until_cancelled_owned(listeners.run(receiver)));
    Announcer {
        config,
        told: BTreeMap::new(),
        addresses: Vec::new(),
        planned: BTreeMap::new(),
        changes,
    }
}

impl Announcer {
    /// Notes what Services need, to be told when it stands.
    pub fn plan(&mut self, updates: &[Update]) {
        for Update { service, intent } in updates {
            let wanted = intent.as_ref().and_then(|i| i.health_check.as_ref());
            if wanted.is_some() || self.told.contains_key(service) {
                self.planned.insert(service.clone(), wanted.cloned());
            } else {
                self.planned.remove(service);
            }
        }
    }

    /// The kernel has what was planned, but for Services that it `refused`: theirs is as before.
    pub fn announce<'a>(
        &mut self,
        refused: impl Iterator<Item = &'a ObjectName>,
        node_addresses: &[IpAddr],
    ) {
        let mut services = std::mem::take(&mut self.planned);
        for service in refused {
            services.remove(service);
        }
        services.retain(|service, wanted| self.told.get(service) != wanted.as_ref());
        for (service, wanted) in &services {
            match wanted {
                Some(wanted) => self.told.insert(service.clone(), wanted.clone()),
                None => self.told.remove(service),
            };
        }
        let addresses = self.config.listening_addresses(node_addresses);
        let addresses = (addresses != self.addresses).then(|| {
            self.addresses.clone_from(&addresses);
            addresses
        });
        if !services.is_empty() || addresses.is_some() {
            let change = Change {
                services,
                addresses,
            };
            // The listeners end with the process only.
            let _ = self.changes.send(change);
        }
    }
}

/// One port of a Service on one address.
type Place = (ObjectName, SocketAddr);

/// A port that is served.
struct Open {
    local_endpoints: Arc<AtomicUsize>,
    task: AbortOnDropHandle<()>,
}

struct Listeners {
    reports: Reports,
    wanted: BTreeMap<ObjectName, HealthCheck>,
    addresses: Vec<IpAddr>,
    open: BTreeMap<Place, Open>,
    /// To be tried again; reported already.
    failed: BTreeSet<Place>,
}

impl Listeners {
    async fn run(mut self, mut changes: mpsc::UnboundedReceiver<Change>) {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut changed = BTreeSet::new();
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.take(change, &mut changed),
                    None => return,
                },
                _ = retry.tick(), if !self.failed.is_empty() => {
                    changed.extend(self.failed.iter().map(|(service, _)| service.clone()));
                }
            }
            while let Ok(change) = changes.try_recv() {
                self.take(change, &mut changed);
            }
            // A port may pass from one Service to another.
            for service in &changed {
                self.close(service).await;
            }
            for service in &changed {
                self.open(service);
            }
            self.reports.metrics.set_health_checks(self.open.len());
        }
    }

    fn take(&mut self, change: Change, changed: &mut BTreeSet<ObjectName>) {
        for (service, wanted) in change.services {
            match wanted {
                Some(wanted) => self.wanted.insert(service.clone(), wanted),
                None => self.wanted.remove(&service),
            };
            changed.insert(service);
        }
        if let Some(addresses) = change.addresses {
            self.addresses = addresses;
            changed.extend(self.wanted.keys().cloned());
        }
    }

    /// Where a Service's port belongs, and what is said there.
    fn places(&self, service: &ObjectName) -> BTreeMap<SocketAddr, usize> {
        let Some(wanted) = self.wanted.get(service) else {
            return BTreeMap::new();
        };
        let place = |address: &IpAddr| {
            let local = wanted.local_endpoints.get(&Family::of(*address))?;
            Some((SocketAddr::new(*address, wanted.port), *local))
        };
        self.addresses.iter().filter_map(place).collect()
    }

    /// Closes what is not wanted any more, with its connections, and waits until it is closed.
    async fn close(&mut self, service: &ObjectName) {
        let places = self.places(service);
        let is_gone = |(of, at): &Place| of == service && !places.contains_key(at);
        self.failed.retain(|place| !is_gone(place));
        let gone = self.open.extract_if(.., |place, _| is_gone(place));
        for ((service, address), open) in gone.collect::<Vec<_>>() {
            open.task.abort();
            let _ = open.task.await;
            debug!(%service, %address, "health check closed");
        }
    }

    /// Opens what is wanted and not open yet; elsewhere says what is true now.
    fn open(&mut self, service: &ObjectName) {
        for (address, local) in self.places(service) {
            let place = (service.clone(), address);
            if let Some(open) = self.open.get(&place) {
                open.local_endpoints.store(local, Ordering::Relaxed);
                continue;
            }
            match listen(address) {
                Ok(listener) => {
                    info!(%service, %address, "health check listening");
                    self.failed.remove(&place);
                    self.open
                        .insert(place, self.serve(service, local, listener));
                }
                Err(error) => self.report(place, &error),
            }
        }
    }

    fn serve(&self, service: &ObjectName, local: usize, listener: TcpListener) -> Open {
        let local_endpoints = Arc::new(AtomicUsize::new(local));
        let (service, local) = (service.clone(), local_endpoints.clone());
        let status = self.reports.status.clone();
        let answers =
            move |_: &str| health_check(&service, local.load(Ordering::Relaxed), &status.load());
        let task = tokio::spawn(accept(listener, Arc::new(answers)));
        Open {
            local_endpoints,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Once, however often it is tried again.
    fn report(&mut self, place: Place, error: &std::io::Error) {
        let (service, address) = &place;
        if self.failed.contains(&place) {
            return;
        }
        warn!(%service, %address, %error, "cannot bind health check port; retrying every second");
        self.reports.metrics.health_check_failed();
        // kube-proxy's reason and action.
        let (reason, action) = ("FailedToStartServiceHealthcheck", "Listen");
        let note = format!("failed to start the health check of {service} at {address}: {error}");
        let subject = Subject::Service(service.clone());
        self.reports
            .recorder
            .tell(subject, Severity::Warning, (reason, action), &note);
        self.failed.insert(place);
    }
}

/// Sockets of IPv6 leave IPv4 to others. An address need not be there yet: one of the node's that comes later, or that
/// the kernel still looks for duplicates of, is no failure.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests;
