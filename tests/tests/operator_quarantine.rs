//! What commands say of a Service that is over its budget, and what becomes of its traffic.

use anyhow::{Context, Result, ensure};
use lab::{scenario, wait_for};
use portolan_tests::commands::document;
use portolan_tests::stage::{PATIENCE, Stage};
use serde_json::{Value, json};

/// Load balancer addresses and source ranges whose product is more than a Service may have.
const ADDRESSES: usize = 50;
const RANGES: usize = 1_000;

/// The objects of `web`, over its budget.
fn over_budget(stage: &Stage) -> Vec<Value> {
    let mut objects = stage.objects(&stage.web, 0..4);
    let ranges = (0..RANGES).map(|n| format!("11.0.{}.{}/32", n / 100, n % 100 * 2));
    let ingress = (1..=ADDRESSES).map(|n| json!({ "ip": format!("203.0.113.{n}") }));
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["loadBalancerSourceRanges"] = ranges.collect();
    objects[0]["status"] = json!({ "loadBalancer": { "ingress": ingress.collect::<Value>() } });
    objects
}

#[scenario(Nft)]
fn commands_name_a_service_over_its_budget_and_its_rules() -> Result<()> {
    let stage = Stage::new()?;
    let node = &stage.node;
    let _daemon = stage.start_synced(&[])?;
    stage
        .manifests
        .write_objects("web.yaml", &over_budget(&stage))?;
    wait_for("the quarantine in the status", PATIENCE, || {
        let (status, code) = document(node, &["status"])?;
        let text = status["quarantined"][0].as_str().unwrap_or_default();
        ensure!(
            code == 1 && text.starts_with("default/web: ") && text.contains("elements"),
            "{code} {status:#}"
        );
        Ok(())
    })?;
    stage.wait_for_backends(&stage.web, 4)?;
    let (found, code) = document(node, &["verify"])?;
    let compared = found["compared"].to_string();
    ensure!(code == 0 && compared.contains("default/web"), "{found:#}");
    let (from, to) = (stage.client.ipv4().to_string(), Stage::address(&stage.web)?);
    let (trace, code) = document(node, &["trace", "--from", &from, "--to", &to.to_string()])?;
    let endpoints = trace["endpoints"].as_array().context("no endpoints")?;
    let eligible = endpoints.iter().filter(|one| one["eligible"] == true);
    ensure!(code == 0 && eligible.count() == 4, "{trace:#}");
    let steps = trace["steps"].as_array().context("no steps")?;
    let mut steps = steps.iter();
    ensure!(steps.any(|step| step["name"] == "quarantined"), "{trace:#}");
    let (one, _) = document(node, &["services", "web"])?;
    let service = &one["services"][0];
    let frontends = service["frontends"].as_array().context("no frontends")?;
    ensure!(
        service["quarantined"].is_string() && !frontends.is_empty(),
        "{one:#}"
    );
    // Within its budget again.
    stage.add(&stage.web, 0..4)?;
    wait_for("the end of the quarantine", PATIENCE, || {
        let (status, code) = document(node, &["status"])?;
        ensure!(
            code == 0 && status["quarantined"] == json!([]),
            "{code} {status:#}"
        );
        Ok(())
    })
}
