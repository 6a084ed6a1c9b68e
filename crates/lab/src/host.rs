//! What nodes, pods and clients have in common: a namespace with two addresses, in which servers
//! listen, packets start and processes run. How hosts are linked is `topology`'s.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::address::Pair;
use crate::echo::Server;
use crate::namespace::{Namespace, Sysctl};
use crate::probe::{Outcome, Probe, Tally};
use crate::process::Daemon;
use crate::socket::Protocol;
use crate::traffic::{ConnectionStream, Held};
use crate::wait::wait_for;
use crate::{command, lock};

/// Port of the health checks of Portolan (and of kube-proxy) unless a flag says otherwise.
pub const HEALTH_PORT: u16 = 10256;
/// Limit for one HTTP request.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

const fn setting(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl {
        path,
        value,
        optional: false,
    }
}

/// Settings of every namespace, made before its links, which start with the values of `default`.
const HOST_SETTINGS: &[Sysctl] = &[
    setting("ipv4/conf/all/rp_filter", "0"),
    setting("ipv4/conf/default/rp_filter", "0"),
    // A node may well forward out of the link a packet came by; routes shall not change for it.
    setting("ipv4/conf/all/send_redirects", "0"),
    setting("ipv4/conf/default/send_redirects", "0"),
    setting("ipv4/conf/all/accept_redirects", "0"),
    setting("ipv4/conf/default/accept_redirects", "0"),
    setting("ipv6/conf/all/accept_redirects", "0"),
    setting("ipv6/conf/default/accept_redirects", "0"),
    // Addresses are ours and differ: no second of waiting for duplicates.
    setting("ipv6/conf/all/accept_dad", "0"),
    setting("ipv6/conf/default/accept_dad", "0"),
    setting("ipv6/conf/default/accept_ra", "0"),
    // Every refused packet is to be answered; the kernel's limit is six at once, then one a second
    // (net/ipv4/icmp.c, net/ipv6/icmp.c). An empty mask exempts all types from the global limit too.
    setting("ipv4/icmp_ratelimit", "0"),
    setting("ipv4/icmp_ratemask", "0"),
    setting("ipv6/icmp/ratelimit", "0"),
    Sysctl {
        path: "ipv6/icmp/ratemask",
        value: "0",
        optional: true,
    },
];

/// Settings of namespaces that forward packets.
pub(crate) const FORWARDING: &[Sysctl] = &[
    setting("ipv4/ip_forward", "1"),
    setting("ipv6/conf/all/forwarding", "1"),
];

/// A machine of the lab, as far as nodes, pods and clients are alike.
pub struct Host {
    addresses: Pair,
    /// Before `namespace`, so that its sockets are closed first.
    servers: Mutex<BTreeMap<(Protocol, u16), Server>>,
    namespace: Namespace,
}

impl Host {
    /// A namespace with its settings made, and no link yet.
    pub(crate) fn new(name: &str, addresses: Pair) -> Result<Host> {
        let namespace = Namespace::new(name)?;
        namespace.sysctl(HOST_SETTINGS)?;
        Ok(Host {
            addresses,
            servers: Mutex::default(),
            namespace,
        })
    }

    /// A namespace that exists, with the addresses of its `eth0`: a pod of a real cluster, for instance. Changes nothing in it.
    pub fn entered(name: &str, file: &Path, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Host> {
        Ok(Host {
            addresses: Pair { v4, v6 },
            servers: Mutex::default(),
            namespace: Namespace::entered(name, file)?,
        })
    }

    /// Ends servers and children and gives the namespace up.
    pub(crate) fn close(&self) {
        lock(&self.servers).clear();
        self.namespace.close();
    }

    /// The name given by the test.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// The IPv4 address of its `eth0`.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses.v4
    }

