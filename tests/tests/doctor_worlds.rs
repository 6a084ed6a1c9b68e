//! The table of broken worlds: what `portolan doctor`, `portolan status` and `/readyz` say while one is broken, and once it is whole
//! again.
//!
//! A world is a file in `tests/worlds/`: commands that break and heal a node, or a Node to add, and words that all reports
//! must have meanwhile. Worlds with commands are tried one after another on the same nodes, so what one leaves behind shows
//! in the next; several stages each try the next one that is left. Those with a Node are tried all at once, since each is about a Node of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{HEALTH_PORT, PodLinks, scenario, wait_for};
use portolan_tests::commands::document;
use portolan_tests::doctor::{FAST, doctor, wait_until_healthy};
use portolan_tests::overlay::{OverlayStage, tool};
use portolan_tests::stage::PATIENCE;
use serde::Deserialize;
use serde_json::{Value, json};

const PREFIX: &str = "flannel.alpha.coreos.com";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct World {
    /// Number of the node that the commands run on.
    #[serde(default)]
    node: usize,
    /// Commands, a program and its arguments each.
    #[serde(default, rename = "break")]
    breaking: Vec<String>,
    #[serde(default)]
    heal: Vec<String>,
    /// A Node to add.
    peer: Option<Peer>,
    /// It is added twice, by two names.
    #[serde(default)]
    twice: bool,
    /// What all reports say; `NAME` is the peer's.
    words: String,
}

/// A Node like any other, but for what is said here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    /// Of its pods: 4 or 6.
    family: u8,
    /// flannel's annotations, without their prefix; `"MAC"` is its own. `null`: none of this name.
    #[serde(default)]
    annotations: BTreeMap<String, Option<String>>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
}

impl Peer {
    fn name(number: usize) -> String {
        format!("node-x{number}")
    }

    /// The Node with this number, which decides on its name, addresses and pods.
    fn object(&self, number: usize) -> Value {
        let mac = format!("02:00:00:00:01:{number:02x}");
        let own = format!("\"{mac}\"");
        let (address, pods, data, public_ip) = match self.family {
            6 => (
                format!("2001:db8::{number:x}"),
                format!("fd00:244:1{number:02x}::/64"),
                "backend-v6-data",
                "public-ipv6",
            ),
            _ => (
                format!("198.51.100.{number}"),
                format!("10.244.{}.0/24", 100 + number),
                "backend-data",
                "public-ip",
            ),
        };
        let backend = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        let mut annotations: BTreeMap<&str, Option<String>> = BTreeMap::from([
            ("kube-subnet-manager", Some("true".to_owned())),
            ("backend-type", Some("vxlan".to_owned())),
            (data, Some(backend)),
            (public_ip, Some(address.clone())),
        ]);
        for (name, value) in &self.annotations {
            annotations.insert(
                name,
                value.as_ref().map(|value| value.replace("\"MAC\"", &own)),
            );
        }
        let present = annotations.into_iter();
        let present: BTreeMap<String, String> = present
            .filter_map(|(name, value)| Some((format!("{PREFIX}/{name}"), value?)))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": Self::name(number), "annotations": present },
            "spec": { "podCIDRs": [self.pod_cidr.as_ref().unwrap_or(&pods)] },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        })
    }
}

/// The worlds by their names, in this order.
fn worlds() -> Result<Vec<(String, World)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("worlds");
    let mut worlds = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let world = serde_saphyr::from_str(&text).with_context(|| format!("{path:?}"))?;
        let name = path
            .file_stem()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        worlds.push((name, world));
    }
    worlds.sort_by(|(a, _), (b, _)| a.cmp(b));
    ensure!(!worlds.is_empty(), "no worlds in {folder:?}");
    Ok(worlds)
}

impl World {
    fn run(&self, stage: &OverlayStage, lines: &[String]) -> Result<()> {
        for line in lines {
            let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
            tool(&stage.nodes[self.node], program, arguments)?;
        }
        Ok(())
    }
}

