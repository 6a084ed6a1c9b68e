//! The container image in a container: does it serve with the rights of the manifests, and does it start with fewer?

use anyhow::{Result, ensure};
use lab::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, scenario};
use portolan_tests::pod::{Image, MANIFESTS, Rights, status, stop};
use portolan_tests::stage::Stage;

const PROGRAM: &str = "/usr/local/bin/portolan";

/// Starts `portolan run` in a container on the node under test and waits until all backends answer.
fn serve(stage: &Stage, image: &Image, rights: &Rights) -> Result<Daemon> {
    let ranges = format!("--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}");
    let arguments = [
        PROGRAM,
        "run",
        "--manifests",
        MANIFESTS,
        "--hostname-override",
        "node-a",
        &ranges,
    ];
    let manifests = Some(stage.manifests.path());
    let command = image.command(&stage.node, rights, &arguments, manifests)?;
    let daemon = stage.node.spawn("runc", command)?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    Ok(daemon)
}

/// `CapEff` and others for CAP_NET_ADMIN.
const NET_ADMIN: &str = "0000000000001000";

#[scenario(Nft)]
#[ignore = "needs the image"]
fn a_container_with_net_admin_alone_serves_as_another_user() -> Result<()> {
    let Some(image) = Image::unpack()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    let rights = Rights {
        user: 65532,
        capabilities: &["CAP_NET_ADMIN"],
    };
    let daemon = serve(&stage, &image, &rights)?;
    for (field, value) in [
        ("Uid", "65532"),
        ("Gid", "65532"),
        ("CapEff", NET_ADMIN),
        ("CapBnd", NET_ADMIN),
        ("CapInh", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        ensure!(status(&daemon, field)? == value, "{field} is not {value}");
    }
    // An edit arrives through the volume, and is carried out with these rights.
    stage.add(&stage.web, 1..3)?;
    stage.wait_for_backends(&stage.web, 2)?;
    stop(&daemon)
}

#[scenario(Nft)]
#[ignore = "needs the image"]
fn a_container_of_root_with_net_admin_alone_serves() -> Result<()> {
    let Some(image) = Image::unpack()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    let rights = Rights {
        user: 0,
        capabilities: &["CAP_NET_ADMIN"],
    };
    // The image has fewer files than a node, and a bug report is whole without them.
    let daemon = stage.start_synced(&[])?;
    let arguments = [PROGRAM, "support", "--to", "-"];
    let command = image.command(&stage.node, &rights, &arguments, None)?;
    let output = stage.node.output(command)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    daemon.kill()?;
    let daemon = serve(&stage, &image, &rights)?;
    ensure!(status(&daemon, "Uid")? == "0", "the user is not root");
    ensure!(
        status(&daemon, "CapEff")? == NET_ADMIN,
        "other capabilities"
    );
    stop(&daemon)
}

#[scenario(Nft)]
#[ignore = "needs the image"]
fn the_program_starts_without_any_capability() -> Result<()> {
    let Some(image) = Image::unpack()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    for user in [0, 65532] {
        let rights = Rights {
            user,
            capabilities: &[],
        };
        let command = image.command(&stage.node, &rights, &[PROGRAM, "version"], None)?;
        let output = stage.node.output(command)?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let version = concat!("portolan ", env!("CARGO_PKG_VERSION"));
        let is_told = printed.lines().next() == Some(version);
        ensure!(output.status.success() && is_told, "{output:?}");
    }
    Ok(())
}
