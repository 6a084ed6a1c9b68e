//! One contender on one cluster: the order in which it is measured, and what is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Daemon;

use super::contender::Contender;
use super::stage::Stage;
use super::usage::{Peak, Usage, family, resident};
use crate::samples::Samples;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Single changes.
    pub changes: u32,
    /// Between them; longer than the longest `minSyncPeriod`, so that none waits for the one before.
    pub pause: Duration,
    /// How long endpoints change all the time.
    pub churn: Duration,
    /// Changes a second then.
    pub rate: u32,
    /// The probing Service changes at this interval then, or as soon as the change before has been seen.
    pub probe_every: Duration,
    /// A start, or a change, that takes longer is not waited for.
    pub patience: Duration,
}

/// Changes of the probing Service and of the others are numbered apart; the first is what is there at first.
const FIRST_CHURN: u32 = 1;
/// A process is settled when it has used less than this in [`SETTLED_FOR`].
const SETTLED_USE: Duration = Duration::from_millis(30);
const SETTLED_FOR: Duration = Duration::from_millis(1500);

/// What came of one contender on one cluster.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Start of the process, with no rules there, until the last Service answered. `None`: longer than the patience,
    /// and nothing else was measured.
    pub cold: Option<Duration>,
    /// What the first start took, until the process had settled.
    pub cold_usage: Usage,
    /// Start of the process, with the rules of a killed one in place and one endpoint changed meanwhile, until a
    /// packet took the new way.
    pub restart: Option<Duration>,
    /// One endpoint changed on a quiet cluster, until a packet took the new way.
    pub change: Samples,
    /// The same while others change all the time.
    pub churn: Samples,
    /// What those changes took.
    pub churn_usage: Usage,
    /// For how long they went on.
    pub churn_time: Duration,
    /// The most memory that the process and its children ever had together, in bytes.
    pub peak: u64,
    /// What they had in the end, in bytes.
    pub resident: u64,
}

/// Takes a contender through everything, on a fresh stage.
pub fn measure(contender: &Contender, stage: &Stage, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut pod = 0;
    let start = Instant::now();
    let daemon = contender.start(stage.node(), &stage.kubeconfig())?;
    let peak = Peak::watch(daemon.pid())?;
    let Some(answered) = stage.wait_for_all(plan.patience)? else {
        ensure!(
            daemon.is_running(),
            "{} ended: {:?}",
            contender.name(),
            daemon.lines()
        );
        figures.peak = peak.bytes();
        return Ok(figures);
    };
    figures.cold = Some(answered - start);
    stage.wait_for_peers(plan.patience)?;
    settle(&daemon, plan.patience)?;
    figures.cold_usage = Usage::of(daemon.pid())?;

    for _ in 0..plan.changes {
        std::thread::sleep(plan.pause);
        figures.change.push(change_probe(stage, &mut pod, plan)?);
    }

    // The second process is measured to the end: one that found its rules there is the usual case.
    figures.peak = peak.bytes();
    drop(peak);
    daemon.kill()?;
    pod += 1;
    stage.change_probe(pod)?;
    let start = Instant::now();
    let daemon = contender.start(stage.node(), &stage.kubeconfig())?;
    let peak = Peak::watch(daemon.pid())?;
    let seen = stage
        .wait_for_probe(pod, plan.patience)?
        .with_context(|| format!("{} did not come back", contender.name()))?;
    figures.restart = Some(seen - start);
    settle(&daemon, plan.patience)?;

    let before = Usage::of(daemon.pid())?;
    let start = Instant::now();
    figures.churn = churn(stage, &mut pod, plan)?;
    figures.churn_time = start.elapsed();
    settle(&daemon, plan.patience)?;
    figures.churn_usage = Usage::of(daemon.pid())?.since(before);
    figures.peak = figures.peak.max(peak.bytes());
    figures.resident = resident(daemon.pid()) * 1024;
    stage.check_worst()?;
    Ok(figures)
}

/// One change of the probing Service, until a packet has taken the new way.
fn change_probe(stage: &Stage, pod: &mut u32, plan: &Plan) -> Result<Duration> {
    *pod += 1;
    let changed = stage.change_probe(*pod)?;
    let seen = stage
        .wait_for_probe(*pod, plan.patience)?
        .with_context(|| format!("change {pod} was not in force after {:?}", plan.patience))?;
    Ok(seen - changed)
}

/// Changes endpoints at the plan's rate from a thread of its own, and the probing Service beside it.
fn churn(stage: &Stage, pod: &mut u32, plan: &Plan) -> Result<Samples> {
    let over = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<()> {
            let step = Duration::from_secs(1) / plan.rate.max(1);
            for n in 0.. {
                let due = start + step * n;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if over.load(Ordering::Relaxed) {
                    break;
                }
                stage.change(FIRST_CHURN + n)?;
            }
            Ok(())
        });
        let mut samples = Samples::new();
        let probing = (|| -> Result<()> {
            while start.elapsed() < plan.churn {
                let next = Instant::now() + plan.probe_every;
                samples.push(change_probe(stage, pod, plan)?);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let changed = changing.join();
        probing?;
        changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(samples)
    })
}

/// Waits until the process has nothing more to do.
fn settle(daemon: &Daemon, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut used = Usage::of(daemon.pid())?;
    while Instant::now() < deadline {
        std::thread::sleep(SETTLED_FOR);
        let now = Usage::of(daemon.pid())?;
        // A child is counted when it has ended, so a busy one looks idle.
        if now.since(used).total() < SETTLED_USE && family(daemon.pid()).len() == 1 {
            return Ok(());
        }
        used = now;
    }
    Ok(())
}
