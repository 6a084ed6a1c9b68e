//! Health-check ports for load balancers (`healthCheckNodePort`; type LoadBalancer with externalTrafficPolicy Local).
//!
//! The control loop passes on what Services need once it is committed ([`Announcer`]); a part on the HTTP thread listens
//! and answers. Each port of a Service on each address is a listener of its own: one that cannot be bound is reported,
//! disturbs no other, and is retried until it is bound or no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{setsockopt, sockopt};
use service_dataplane::Update;
use service_model::{Family, HealthCheck, ObjectName};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::bind::bind;
use crate::config::LiveNodeConfig;
use crate::events::{Recorder, Severity, Subject};
use crate::http::{Asked, Reply, accept, health_check};
use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::parts::{Parts, Tasks};
use crate::status::SharedStatus;

/// Name of the part.
const PART: &str = "health-checks";

/// Changes of what to listen on.
#[derive(Debug, Default)]
struct Change {
    /// A Service's health check, or none any more.
    services: BTreeMap<ObjectName, Option<HealthCheck>>,
    /// The addresses to listen on, if they changed.
    addresses: Option<Vec<IpAddr>>,
}

/// Passes committed health checks on to the listeners.
#[derive(Debug)]
pub struct Announcer {
    config: LiveNodeConfig,
    /// The health checks that the listeners know.
    announced: BTreeMap<ObjectName, HealthCheck>,
    addresses: Vec<IpAddr>,
    /// Health checks that are planned but not committed.
    planned: BTreeMap<ObjectName, Option<HealthCheck>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// What the listeners answer from and report to.
#[derive(Clone)]
pub struct HealthReports {
    /// Health of the proxy.
    pub status: Arc<SharedStatus>,
    /// Counts listeners, and those whose first bind failed.
    pub metrics: Arc<Metrics>,
    /// Creates Events for those.
    pub recorder: Recorder,
}

/// Starts listening on a runtime.
pub fn start(
    parts: &Parts,
    runtime: &Handle,
    config: LiveNodeConfig,
    reports: HealthReports,
) -> Announcer {
    let (changes, receiver) = mpsc::unbounded_channel();
    let listeners = Listeners {
        tasks: parts.tasks(PART),
        reports,
        wanted: BTreeMap::new(),
        addresses: Vec::new(),
        open: BTreeMap::new(),
    };
    parts.task(PART, runtime, async {
        listeners.run(receiver).await;
        Ok(())
    });
    Announcer {
        config,
        announced: BTreeMap::new(),
        addresses: Vec::new(),
        planned: BTreeMap::new(),
        changes,
    }
}

impl Observer for Announcer {
    fn planned(&mut self, updates: &[Update]) {
        for Update { service, intent } in updates {
            let wanted = intent.as_ref().and_then(|i| i.health_check.as_ref());
            if wanted.is_some() || self.announced.contains_key(service) {
                self.planned.insert(service.clone(), wanted.cloned());
            } else {
                self.planned.remove(service);
            }
        }
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        let mut services = std::mem::take(&mut self.planned);
        services.retain(|service, wanted| self.announced.get(service) != wanted.as_ref());
        for (service, wanted) in &services {
            match wanted {
                Some(wanted) => self.announced.insert(service.clone(), wanted.clone()),
                None => self.announced.remove(service),
            };
        }
        let addresses = self
            .config
            .borrow()
            .listening_addresses(&commit.facts.node_addresses);
        let addresses = (addresses != self.addresses).then(|| {
            self.addresses.clone_from(&addresses);
            addresses
        });
        if !services.is_empty() || addresses.is_some() {
            let change = Change {
                services,
                addresses,
            };
            // The receiver is gone only when the daemon is ending.
            let _ = self.changes.send(change);
        }
    }
}

/// One port of a Service on one address.
type Socket = (ObjectName, SocketAddr);

/// A socket that is bound, or retried.
struct Open {
    local_endpoints: Arc<AtomicUsize>,
    task: AbortOnDropHandle<()>,
}

struct Listeners {
    tasks: Tasks,
    reports: HealthReports,
    wanted: BTreeMap<ObjectName, HealthCheck>,
    addresses: Vec<IpAddr>,
    open: BTreeMap<Socket, Open>,
}

impl Listeners {
    async fn run(mut self, mut changes: mpsc::UnboundedReceiver<Change>) {
        while let Some(change) = changes.recv().await {
            let mut changed = BTreeSet::new();
            self.apply(change, &mut changed);
            while let Ok(change) = changes.try_recv() {
                self.apply(change, &mut changed);
            }
            // A port may pass from one Service to another.
            for service in &changed {
                self.close(service).await;
            }
            for service in &changed {
                self.open(service);
            }
        }
    }

