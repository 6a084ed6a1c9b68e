//! A bench on other kernels, for what only they can do. Its ratios hold under emulation, its times do not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::packages::Unpacked;
use super::{logs, machine};
use crate::run::{cargo, executables};
use crate::{control_plane, image};

/// For a bench on one kernel.
const LIMIT: Duration = Duration::from_secs(3600);

/// A bench, built, with the program that is shipped.
pub(super) struct Bench {
    binary: PathBuf,
    /// Which of its parts to run. It is passed as a quoted word and has no quotes itself.
    filter: String,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Bench {
    /// Builds the bench whose name is the first word of the filter.
    pub(super) fn build(filter: &str) -> Result<Bench> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || " _-".contains(c);
        ensure!(
            filter.chars().all(is_plain),
            "--bench takes letters, digits and spaces: {filter:?}"
        );
        let target = filter.split_whitespace().next().unwrap_or_default();
        let mut command = cargo(&["bench", "--no-run", "--quiet", "--bench", target])?;
        command.args(["--package", "portolan-benches"]);
        let binary = executables(command, "bench", &[target])?;
        let mut environment = vec![("PORTOLAN_PROGRAM", image::program()?)];
        environment.extend(control_plane::built()?.map(|built| (control_plane::VARIABLE, built)));
        Ok(Bench {
            binary: binary.into_iter().next().context("no bench")?,
            filter: filter.to_owned(),
            environment,
        })
    }

    /// Boots the kernel, and prints what the bench says.
    pub(super) fn run_on(&self, kernel: &Unpacked) -> Result<()> {
        let release = &kernel.release;
        let (answers, console) = (
            logs()?.join(format!("{release}.bench")),
            logs()?.join(format!("{release}.log")),
        );
        std::fs::write(&answers, "")?;
        std::fs::write(&console, "")?;
        eprintln!(
            "booting {release}: {}, see {}",
            self.filter,
            answers.display()
        );
        machine::boot(kernel, &self.script(), LIMIT, &answers, &console)?;
        let said = std::fs::read(&answers)?;
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        println!("{said}");
        ensure!(said.contains("\nEND 0\n"), "the bench failed on {release}");
        Ok(())
    }

    /// For bash on the kernel.
    fn script(&self) -> String {
        let show = |path: &Path| path.display().to_string();
        let mut script = String::from("echo \"kernel $(uname -r)\"\n");
        for (name, value) in &self.environment {
            script += &format!("export {name}='{}'\n", show(value));
        }
        let binary = show(&self.binary);
        script += &format!("{binary} --bench '{}' </dev/null 2>&1; c=$?\n", self.filter);
        script + "echo; echo \"END $c\"\n"
    }
}
