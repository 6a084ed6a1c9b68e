//! The table of broken worlds: what `portolan doctor` and `/readyz` say while one is broken, and once it is whole again.
//!
//! A world is a file in `tests/worlds/`: commands that break and heal a node, or Nodes to add, and words that both reports
//! must have meanwhile. All worlds are tried one after another on the same nodes, so what one leaves behind shows in
//! the next.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{HEALTH_PORT, scenario, wait_for};
use portolan_tests::doctor::{FAST, doctor, wait_until_healthy};
use portolan_tests::overlay::{OverlayStage, tool};
use portolan_tests::stage::PATIENCE;
use serde::Deserialize;

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
    /// A Node to add, as JSON.
    object: Option<String>,
    /// Another one.
    second: Option<String>,
    /// What both reports say.
    words: String,
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

    fn file(number: usize) -> String {
        format!("world-{number}.json.yaml")
    }

    fn enter(&self, stage: &OverlayStage) -> Result<()> {
        for (number, object) in self.objects().enumerate() {
            let object = serde_json::from_str(object)?;
            stage
                .manifests
                .write_objects(&Self::file(number), &[object])?;
        }
        self.run(stage, &self.breaking)
    }

    fn leave(&self, stage: &OverlayStage) -> Result<()> {
        for (number, _) in self.objects().enumerate() {
            stage.manifests.remove(&Self::file(number))?;
        }
        self.run(stage, &self.heal)
    }

    fn objects(&self) -> impl Iterator<Item = &String> {
        self.object.iter().chain(&self.second)
    }

    fn is_told(&self, stage: &OverlayStage) -> Result<()> {
        let (code, text) = doctor(&stage.nodes[0], &[])?;
        ensure!(
            code == Some(1) && text.contains(&self.words),
            "doctor: {code:?} {text}"
        );
        let ready = stage.nodes[0].http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
        let (code, text) = ready.context("no answer")?;
        ensure!(
            code == 200 && text.contains(&self.words),
            "readyz: {code} {text}"
        );
        Ok(())
    }
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
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn every_broken_world_is_told_by_doctor_and_readyz() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    for (name, world) in worlds()? {
        wait_for("a whole world", 2 * PATIENCE, || is_well(&stage))
            .with_context(|| format!("before {name}"))?;
        world.enter(&stage).with_context(|| name.clone())?;
        wait_for(&world.words, 2 * PATIENCE, || world.is_told(&stage))
            .with_context(|| name.clone())?;
        world.leave(&stage).with_context(|| name.clone())?;
        println!("{name}: told");
    }
    wait_for("a whole world", 2 * PATIENCE, || is_well(&stage))
}
