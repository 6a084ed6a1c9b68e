//! A new TCP connection through a Service among many, beside the same connection straight to the pod.
//!
//! A client pod on one node, a server pod on another, the table on the client's node, as in a cluster. Only
//! `connect` is timed, from the first packet to the server's answer; the server accepts between the samples, on the
//! same thread, so that nothing competes for the processor. All kinds take turns, so that what disturbs one
//! disturbs the others.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use criterion::{BenchmarkId, Criterion};
use lab::{Lab, Node as LabNode, Pod};
use nft::{Kernel, KernelConfig};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, accept, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use portolan_benches::{Node, Report, Row, Samples, Shape, microseconds, quick, ratio, wanted};
use service_dataplane::layout;
use service_model::{EndpointSlice, SlicePort};

const GROUP: &str = "new connection through a Service";
/// Ports of the server pod from here on: one for each endpoint of the Service under test.
const FIRST_PORT: u16 = 8_000;
/// Sockets that are made at a time: a visit to the client's namespace costs more than a connection.
const SOCKETS: usize = 256;
/// The cluster IP's port.
const SERVICE_PORT: u16 = 80;

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let mut report = Report::default();
    let services = if quick() { 100 } else { 30_000 };
    for endpoints in [1, 10, 40].into_iter().filter(|_| wanted(GROUP)) {
        compare(
            &mut criterion,
            &mut report,
            Shape::new(services, 10),
            endpoints,
        )?;
    }
    criterion.final_summary();
    report.print();
    Ok(())
}

fn compare(
    criterion: &mut Criterion,
    report: &mut Report,
    shape: Shape,
    endpoints: u16,
) -> Result<()> {
    let (_lab, near, mut bench) = Bench::new(shape, endpoints)?;
    // The same once more, on nodes that no table has ever been on.
    let (_bare_lab, _, mut bare) = Bench::new(shape, endpoints)?;
    bench.load(&near)?;
    for _ in 0..30 * endpoints {
        bench.connect_to_service()?;
        bare.connect_to_pod()?;
    }
    ensure!(
        bench.reached.iter().all(|reached| *reached > 0),
        "not every endpoint is reached: {:?}",
        bench.reached
    );
    let (mut direct, mut through, mut failure) = (Samples::new(), Samples::new(), None);
    let mut untouched = Samples::new();
    let mut each = || -> Result<Duration> {
        untouched.push(bare.connect_to_pod()?);
        direct.push(bench.connect_to_pod()?);
        let elapsed = bench.connect_to_service()?;
        through.push(elapsed);
        Ok(elapsed)
    };
    let mut group = criterion.benchmark_group(GROUP);
    group.bench_function(
        BenchmarkId::new(format!("{endpoints} endpoints"), shape),
        |bencher| {
            bencher.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        each().unwrap_or_else(|error| {
                            failure.get_or_insert(error);
                            Duration::from_nanos(1)
                        })
                    })
                    .sum()
            });
        },
    );
    group.finish();
    failure.map_or(Ok(()), Err)?;
    report.row(Row {
        quantity: format!(
            "new connection through a Service of {endpoints} endpoints among {}",
            shape.services
        ),
        target: "<= 1.15 x straight to the pod".into(),
        measured: microseconds(through.median()),
        floor: format!(
            "{} straight to the pod; {} with no table at all",
            microseconds(direct.median()),
            microseconds(untouched.median())
        ),
        ratio: format!(
            "{}; {}",
            ratio(through.median(), direct.median()),
            ratio(through.median(), untouched.median())
        ),
    });
    Ok(())
}

/// A client, a server with a listener for each endpoint, and the Service between them.
struct Bench {
    client: Pod,
    server: Ipv4Addr,
    listeners: Vec<OwnedFd>,
    /// Connections that arrived through the Service, by listener.
    reached: Vec<usize>,
    shape: Shape,
    /// Its index in the shape: one in the middle.
    service: u32,
    /// Keeps the table: it is owned by the socket.
    node: Option<Node<Kernel>>,
    turn: usize,
    /// Of the client, not yet connected.
    sockets: Vec<OwnedFd>,
}