    fn apply(&mut self, change: Change, changed: &mut BTreeSet<ObjectName>) {
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

    /// The addresses of a Service's health check, with the number of local endpoints to report at each. At an address of a
    /// family that the Service lacks, those of its other family: a load balancer may ask a node at either address, as
    /// Kubernetes' own test does.
    fn addresses(&self, service: &ObjectName) -> BTreeMap<SocketAddr, usize> {
        let Some(wanted) = self.wanted.get(service) else {
            return BTreeMap::new();
        };
        let any = wanted.local_endpoints.values().next();
        let local = |address: &IpAddr| {
            let local = wanted.local_endpoints.get(&Family::of(*address)).or(any)?;
            Some((SocketAddr::new(*address, wanted.port), *local))
        };
        self.addresses.iter().filter_map(local).collect()
    }

    /// Closes the sockets that are no longer wanted, with their connections, and waits until they are closed.
    async fn close(&mut self, service: &ObjectName) {
        let wanted = self.addresses(service);
        let is_gone = |(of, at): &Socket| of == service && !wanted.contains_key(at);
        let gone = self.open.extract_if(.., |socket, _| is_gone(socket));
        for ((service, address), open) in gone.collect::<Vec<_>>() {
            open.task.abort();
            let _ = open.task.await;
            debug!(%service, %address, "health check closed");
        }
    }

    /// Opens the sockets that are wanted, and updates those that are open.
    fn open(&mut self, service: &ObjectName) {
        for (address, local) in self.addresses(service) {
            let socket = (service.clone(), address);
            if let Some(open) = self.open.get(&socket) {
                open.local_endpoints.store(local, Ordering::Relaxed);
                continue;
            }
            let local_endpoints = Arc::new(AtomicUsize::new(local));
            let serving = serve(
                socket.clone(),
                local_endpoints.clone(),
                self.reports.clone(),
            );
            let open = Open {
                local_endpoints,
                task: self.tasks.spawn(serving),
            };
            self.open.insert(socket, open);
        }
    }
}

/// Binds the socket, retrying, and serves forever.
async fn serve(socket: Socket, local: Arc<AtomicUsize>, reports: HealthReports) {
    let (service, address) = socket.clone();
    let report = |error: &std::io::Error| report(&socket, error, &reports);
    let listener = bind(|| std::future::ready(listen(address)), report).await;
    info!(%service, %address, "health check listening");
    let _counted = Listening::new(reports.metrics.clone());
    let status = reports.status.clone();
    let answers = move |_: Asked<'_>| -> Reply {
        health_check(&service, local.load(Ordering::Relaxed), &status.load()).into()
    };
    accept(listener, Arc::new(answers)).await;
}

/// A listening socket, as the metric counts it.
struct Listening(Arc<Metrics>);

impl Listening {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.health_check_listeners(1);
        Listening(metrics)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.health_check_listeners(-1);
    }
}

fn report((service, address): &Socket, error: &std::io::Error, reports: &HealthReports) {
    warn!(%service, %address, %error, "cannot bind health check port; retrying every second");
    reports.metrics.health_check_failed();
    // kube-proxy's reason and action.
    let (reason, action) = ("FailedToStartServiceHealthcheck", "Listen");
    let note = format!("failed to start the health check of {service} at {address}: {error}");
    let subject = Subject::Service(service.clone());
    reports
        .recorder
        .record(subject, Severity::Warning, (reason, action), &note);
}

/// IPv6 sockets do not include IPv4. An address that the node does not have yet is no failure: the address may be added
/// later, or the kernel still checks it for duplicates.
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
