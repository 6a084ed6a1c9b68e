//! The program as it is shipped, linked with musl and mimalloc, beside the same program linked with glibc.
//!
//! `render` of 5,000 Services of 10 endpoints by both in turn, so that whatever else the machine does befalls both.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portolan_benches::{Report, Row, Samples, Shape, milliseconds, program, quick, ratio, wanted};

/// Names the program that is linked with glibc; `cargo xtask bench` sets it.
const GLIBC: &str = "PORTOLAN_GLIBC_PROGRAM";

fn main() -> Result<()> {
    if !wanted("c_library") {
        return Ok(());
    }
    let Some(glibc) = std::env::var_os(GLIBC) else {
        eprintln!("SKIPPED: c_library: {GLIBC} is not set");
        return Ok(());
    };
    let shipped = program()?;
    let (shape, rounds) = match quick() {
        true => (Shape::new(50, 10), 2),
        false => (Shape::new(5_000, 10), 15),
    };
    let folder = tempfile::tempdir()?;
    shape.write_manifests(folder.path(), 10)?;
    let (mut musl, mut other) = (Samples::default(), Samples::default());
    // The first of each brings programs and manifests to memory.
    for round in 0..=rounds {
        let times = [
            render(&shipped, folder.path())?,
            render(Path::new(&glibc), folder.path())?,
        ];
        if round > 0 {
            musl.push(times[0]);
            other.push(times[1]);
        }
    }
    let mut report = Report::default();
    let (musl, other) = (musl.median(), other.median());
    report.row(Row {
        quantity: "render of 5000x10 by the shipped program (musl, mimalloc)".into(),
        target: "<= 1.1 x glibc".into(),
        measured: milliseconds(musl),
        floor: format!("{} with glibc", milliseconds(other)),
        ratio: ratio(musl, other),
    });
    report.print();
    Ok(())
}

fn render(program: &Path, manifests: &Path) -> Result<Duration> {
    let start = Instant::now();
    let status = Command::new(program)
        .args([
            "render",
            "--hostname-override=node-0",
            "--cluster-cidr=10.128.0.0/9",
            "--manifests",
        ])
        .arg(manifests)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "{program:?} ended with {status}");
    Ok(start.elapsed())
}
