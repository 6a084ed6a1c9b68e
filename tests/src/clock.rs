//! A clock of the day that a test sets for one program, and the machine's stays as it is.
//!
//! Time namespaces leave out this clock (time_namespaces(7)), so a library is loaded into the program that adds to what the
//! kernel says. It needs a program that is linked dynamically, and a C compiler, as building needs one anyway.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// The source of the library.
const SOURCE: &str = include_str!("clock_shift.c");

/// The clock of programs that were started with it.
pub struct Clock {
    folder: TempDir,
    shift: File,
}

impl Clock {
    /// A clock that is right.
    pub fn new() -> Result<Clock> {
        let folder = tempfile::tempdir()?;
        let source = folder.path().join("clock_shift.c");
        std::fs::write(&source, SOURCE)?;
        let shift = File::create(folder.path().join("shift"))?;
        let clock = Clock { folder, shift };
        clock.set(0)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        let status = compiler.arg(clock.library()).arg(&source).status();
        let status = status.context("start the C compiler")?;
        ensure!(status.success(), "cc: {status}");
        Ok(clock)
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock_shift.so")
    }

    /// Lets a program have this clock.
    pub fn give(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", self.library())
            .env("CLOCK_SHIFT", self.folder.path().join("shift"));
    }

    /// Sets it to this many seconds from the machine's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        Ok(self.shift.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}
