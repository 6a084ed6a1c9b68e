//! The API server restarts, forgets, and is away for minutes. Nothing but etcd and the API server runs here: objects
//! change when the test says so, and at no other time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{ControlPlane, Daemon, Outcome, scenario, wait_until};
use nft::TableContents;
use nix::sys::signal::Signal;
use portolan_tests::stage::{PATIENCE, Stage, service};
use portolan_tests::traffic::Traffic;

use crate::in_an_api_server;

/// Once the API server is back, Portolan has synced within this time.
const CONVERGENCE: Duration = Duration::from_secs(5);

/// Both tables of a node.
type Tables = [Option<TableContents>; 2];

/// A stage whose objects are in an API server, and Portolan, which watches them there.
struct Watched {
    daemon: Daemon,
    kubeconfig: String,
    plane: ControlPlane,
    stage: Stage,
}

impl Watched {
    fn start() -> Result<Watched> {
        let (stage, plane, kubeconfig) = in_an_api_server()?;
        let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
        stage.wait_until_ready(&daemon)?;
        stage.wait_for_backends(&stage.web, 4)?;
        Ok(Watched {
            daemon,
            kubeconfig,
            plane,
            stage,
        })
    }

    /// Gives `web` this number of backends, and waits until they are served.
    fn change_to(&self, backends: usize) -> Result<()> {
        let Watched { plane, stage, .. } = self;
        plane.apply_all(&stage.objects(&stage.web, 0..backends))?;
        stage.wait_for_backends(&stage.web, backends)
    }

    /// Kills Portolan, and starts it again.
    fn restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        let source = ["--kubeconfig", &self.kubeconfig];
        self.daemon = self.stage.start_with(&source, &[])?;
        Ok(())
    }

    /// Checks repeatedly, for this time, that the tables do not change.
    fn nothing_changes(&self, before: &Tables, during: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < during {
            ensure!(
                self.stage.tables()? == *before,
                "rules changed while nobody was there to say so"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

/// How often Portolan has asked for all Services there are (as a stream, KEP-3157).
fn whole_lists(plane: &ControlPlane) -> Result<usize> {
    let audit = plane.audit()?;
    let lists = audit.iter().filter(|event| {
        event.right.resource == "services" && event.uri.contains("sendInitialEvents=true")
    });
    Ok(lists.count())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn api_outage_of_minutes_changes_nothing_and_ends_in_seconds() -> Result<()> {
    let mut watched = Watched::start()?;
    let away = match std::env::var_os("CI") {
        Some(_) => Duration::from_secs(300),
        None => Duration::from_secs(20),
    };
    let before = watched.stage.tables()?;
    let traffic = Traffic::start_gently(&watched.stage)?;
    watched.plane.stop_api_server()?;
    watched.nothing_changes(&before, away / 2)?;
    // One that has just started knows nothing, and takes nothing away.
    watched.restart()?;
    watched.nothing_changes(&before, away / 2)?;
    watched.plane.start_api_server()?;
    let ready = Instant::now();
    watched.change_to(2)?;
    let converged = ready.elapsed();
    println!("away for {away:?}; in step {converged:?} after its return");
    ensure!(
        converged < CONVERGENCE,
        "in step only {converged:?} after the return"
    );
    traffic.lost_nothing()?;
    Ok(())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn api_server_restart_or_compaction_is_recovered_from() -> Result<()> {
    let watched = Watched::start()?;
    let Watched {
        daemon,
        plane,
        stage,
        ..
    } = &watched;
    let traffic = Traffic::start_gently(&watched.stage)?;
    plane.stop_api_server()?;
    plane.start_api_server()?;
    watched.change_to(3)?;

    let gone = service("gone", 81);
    plane.apply_all(&stage.objects(&gone, 0..2))?;
    stage.wait_for_backends(&gone, 2)?;
    let lists = whole_lists(plane)?;
    // Portolan misses the following changes: it is stopped, and the history is compacted afterwards.
    daemon.signal(Signal::SIGSTOP)?;
    plane.stop_api_server()?;
    plane.start_api_server()?;
    plane.delete(&gone.object())?;
    for backends in [1, 2, 3] {
        plane.apply_all(&stage.objects(&stage.web, 0..backends))?;
    }
    plane.stop_api_server()?;
    plane.compact_etcd()?;
    plane.start_api_server()?;
    daemon.signal(Signal::SIGCONT)?;
    stage.wait_for_backends(&stage.web, 3)?;
    wait_until("the deleted Service to be gone", PATIENCE, || {
        let outcome = stage.connect(&stage.client, &gone);
        outcome.is_ok_and(|outcome| outcome == Outcome::TimedOut)
    })?;
    ensure!(
        whole_lists(plane)? > lists,
        "the API server could still tell Portolan what it had missed: {:?}",
        plane.audit()?
    );
    watched.change_to(4)?;
    traffic.lost_nothing()?;
    Ok(())
}
