//! The released program as a process: memory, size, and the time from an edit or an event to the kernel.
//!
//! The same cluster from a folder of manifests and from an API server (a fake one, over HTTP on loopback). When
//! something is in the kernel is known from the kernel itself, by a second subscription to nftables changes. `folder` has
//! folders of few and of many files; their floor is the reading of the bytes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::fake_api::FakeApi;
use lab::{Daemon, HEALTH_PORT, Lab, Node};
use nft::{Backend, Family, Kernel, KernelConfig, Monitor, Notice};
use portolan_benches::{Report, Row, Samples, Shape, milliseconds, program, quick, wanted};
use service_dataplane::layout;

/// For the first commit.
const PATIENCE: Duration = Duration::from_secs(120);
/// Silence after which nothing more is thought to come of a change.
const QUIET: Duration = Duration::from_millis(50);
/// Memory is called steady after so long without an event.
const STEADY: Duration = Duration::from_secs(3);

/// Services in a file of manifests, about 40 kB.
const SERVICES_A_FILE: u32 = 10;

fn main() -> Result<()> {
    let mut report = Report::default();
    if wanted("process") {
        process(&mut report)?;
    }
    if wanted("folder") {
        folders(&mut report)?;
    }
    report.print();
    Ok(())
}

fn process(report: &mut Report) -> Result<()> {
    let program = program()?;
    let shape = if quick() {
        Shape::new(200, 10)
    } else {
        Shape::new(10_000, 10)
    };
    let changes = if quick() { 5 } else { 200 };
    let size = fs::metadata(&program)?.len();
    report.row(Row {
        quantity: "release binary".into(),
        target: "< 15 MB".into(),
        measured: format!("{:.1} MB", size as f64 / 1e6),
        ..Row::default()
    });

    let folder = tempfile::tempdir()?;
    shape.write_manifests(folder.path(), SERVICES_A_FILE)?;
    let mut run = Run::start(&program, shape, |_| {
        Ok(["--manifests".into(), folder.path().into()])
    })?;
    run.measure(report, "manifests", changes, "< 100 ms", |n| {
        change_manifest(shape, folder.path(), SERVICES_A_FILE, n)
    })?;
    drop(run);

    let mut api = None;
    let kubeconfig = folder.path().join("kubeconfig");
    let mut run = Run::start(&program, shape, |node| {
        let listener = node.run(|| TcpListener::bind(("127.0.0.1", 0)))??;
        let server = FakeApi::serve(listener)?;
        server.apply_all(shape.objects())?;
        server.kubeconfig(&kubeconfig)?;
        api = Some(server);
        Ok(["--kubeconfig".into(), kubeconfig.clone()])
    })?;
    let api = api.context("no API server")?;
    run.measure(report, "API server", changes, "", |n| {
        let (service, endpoint, address) = shape.change(n);
        let object = shape.slice_object(service, Some((endpoint, address)));
        let now = Instant::now();
        api.apply(object)?;
        Ok(now)
    })
}

/// Makes the `n`th change in a folder.
fn change_manifest(shape: Shape, folder: &Path, services_a_file: u32, n: u32) -> Result<Instant> {
    let (service, endpoint, address) = shape.change(n);
    shape.write_manifest(folder, services_a_file, service, |of| {
        (of == service).then_some((endpoint, address))
    })
}

/// Starts from folders of Services with one endpoint each, and edits of one Service in them.
fn folders(report: &mut Report) -> Result<()> {
    let program = program()?;
    let (all, changes) = if quick() { (100, 2) } else { (10_000, 20) };
    for (services, services_a_file, start, edit) in [
        (all, all, "<= 0.8 s", ""),
        (all, 1, "<= 0.8 s", ""),
        (all / 2, all / 2, "", "<= 100 ms"),
    ] {
        let (shape, folder) = (Shape::new(services, 1), tempfile::tempdir()?);
        shape.write_manifests(folder.path(), services_a_file)?;
        let (bytes, floor) = read_all(folder.path())?;
        let mut run = Run::start(&program, shape, |_| {
            Ok(["--manifests".into(), folder.path().into()])
        })?;
        let change = |n| change_manifest(shape, folder.path(), services_a_file, n);
        let samples = run.samples(changes, change)?;
        let megabytes = bytes as f64 / 1e6;
        let name = format!("folder of {services} Services, {services_a_file} a file");
        for (quantity, target, time) in [
            ("process start to first commit", start, run.started),
            ("edit of one to kernel", edit, samples.median()),
        ] {
            report.row(Row {
                quantity: format!("{name}, {megabytes:.0} MB: {quantity}"),
                target: target.into(),
                measured: milliseconds(time),
                floor: milliseconds(floor),
                ..Row::default()
            });
        }
    }
    Ok(())
}

