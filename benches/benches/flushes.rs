//! Foreign flushes where tables cannot be owned for good (Linux before 6.9): what established connections notice, and
//! how long new ones have to wait.
//!
//! The released program with `--without-features`, real packets from a pod to a pod through one Service among many, and
//! `nft flush ruleset` again and again. A new connection is tried again and again from the moment nft has ended. Between
//! two flushes is a rest, since one that comes back too often is taken for a fight and repaired at leisure.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::fake_api::FakeApi;
use lab::{HEALTH_PORT, Lab, Outcome, Pod, Probe, Protocol, TcpService, node_object, wait_until};
use portolan_benches::{Report, Row, Samples, Shape, milliseconds, program, quick, wanted};

const BENCH: &str = "foreign flushes";
/// For the first commit and for what a repair takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that are held through all flushes.
const HELD: usize = 100;
/// Between the exchanges of each.
const BEAT: Duration = Duration::from_millis(20);
/// So many times an outage passes before the next flush: repairs may take a fifth of the time.
const REST: u32 = 6;
/// An attempt that has no answer by then met the gap.
const ATTEMPT: Duration = Duration::from_millis(2);

fn main() -> Result<()> {
    if !wanted(BENCH) {
        return Ok(());
    }
    let program = program()?;
    let mut report = Report::default();
    let shapes = if quick() {
        vec![(Shape::new(50, 4), 3, "")]
    } else {
        vec![
            (Shape::new(1_000, 1), 100, "p99 < 20 ms"),
            (Shape::new(1_000, 10), 100, ""),
            (Shape::new(10_000, 10), 20, "p99 < 1.5 s"),
        ]
    };
    for (shape, flushes, target) in shapes {
        let flushed = Flushed::of(&program, shape, flushes)?;
        report.row(Row {
            quantity: format!("foreign flush without persistent tables, {shape}: a new connection is answered after"),
            target: target.into(),
            measured: format!(
                "{}, p99 {}, at most {} of {flushes}",
                milliseconds(flushed.outages.median()),
                milliseconds(flushed.outages.p99()),
                milliseconds(flushed.outages.max()),
            ),
            ..Row::default()
        });
        report.row(Row {
            quantity: format!("established connections lost by these flushes, {shape}"),
            target: "0".into(),
            measured: format!("{} of {HELD}", flushed.lost),
            ..Row::default()
        });
    }
    report.print();
    Ok(())
}

/// What flushes did.
struct Flushed {
    outages: Samples,
    lost: usize,
}

impl Flushed {
    fn of(program: &Path, shape: Shape, flushes: usize) -> Result<Flushed> {
        let lab = Lab::new()?;
        let (near, far) = (lab.node("node-0")?, lab.node("node-1")?);
        let (client, server) = (near.pod("client")?, far.pod("server")?);
        server.serve(Protocol::Tcp, 8080)?;
        let web = TcpService {
            name: "web".into(),
            cluster_ips: ["10.111.0.80".into(), "fd00:96::80".into()],
            port: 80,
            target_port: 8080,
            node_port: None,
        };
        let api = FakeApi::serve(near.run(|| TcpListener::bind(("127.0.0.1", 0)))??)?;
        api.apply_all(shape.objects())?;
        for node in [&near, &far] {
            api.apply(node_object(node))?;
        }
        api.apply(web.object())?;
        api.apply_all(web.slices(&[(&server, "node-1")]))?;
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        api.kubeconfig(&kubeconfig)?;
        let mut command = near.command(program);
        command.args(["run", "--hostname-override", "node-0", "--kubeconfig"]);
        command.arg(&kubeconfig);
        command.args(["--cluster-cidr", "10.128.0.0/9,fd00:244::/32"]);
        command.arg("--without-features=table-persist");
        let daemon = near.spawn("portolan", command)?;
        near.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;

        let to = SocketAddr::new(web.cluster_ips[0].parse()?, web.port);
        let held = client.hold(to, HELD, BEAT)?;
        let mut outages = Samples::new();
        for _ in 0..flushes {
            near.nft(&["flush", "ruleset"])?;
            let flushed = Instant::now();
            until_answered(&client, to)?;
            let outage = flushed.elapsed();
            outages.push(outage);
            std::thread::sleep(outage * REST);
            // Every held connection says something between two flushes.
            let before = held.report().exchanges;
            wait_until("held connections", PATIENCE, || {
                let report = held.report();
                report.exchanges >= before + 2 * HELD as u64 || !report.lost.is_empty()
            })?;
        }
        Ok(Flushed {
            outages,
            lost: held.stop().lost.len(),
        })
    }
}

fn until_answered(client: &Pod, to: SocketAddr) -> Result<()> {
    let start = Instant::now();
    let mut patience = ATTEMPT;
    while start.elapsed() < PATIENCE {
        let attempt = client.probe(Probe::new(Protocol::Tcp, to).within(patience));
        if let Outcome::Answered { .. } = attempt.context("connect")? {
            return Ok(());
        }
        // A machine that is slow to answer is given more time, in steps that blur an outage little.
        patience = (patience + ATTEMPT / 16).min(Duration::from_millis(50));
    }
    bail!("no new connection for {PATIENCE:?}")
}
