//! What commands say of a Service that is over its budget, and what becomes of its traffic.

use anyhow::{Context, Result, ensure};
use lab::{TcpService, scenario, wait_for};
use portolan_tests::commands::document;
use portolan_tests::stage::{PATIENCE, Stage, service};
use serde_json::{Value, json};

/// Load balancer addresses and source ranges whose product is more than a Service may have.
const ADDRESSES: usize = 50;
const RANGES: usize = 1_000;

/// The objects of a Service, over its budget.
fn over_budget(stage: &Stage, service: &TcpService) -> Vec<Value> {
    let mut objects = stage.objects(service, 0..4);
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
    // One that has rules, and one that never had any.
    let new = service("web-new", 91);
    let services = [("web.yaml", &stage.web), ("new.yaml", &new)];
    for (file, service) in services {
        let objects = over_budget(&stage, service);
        stage.manifests.write_objects(file, &objects)?;
    }
    wait_for("the quarantine in the status", PATIENCE, || {
        let (status, code) = document(node, &["status"])?;
        let quarantined = status["quarantined"].as_array().context("no list")?;
        let is_named = |(text, (_, service)): (&Value, (_, &TcpService))| {
            let text = text.as_str().unwrap_or_default();
            text.starts_with(&format!("default/{}: ", service.name)) && text.contains("elements")
        };
        let are_named = quarantined.iter().zip(services).all(is_named);
        ensure!(
            code == 1 && quarantined.len() == 2 && are_named,
            "{code} {status:#}"
        );
        Ok(())
    })?;
    stage.wait_for_backends(&stage.web, 4)?;
    let (found, code) = document(node, &["verify"])?;
    let compared = found["compared"].as_array().context("no list")?;
    // Two tables, the Service with earlier rules, and the one without.
    let ends_with = |n: usize, name: &str| {
        let text = compared.get(n).and_then(Value::as_str);
        text.is_some_and(|text| text.ends_with(&format!(": default/{name}")))
    };
    let are_apart = ends_with(2, "web") && ends_with(3, "web-new");
    ensure!(code == 0 && are_apart, "{found:#}");
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
    stage.manifests.remove("new.yaml")?;
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