    /// The IPv6 address of its `eth0`.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses.v6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.addresses.v4.into(), self.addresses.v6.into()]
    }

    /// The network namespace, to run code in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `job` inside and waits for its value. See [`Namespace::run`].
    pub fn run<T, F>(&self, job: F) -> Result<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.namespace.run(job)
    }

    /// Starts a thread inside. See [`Namespace::thread`].
    pub fn thread<T, F>(&self, work: F) -> Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.namespace.thread(work)
    }

    /// Serves on `port` of both addresses as `NAME:PORT`, until the host is gone or
    /// [`Host::stop_serving`].
    pub fn serve(&self, protocol: Protocol, port: u16) -> Result<()> {
        let addresses = self
            .addresses()
            .map(|address| SocketAddr::new(address, port));
        match lock(&self.servers).entry((protocol, port)) {
            Entry::Occupied(_) => bail!("{:?} serves {protocol} {port} already", self.name()),
            Entry::Vacant(entry) => {
                entry.insert(Server::start(
                    &self.namespace,
                    self.name(),
                    protocol,
                    &addresses,
                )?);
                Ok(())
            }
        }
    }

    /// Closes a server with its connections; attempts after the return are refused.
    pub fn stop_serving(&self, protocol: Protocol, port: u16) -> Result<()> {
        let Some(server) = lock(&self.servers).remove(&(protocol, port)) else {
            bail!("{:?} does not serve {protocol} {port}", self.name());
        };
        drop(server);
        Ok(())
    }

    /// Connects once to an echo server.
    pub fn connect(&self, protocol: Protocol, to: impl Into<SocketAddr>) -> Result<Outcome> {
        self.probe(Probe::new(protocol, to))
    }

    pub fn probe(&self, probe: Probe) -> Result<Outcome> {
        self.run(move || probe.send())?
    }

    /// Sends one attempt that others shall not wait for.
    pub fn probe_aside(&self, probe: Probe) -> Result<JoinHandle<Result<Outcome>>> {
        self.thread(move || probe.send())
    }

    /// Connects `count` times, one after another.
    pub fn connect_many(
        &self,
        protocol: Protocol,
        to: impl Into<SocketAddr>,
        count: usize,
    ) -> Result<Tally> {
        let probe = Probe::new(protocol, to);
        self.run(move || {
            let mut tally = Tally::default();
            for _ in 0..count {
                tally.add(probe.send()?);
            }
            Ok(tally)
        })?
    }

    /// Opens `count` long TCP connections to an echo server; each exchanges a number every `every`.
    pub fn hold(&self, to: impl Into<SocketAddr>, count: usize, every: Duration) -> Result<Held> {
        Held::start(&self.namespace, to.into(), count, every)
    }

    /// Starts connecting anew again and again, `every` after the attempt before has ended.
    pub fn stream_connections(&self, probe: Probe, every: Duration) -> Result<ConnectionStream> {
        ConnectionStream::start(&self.namespace, probe, every)
    }

    /// A command for [`Host::output`], [`Host::spawn`] or [`Host::start`], to which arguments can be added. Started in
    /// another way it would run outside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command::command(program)
    }

    /// Runs a command to its end.
    pub fn output(&self, command: Command) -> Result<Output> {
        self.namespace.output(command, "")
    }

    /// Starts a command as a daemon; messages call it `name`.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Daemon> {
        Daemon::start(&self.namespace, name, command)
    }

    /// Starts a command with the streams that it has; the caller waits for its end.
    pub fn start(&self, command: Command) -> Result<Child> {
        self.namespace.spawn(command)
    }

    /// Starts a program as a daemon.
    pub fn spawn_daemon<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Daemon> {
        let name = program.as_ref().to_string_lossy().into_owned();
        let mut command = self.command(program);
        command.args(arguments);
        self.spawn(&name, command)
    }

    /// Sends an HTTP GET request. Returns status code and body, or `None` when the port refuses the connection.
    pub fn http_get(&self, to: SocketAddr, path: &str) -> Result<Option<(u16, String)>> {
        // To HTTP/1.0 nobody answers in chunks.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n");
        self.run(move || {
            let mut stream = match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("connect to {to}")),
            };
            stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
            let code = head.split(' ').nth(1).context("no code")?.parse()?;
            Ok(Some((code, body.to_owned())))
        })?
    }

    /// Waits until `/readyz` at this port of the loopback address answers 200. An error when `daemon` exits first.
    pub fn wait_until_ready(&self, daemon: &Daemon, port: u16, timeout: Duration) -> Result<()> {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let ready = || {
            let answer = self.http_get(to, "/readyz")?;
            ensure!(
                matches!(answer, Some((200, _))),
                "/readyz of {} answers {answer:?}",
                self.name()
            );
            Ok(())
        };
        // The first of the two to come true ends the wait.
        wait_for("the daemon to be ready", timeout, || {
            match daemon.is_running() {
                true => ready().map(|()| true),
                false => Ok(false),
            }
        })
        .and_then(|running| {
            ensure!(running, "the daemon has exited");
            Ok(())
        })
        .with_context(|| daemon.lines().join("\n"))
    }

    /// Runs `nft` inside and returns what it prints; its refusal is an error.
    pub fn nft(&self, arguments: &[&str]) -> Result<String> {
        let mut command = command::tool("nft");
        command.args(arguments);
        self.namespace.checked_output(command, "")
    }

    /// Loads a ruleset with `nft -f -` and returns what it prints.
    pub fn nft_stdin(&self, ruleset: &str) -> Result<String> {
        let mut command = command::tool("nft");
        command.args(["-f", "-"]);
        self.namespace.checked_output(command, ruleset)
    }
}