impl Bench {
    /// Two nodes with a pod each; the client's comes back too.
    fn new(shape: Shape, endpoints: u16) -> Result<(Lab, LabNode, Self)> {
        let lab = Lab::new()?;
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        let (client, server) = (near.pod("client")?, far.pod("server")?);
        let address = server.ipv4();
        let listeners = server.run(move || {
            (0..endpoints)
                .map(|e| listening(address, FIRST_PORT + e))
                .collect()
        })?;
        let listeners: Result<Vec<OwnedFd>> = listeners;
        let bench = Bench {
            client,
            server: address,
            listeners: listeners?,
            reached: vec![0; usize::from(endpoints)],
            shape,
            service: shape.services / 2,
            node: None,
            turn: 0,
            sockets: Vec::new(),
        };
        Ok((lab, near, bench))
    }

    /// Puts the table on the client's node.
    fn load(&mut self, on: &LabNode) -> Result<()> {
        let config = KernelConfig {
            table: layout::TABLE.into(),
            owner: true,
        };
        let kernel = on.run(|| Kernel::open(config))??;
        let mut slices = self.shape.slices();
        let place = slices
            .get_mut(self.service as usize)
            .ok_or_else(|| anyhow!("no Service to connect to"))?;
        let ours = place.clone();
        let mut real = (0..)
            .zip(&self.listeners)
            .filter_map(|(e, _)| slice_of(&ours, self.server, e));
        *place = real.next().context("no endpoint")?;
        let rest: Vec<EndpointSlice> = real.collect();
        slices.extend(rest);
        let mut node = Node::new(kernel, self.shape.facts());
        node.list(self.shape.services(), slices)?;
        self.node = Some(node);
        Ok(())
    }

    fn connect_to_pod(&mut self) -> Result<Duration> {
        self.turn = (self.turn + 1) % self.listeners.len();
        let to = SocketAddrV4::new(self.server, FIRST_PORT + self.turn as u16);
        Ok(self.connect(to)?.0)
    }

    fn connect_to_service(&mut self) -> Result<Duration> {
        let (elapsed, listener) = self.connect(SocketAddrV4::new(
            self.shape.cluster_ip(self.service),
            SERVICE_PORT,
        ))?;
        if let Some(reached) = self.reached.get_mut(listener) {
            *reached += 1;
        }
        Ok(elapsed)
    }

    /// Connects, and accepts: how long the first took, and which listener it came to.
    fn connect(&mut self, to: SocketAddrV4) -> Result<(Duration, usize)> {
        if self.sockets.is_empty() {
            let made: Result<Vec<OwnedFd>> = self
                .client
                .run(|| (0..SOCKETS).map(|_| stream()).collect())?;
            self.sockets = made?;
        }
        let client = self.sockets.pop().context("no socket")?;
        let to = SockaddrIn::from(to);
        let start = Instant::now();
        connect(client.as_raw_fd(), &to).context("connect")?;
        let elapsed = start.elapsed();
        let mut fds: Vec<PollFd<'_>> = self
            .listeners
            .iter()
            .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::from(1000_u16))?;
        let listener = fds
            .iter()
            .position(|fd| fd.any() == Some(true))
            .context("nobody was connected to")?;
        let accepted = self
            .listeners
            .get(listener)
            .map(|listener| accept(listener.as_raw_fd()))
            .context("gone")??;
        nix::unistd::close(accepted)?;
        Ok((elapsed, listener))
    }
}

/// A slice of the same Service whose one endpoint is the `e`th port of the server pod.
fn slice_of(ours: &EndpointSlice, server: Ipv4Addr, e: u16) -> Option<EndpointSlice> {
    let mut slice = ours.clone();
    slice.name.name = format!("{}-{e}", ours.name.name).into();
    slice.endpoints.truncate(1);
    slice.endpoints.first_mut()?.address = server.into();
    slice.ports = slice
        .ports
        .into_iter()
        .map(|port| SlicePort {
            port: FIRST_PORT + e,
            ..port
        })
        .collect();
    Some(slice)
}

/// A socket that resets its connection when it is closed, so that no port waits in TIME_WAIT.
fn stream() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(
        &socket,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )?;
    Ok(socket)
}

fn listening(address: Ipv4Addr, port: u16) -> Result<OwnedFd> {
    let socket = stream()?;
    bind(
        socket.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(address, port)),
    )?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}