/// All reports have all these words.
fn are_told(stage: &OverlayStage, words: &[String]) -> Result<()> {
    let missing = |text: &str| -> Vec<&String> {
        let missing = words.iter().filter(|words| !text.contains(*words));
        missing.collect()
    };
    let (code, text) = doctor(&stage.nodes[0], &[])?;
    let not_told = missing(&text);
    ensure!(
        code == Some(1) && not_told.is_empty(),
        "doctor: {code:?} {text} without {not_told:?}"
    );
    let ready = stage.nodes[0].http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
    let (code, text) = ready.context("no answer")?;
    let not_told = missing(&text);
    ensure!(
        code == 200 && not_told.is_empty(),
        "readyz: {code} {text} without {not_told:?}"
    );
    let (status, code) = document(&stage.nodes[0], &["status"])?;
    let reasons = status["reasons"].as_array().context("no reasons")?;
    let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
    let text = reasons.join("\n");
    let not_told = missing(&text);
    ensure!(
        code == 1 && not_told.is_empty(),
        "status: {code} {text} without {not_told:?}"
    );
    Ok(())
}

fn is_well(stage: &OverlayStage) -> Result<()> {
    let (code, text) = doctor(&stage.nodes[0], &[])?;
    ensure!(code == Some(0), "doctor: {code:?} {text}");
    let ready = stage.nodes[0].http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
    let (code, text) = ready.context("no answer")?;
    ensure!(
        code == 200 && !text.contains("overlay: "),
        "readyz: {code} {text}"
    );
    let (status, code) = document(&stage.nodes[0], &["status"])?;
    ensure!(code == 0, "status: {code} {status:#}");
    Ok(())
}

/// Stages that try worlds with commands at a time: each test waits nearly all of its time.
const STAGES: usize = 6;

#[scenario(Vxlan, Nft)]
fn every_broken_world_is_told_by_doctor_and_readyz() -> Result<()> {
    let (peers, broken): (Vec<_>, Vec<_>) = worlds()?
        .into_iter()
        .partition(|(_, world)| world.peer.is_some());
    let next = AtomicUsize::new(0);
    let left = || broken.get(next.fetch_add(1, Ordering::Relaxed));
    std::thread::scope(|scope| {
        let try_them = |links| {
            let worlds = std::iter::from_fn(left);
            on_a_stage(links, |stage| one_after_another(stage, worlds))
        };
        let links = [PodLinks::Routed, PodLinks::Bridged].into_iter().cycle();
        let links = links.take(STAGES);
        let mut stages: Vec<_> = links
            .map(|links| scope.spawn(move || try_them(links)))
            .collect();
        let peers = || on_a_stage(PodLinks::Routed, |stage| at_once(stage, &peers));
        stages.push(scope.spawn(peers));
        let results = stages.into_iter().map(|stage| match stage.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect()
    })
}

/// Two nodes that reach each other, before and after.
fn on_a_stage(links: PodLinks, worlds: impl FnOnce(&OverlayStage) -> Result<()>) -> Result<()> {
    let stage = OverlayStage::with(links, 2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    worlds(&stage)?;
    wait_until_well(&stage)
}

fn wait_until_well(stage: &OverlayStage) -> Result<()> {
    wait_for("a whole world", 2 * PATIENCE, || is_well(stage))
}

fn one_after_another<'a>(
    stage: &OverlayStage,
    worlds: impl Iterator<Item = &'a (String, World)>,
) -> Result<()> {
    for (name, world) in worlds {
        let started = Instant::now();
        wait_until_well(stage).with_context(|| format!("before {name}"))?;
        world
            .run(stage, &world.breaking)
            .with_context(|| name.clone())?;
        let words = std::slice::from_ref(&world.words);
        wait_for(&world.words, 2 * PATIENCE, || are_told(stage, words))
            .with_context(|| name.clone())?;
        world
            .run(stage, &world.heal)
            .with_context(|| name.clone())?;
        println!("{name}: told after {:.1?}", started.elapsed());
    }
    Ok(())
}

fn at_once(stage: &OverlayStage, worlds: &[(String, World)]) -> Result<()> {
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for (_, world) in worlds {
        let Some(peer) = &world.peer else { continue };
        for _ in 0..=usize::from(world.twice) {
            objects.push(peer.object(objects.len() + 1));
        }
        words.push(world.words.replace("NAME", &Peer::name(objects.len())));
    }
    stage.manifests.write_objects("peers.yaml", &objects)?;
    wait_for("all peers", 2 * PATIENCE, || are_told(stage, &words))?;
    stage.manifests.remove("peers.yaml")
}
