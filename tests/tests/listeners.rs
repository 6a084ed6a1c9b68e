//! The listeners of a daemon among clients that are silent, slow, never read, or send garbage: other clients are answered, and changes
//! reach the kernel as before.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Node, scenario, wait_for, wait_until};
use portolan_tests::commands::document;
use portolan_tests::stage::{PATIENCE, Stage, service};
use serde_json::json;

/// Open connections to each address: more than it has places (256).
const HELD: usize = 300;
/// Open connections to the control socket, which has 32 places.
const HELD_COMMANDS: usize = 40;
/// Pause between two hostile connections.
const PACE: Duration = Duration::from_millis(2);
/// Changes while hostile clients are there.
const CHANGES: usize = 20;
/// No time-out of a listener is shorter than 2 s: a commit that waits for a client takes longer than this.
const LONGEST_COMMIT: f64 = 1.9;
const HEALTH_CHECK: u16 = 31_999;

/// What hostile clients send, and then nothing more: silence, half a request, requests whose answers are never read, and garbage.
const SENT: [&[u8]; 5] = [
    b"",
    b"GET /healthz HTTP/1.1\r\nHo",
    b"GET /v1/services HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PUT /v1/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf",
    b"\x16\x03\x01\xff\r\n\0\xfe\xff",
];

/// The same for ports, where this is the request whose body is waited for.
const SENT_TO_PORTS: [&[u8]; 5] = [
    SENT[0],
    SENT[1],
    SENT[2],
    b"PUT /debug/flags/v HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf",
    SENT[4],
];

/// Hostile clients, until this is dropped.
struct Hostile {
    is_over: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Hostile {
    fn start(node: &Node, addresses: &[SocketAddr]) -> Result<Hostile> {
        let mut hostile = Hostile {
            is_over: Arc::default(),
            made: Arc::default(),
            threads: Vec::new(),
        };
        for address in addresses.iter().copied() {
            hostile.hold(node, (HELD, &SENT_TO_PORTS), move || {
                TcpStream::connect(address)
            })?;
        }
        hostile.hold(node, (HELD_COMMANDS, &SENT), || {
            UnixStream::connect_addr(&net::SocketAddr::from_abstract_name("portolan")?)
        })?;
        Ok(hostile)
    }

    /// Holds this many connections, and replaces the oldest by a new one again and again.
    fn hold<C: Write + 'static>(
        &mut self,
        node: &Node,
        (count, sent): (usize, &'static [&'static [u8]]),
        connect: impl Fn() -> std::io::Result<C> + Send + 'static,
    ) -> Result<()> {
        let (is_over, made) = (self.is_over.clone(), self.made.clone());
        let thread = node.thread(move || {
            let mut held = VecDeque::new();
            for sent in sent.iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // A connection may be refused or cut off at any time.
                if let Ok(mut client) = connect() {
                    let _ = client.write_all(sent);
                    held.push_back(client);
                    made.fetch_add(1, Ordering::Relaxed);
                }
                if held.len() > count {
                    held.pop_front();
                }
                std::thread::sleep(PACE);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It asserts nothing.
            let _ = thread.join();
        }
    }
}

#[scenario(Nft)]
fn hostile_clients_of_all_listeners_delay_no_commit_or_answer() -> Result<()> {
    // The usual soft limit is 1024.
    let own = std::process::id().to_string();
    let mut raise = std::process::Command::new("prlimit");
    ensure!(
        raise
            .args(["--nofile=8192:", "--pid", &own])
            .status()?
            .success()
    );
    let stage = Stage::new()?;
    let mut objects = stage.objects(&stage.web, 0..4);
    objects[0]["spec"]["type"] = json!("LoadBalancer");
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    objects[0]["spec"]["healthCheckNodePort"] = json!(HEALTH_CHECK);
    stage.manifests.write_objects("web.yaml", &objects)?;
    let _daemon = stage.start_synced(&["--profiling"])?;
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let health_check = SocketAddr::new(stage.node.ipv4().into(), HEALTH_CHECK);
    let addresses = [loopback(10_256), loopback(10_249), health_check];
    let hostile = Hostile::start(&stage.node, &addresses)?;
    wait_until("more clients than places", PATIENCE, || {
        hostile.made.load(Ordering::Relaxed) > addresses.len() * HELD + HELD_COMMANDS
    })?;
    let other = service("other", 91);
    for change in 0..CHANGES {
        let pods = 1 + change % 3;
        stage.add(&other, 0..pods)?;
        stage.wait_for_backends(&other, pods)?;
    }
    for (address, path) in [
        (addresses[0], "/healthz"),
        (addresses[0], "/readyz"),
        (addresses[1], "/metrics"),
        (addresses[1], "/"),
        (addresses[1], "/v1/services"),
        (health_check, "/"),
    ] {
        wait_for(path, PATIENCE, || {
            let answer = stage.node.http_get(address, path)?;
            ensure!(
                answer.is_some_and(|(code, _)| code == 200),
                "{address}{path}"
            );
            Ok(())
        })?;
    }
    let made = hostile.made.load(Ordering::Relaxed);
    drop(hostile);
    // While all places of the control socket are taken, a command may be refused: only root and the daemon's user can take them.
    let status = wait_for("a command", PATIENCE, || {
        let (status, code) = document(&stage.node, &["status"])?;
        ensure!(code == 0, "{status}");
        Ok(status)
    })?;
    let latency = &status["services"]["commit_latency"];
    let longest = latency["longest_seconds"].as_f64().context("no latency")?;
    println!("{made} hostile connections, {latency}");
    ensure!(longest < LONGEST_COMMIT, "{latency}");
    Ok(())
}

/// Descriptors beyond those that the daemon has open once it serves.
const SPARE: usize = 3;

/// Open descriptors of a process.
fn open_files(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[scenario(Nft)]
fn clients_that_take_every_descriptor_stop_no_change() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let most = open_files(daemon.pid())? + SPARE;
    let (limit, pid) = (format!("--nofile={most}:{most}"), daemon.pid().to_string());
    let mut lower = std::process::Command::new("prlimit");
    ensure!(lower.args([&limit, "--pid", &pid]).status()?.success());
    let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_256));
    let clients = stage.node.run(move || {
        let connect = |_| TcpStream::connect(health);
        (0..4 * SPARE)
            .map(connect)
            .collect::<std::io::Result<Vec<_>>>()
    })??;
    wait_until("no descriptor is left", PATIENCE, || {
        open_files(daemon.pid()).is_ok_and(|open| open >= most)
    })?;
    for pods in [2, 4, 1] {
        for object in stage.objects(&stage.web, 0..pods) {
            api.apply(object)?;
        }
        stage.wait_for_backends(&stage.web, pods)?;
    }
    drop(clients);
    stage.wait_until_ready(&daemon)?;
    api.apply_all(stage.objects(&stage.web, 0..4))?;
    stage.wait_for_backends(&stage.web, 4)
}
