//! Tells the library which compiler builds it, for `portolan_build_info`. Cargo asks again when the compiler is another one.

use std::io::Write;
use std::process::Command;

fn main() -> std::io::Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = Command::new(rustc).arg("--version").output()?.stdout;
    // "rustc 1.95.0 (59807616e 2026-04-14)"
    let printed = String::from_utf8_lossy(&printed);
    let version = printed.split_whitespace().nth(1).unwrap_or("unknown");
    let mut out = std::io::stdout();
    writeln!(out, "cargo::rerun-if-changed=build.rs")?;
    writeln!(out, "cargo::rustc-env=PORTOLAN_RUSTC={version}")
}
