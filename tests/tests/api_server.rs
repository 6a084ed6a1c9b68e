//! The program with an API server: a fake one on the node's loopback, over real HTTP.

use anyhow::{Result, ensure};
use lab::fake_api::{FakeApi, Resource};
use lab::{Daemon, Outcome, scenario, wait_until};
use portolan_tests::stage::{PATIENCE, Stage, service};

/// The stage's objects in an API server, and the program that watches it.
fn start(stage: &Stage) -> Result<(FakeApi, Daemon)> {
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    Ok((api, daemon))
}

#[scenario(Nft)]
fn services_come_change_and_go_with_their_objects() -> Result<()> {
    let stage = Stage::new()?;
    let (api, _daemon) = start(&stage)?;
    stage.wait_for_backends(&stage.web, 4)?;
    for count in [1, 3, 2] {
        api.apply_all(stage.objects(&stage.web, 0..count))?;
        stage.wait_for_backends(&stage.web, count)?;
    }
    ensure!(
        api.delete(Resource::Services, "default", "web"),
        "there was no Service"
    );
    wait_until("the Service to be gone", PATIENCE, || {
        stage
            .connect(&stage.client, &stage.web)
            .is_ok_and(|outcome| outcome == Outcome::Unreachable)
    })
}

#[scenario(Nft)]
fn api_outage_changes_nothing_and_missed_changes_follow() -> Result<()> {
    let stage = Stage::new()?;
    let gone = service("gone", 81);
    let (api, _daemon) = start(&stage)?;
    api.apply_all(stage.objects(&gone, 0..2))?;
    stage.wait_for_backends(&gone, 2)?;
    let before = stage.tables()?;
    api.set_reachable(false);
    api.break_connections();
    api.apply_all(stage.objects(&stage.web, 0..3))?;
    api.delete(Resource::Services, "default", "gone");
    ensure!(
        stage.tables()? == before,
        "rules changed while nobody was there to say so"
    );
    stage.wait_for_backends(&stage.web, 4)?;
    api.compact();
    api.set_reachable(true);
    stage.wait_for_backends(&stage.web, 3)?;
    wait_until(
        "the Service that was deleted meanwhile to be gone",
        PATIENCE,
        || {
            stage
                .connect(&stage.client, &gone)
                .is_ok_and(|outcome| outcome == Outcome::Unreachable)
        },
    )
}

#[scenario(Nft)]
fn service_proxy_makes_no_forbidden_request() -> Result<()> {
    let stage = Stage::new()?;
    let (api, _daemon) = start(&stage)?;
    ensure!(
        api.counts().forbidden == 0,
        "asked for more than its rights: {:?}",
        api.counts()
    );
    Ok(())
}
