//! Whether one commit gives one image: two whole builds, from clones in two folders, compared byte for byte.
//!
//! Keeps both archives and programs in `target/reproduce` and says where the programs differ.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Arch, VERSION, difference, hexadecimal};
use crate::run::{cargo, git, output, root, run};

/// Folders of the two clones, of different length and depth: neither may be in the program, nor decide the order of anything.
const PLACES: [&str; 2] = ["first", "second/with/a/longer/name"];

/// What one build gave, by the paths that are kept.
struct Build {
    archive: PathBuf,
    program: PathBuf,
}

/// Builds the image of this machine's architecture twice from what is committed. Takes the time of two builds from nothing.
///
/// # Errors
/// When a build fails, or the two archives differ.
pub(crate) fn reproduce() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let commit = String::from_utf8(output(&mut git(&["rev-parse", "HEAD"])?)?)?;
    let kept = root()?.join("target/reproduce");
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(&kept)?;
    let build = |number: usize| {
        let kept = kept.join(format!("{}", number + 1));
        build(commit.trim(), &folder.path().join(PLACES[number]), &kept)
    };
    let (first, second) = (build(0)?, build(1)?);
    let archive = read(&first.archive)?;
    if archive == read(&second.archive)? {
        let digest = hexadecimal(&archive);
        eprintln!("two builds in two folders have the same bytes: {digest}");
        return Ok(());
    }
    let mut lines = difference::lines(&read(&first.program)?, &read(&second.program)?);
    if lines.is_empty() {
        lines.push("the programs are equal: licenses, labels or times differ".to_owned());
    }
    bail!(
        "two builds of one commit differ; both are kept in {}\n{}",
        kept.display(),
        lines.join("\n")
    );
}

/// Clones this commit to a folder, builds the image there, keeps what the build gave, and removes the folder again.
fn build(commit: &str, place: &Path, kept: &Path) -> Result<Build> {
    run(git(&["clone", "--quiet", "--no-checkout"])?
        .arg(root()?)
        .arg(place))?;
    run(git(&["checkout", "--quiet", "--detach", commit])?.current_dir(place))?;
    let arch = Arch::host()?;
    let image = place.join("image");
    let mut build = cargo(&["run", "--quiet", "--package", "xtask", "--", "image"])?;
    build
        .args(["--arch", arch.name(), "--output"])
        .arg(&image)
        .current_dir(place)
        .env_remove("CARGO_TARGET_DIR");
    run(&mut build)?;
    fs::create_dir_all(kept)?;
    let keep = |from: PathBuf, name: &str| -> Result<PathBuf> {
        let to = kept.join(name);
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        Ok(to)
    };
    let archive = image.join(format!("portolan-{VERSION}-image.tar"));
    let program = place
        .join("target")
        .join(arch.target())
        .join("release/portolan");
    let build = Build {
        archive: keep(archive, "image.tar")?,
        program: keep(program, "portolan")?,
    };
    fs::remove_dir_all(place)?;
    Ok(build)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}