/// The size of all files, and the time that it takes to read them.
fn read_all(folder: &Path) -> Result<(usize, Duration)> {
    let (start, mut bytes) = (Instant::now(), 0);
    for entry in fs::read_dir(folder)? {
        bytes += fs::read(entry?.path())?.len();
    }
    Ok((bytes, start.elapsed()))
}

/// A daemon that has committed its first list.
struct Run {
    shape: Shape,
    daemon: Daemon,
    monitor: Monitor,
    started: Duration,
    /// Last: it ends the others.
    _lab: Lab,
}

impl Run {
    fn start(
        program: &Path,
        shape: Shape,
        source: impl FnOnce(&Node) -> Result<[PathBuf; 2]>,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("node")?;
        let source = source(&node)?;
        let mut command = node.command(program);
        command.arg("run").args(source).args([
            "--hostname-override",
            "node-0",
            "--cluster-cidr",
            "10.128.0.0/9",
        ]);
        let start = Instant::now();
        let daemon = node.spawn("portolan", command)?;
        node.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        let started = start.elapsed();
        let (mut kernel, monitor) = node.run(|| -> Result<(Kernel, Monitor)> {
            let kernel = Kernel::open(KernelConfig {
                table: layout::TABLE.into(),
                owner: false,
            })?;
            let monitor = Monitor::open(layout::TABLE.into(), kernel.port())?;
            Ok((kernel, monitor))
        })??;
        let backends = kernel
            .list(Family::Ip)?
            .and_then(|table| table.elements.get("backends").map(Vec::len));
        let wanted = (shape.services * shape.endpoints) as usize;
        ensure!(
            backends == Some(wanted),
            "{backends:?} backends in the kernel, not {wanted}: {:?}",
            daemon.lines()
        );
        Ok(Run {
            shape,
            daemon,
            monitor,
            started,
            _lab: lab,
        })
    }

    /// Times from a change to the kernel.
    fn samples(
        &mut self,
        changes: u32,
        mut change: impl FnMut(u32) -> Result<Instant>,
    ) -> Result<Samples> {
        let mut samples = Samples::new();
        for n in 0..changes {
            while self.monitor.wait(QUIET)?.is_some() {}
            let start = change(n)?;
            match self.monitor.wait(PATIENCE)? {
                Some(Notice::Changed(_)) => samples.push(start.elapsed()),
                heard => bail!(
                    "after change {n} the kernel told {heard:?}: {:?}",
                    self.daemon.lines()
                ),
            }
        }
        Ok(samples)
    }

    fn measure(
        &mut self,
        report: &mut Report,
        source: &str,
        changes: u32,
        target: &str,
        change: impl FnMut(u32) -> Result<Instant>,
    ) -> Result<()> {
        let samples = self.samples(changes, change)?;
        std::thread::sleep(STEADY);
        let memory = Memory::of(self.daemon.pid())?;
        let shape = self.shape;
        report.row(Row {
            quantity: format!("{source}: process start to first commit, {shape}"),
            measured: milliseconds(self.started),
            ..Row::default()
        });
        report.row(Row {
            quantity: format!("{source}: change to kernel, {shape}"),
            target: target.into(),
            measured: format!(
                "{}, p99 {}",
                milliseconds(samples.median()),
                milliseconds(samples.p99())
            ),
            ..Row::default()
        });
        for (what, target, bytes) in [
            ("steady", "< 64 MiB", memory.resident),
            ("peak", "< 128 MiB", memory.peak),
        ] {
            report.row(Row {
                quantity: format!("{source}: {what} memory, {shape}"),
                target: target.into(),
                measured: format!("{:.1} MiB", bytes as f64 / 1024.0),
                ..Row::default()
            });
        }
        Ok(())
    }
}

/// Of a process, in KiB.
struct Memory {
    resident: u64,
    peak: u64,
}

impl Memory {
    fn of(pid: i32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .with_context(|| format!("no {name}"))?;
            let number = line
                .split_whitespace()
                .nth(1)
                .with_context(|| format!("no number in {line:?}"))?;
            Ok(number.parse()?)
        };
        Ok(Memory {
            resident: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
    }
}
