//! The overlay: its way into the kernel, its memory, and what packets pay for it.
//!
//! `cargo xtask bench overlay`, or `cargo bench -p portolan-benches --bench overlay` after `cargo build --release`; its
//! parts are `overlay programming`, `overlay memory`, `overlay packets` and `overlay encrypted`.
//! Programming happens in a namespace of its own with a bridge without ports as the network below; memory is the
//! released program's, with a fake API server; packets go between pods of two nodes, beside the same two nodes with a
//! VXLAN device made by hand; encrypted ones beside flanneld's WireGuard backend, where the kernel has WireGuard
//! (`cargo xtask kernels 6.1 --bench 'overlay encrypted'`).

use anyhow::Result;
use portolan_benches::{Report, overlay, program, quick, wanted};

fn main() -> Result<()> {
    let mut report = Report::default();
    programming(&mut report)?;
    if wanted("overlay memory") {
        overlay::memory::measure(&mut report, &program()?, if quick() { 100 } else { 5_000 })?;
    }
    packets(&mut report)?;
    if wanted("overlay encrypted") {
        overlay::encrypted::measure(&mut report, &program()?, if quick() { 2 } else { 41 })?;
    }
    report.print();
    Ok(())
}

fn programming(report: &mut Report) -> Result<()> {
    if !wanted("overlay programming") {
        return Ok(());
    }
    let sizes: &[(u32, &str)] = match quick() {
        true => &[(100, "")],
        false => &[(100, ""), (1_000, "< 100 ms"), (5_000, "< 500 ms")],
    };
    let mut namespaces = Vec::new();
    for (peers, target) in sizes {
        namespaces.extend(overlay::programming::measure(report, *peers, target)?);
    }
    Ok(())
}

fn packets(report: &mut Report) -> Result<()> {
    if !wanted("overlay packets") {
        return Ok(());
    }
    let rules: [(&str, &[&str]); 2] = [
        ("no filter, no masquerading", &["--overlay-filter", "off"]),
        (
            "filter and masquerading on",
            &["--ip-masq", "--overlay-filter", "enforce"],
        ),
    ];
    for rules in rules {
        overlay::packets::measure(report, &program()?, if quick() { 2 } else { 101 }, rules)?;
    }
    Ok(())
}
