//! Debian's packages of other releases, unpacked side by side in a cache.
//!
//! Owns a private apt state: the mirror is the one that apt is configured for here, the releases are others. Nothing
//! is installed, and apt's own state is only read. Packages are checked by apt as always.
//!
//! Invariant: a folder with a file `complete` is complete, and never changed afterwards. One process at a time fetches.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::cache;
use crate::run::{output, run};

/// Releases, oldest first, and the series of the kernel each holds; the last one holds the current series.
const RELEASES: [(&str, Option<&str>); 4] = [
    ("bullseye", Some("5.10")),
    ("bookworm", Some("6.1")),
    ("trixie", Some("6.12")),
    ("sid", None),
];

/// Releases whose nft is a witness: the oldest that reads our tables, and the newest two.
const NFT_RELEASES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// Ends the making of a folder.
const COMPLETE: &str = "complete";

/// Lists of packages are fetched anew after this time.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// The keys of Debian's archive, where the package with them is installed.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that Debian has.
pub(crate) struct Kernel {
    /// `5.10`
    pub(crate) series: String,
    /// The package with the image, and its version.
    pub(crate) package: String,
    release: &'static str,
}

/// A kernel in the cache.
pub(crate) struct Unpacked {
    /// As `uname -r` tells it.
    pub(crate) release: String,
    /// Holds `boot` and `lib/modules`.
    pub(crate) folder: PathBuf,
}

/// The cache and what it is filled from.
pub(crate) struct Store {
    folder: PathBuf,
}

/// One package of one release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    depends: Vec<String>,
}

impl Store {
    /// Makes the folder where it is missing.
    pub(crate) fn open() -> Result<Store> {
        let folder = cache()?;
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("make the cache {}", folder.display()))?;
        Ok(Store { folder })
    }

    /// The newest kernel of each release, oldest series first. A release that the mirror does not have is named
    /// and left out.
    pub(crate) fn kernels(&self) -> Result<Vec<Kernel>> {
        let _lock = self.lock()?;
        let mut kernels: Vec<Kernel> = Vec::new();
        for (release, series) in RELEASES {
            let image = self.update(release).and_then(|()| self.image(release));
            let image = match image {
                Ok(image) => image,
                Err(error) => {
                    eprintln!("SKIPPED: kernels of {release}: {error:#}");
                    continue;
                }
            };
            let found = series_of(&image.name)?;
            if let Some(series) = series {
                ensure!(found == series, "{release} has {} now", image.name);
            }
            kernels.push(Kernel {
                series: found,
                package: format!("{}={}", image.name, image.version),
                release,
            });
        }
        Ok(kernels)
    }

    /// The package that `linux-image-amd64` depends on.
    fn image(&self, release: &'static str) -> Result<Package> {
        let meta = self.show(release, "linux-image-amd64")?;
        let image = meta
            .depends
            .iter()
            .find(|name| name.starts_with("linux-image-"));
        self.show(release, image.context("linux-image-amd64 leads nowhere")?)
    }

    /// Fetches and unpacks a kernel that is not in the cache yet.
    pub(crate) fn unpack(&self, kernel: &Kernel) -> Result<Unpacked> {
        let folder = self.folder.join(kernel.package.replace(['=', ':'], "_"));
        self.once(&folder, || {
            let image = self.image(kernel.release)?;
            // Newer releases split a kernel: what belongs to it has a name that begins so and its version.
            let mine = |name: &str| name.starts_with("linux-") && name != "linux-base";
            self.fetch(kernel.release, &[&image.name], &mine, &folder)?;
            let (lib, usr) = (folder.join("lib"), folder.join("usr/lib"));
            if !lib.join("modules").exists() && usr.join("modules").exists() {
                std::os::unix::fs::symlink("usr/lib", &lib).context("link lib to usr/lib")?;
            }
            run(Command::new("depmod")
                .arg("-b")
                .arg(&folder)
                .arg(release_in(&folder)?))
        })?;
        Ok(Unpacked {
            release: release_in(&folder)?,
            folder,
        })
    }

    /// Programs `nft` of other releases, by version, oldest first.
    pub(crate) fn nft_versions(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for release in NFT_RELEASES {
            match self.program(release, "nftables", "nft") {
                Ok(nft) if found.iter().any(|(version, _)| *version == nft.0) => {}
                Ok(nft) => found.push(nft),
                Err(error) => eprintln!("SKIPPED: nft of {release}: {error:#}"),
            }
        }
        Ok(found)
    }

    /// `ipvsadm`, by which a test makes what kube-proxy's IPVS mode would leave.
    pub(crate) fn ipvsadm(&self) -> Result<PathBuf> {
        let [release, ..] = NFT_RELEASES;
        Ok(self.program(release, "ipvsadm", "ipvsadm")?.1)
    }

    /// A package of a release, unpacked without those it depends on, for programs that this machine's libraries serve.
    pub(crate) fn package(&self, release: &str, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join(format!("{package}-of-{release}"));
        self.once(&folder, || {
            self.update(release)?;
            self.fetch(release, &[package], &|_| false, &folder)
        })?;
        Ok(folder)
    }

    /// Packages of a release in one folder, with the libraries that they depend on: what a container needs to run them.
    pub(crate) fn tree(&self, release: &str, packages: &[&str]) -> Result<PathBuf> {
        let name = format!("{}-and-libraries-of-{release}", packages.join("-"));
        let folder = self.folder.join(name);
        self.once(&folder, || {
            self.update(release)?;
            let library = |name: &str| name.starts_with("lib");
            self.fetch(release, packages, &library, &folder)
        })?;
        Ok(folder)
    }

    /// A program of another release with its own libraries, and its version.
    fn program(&self, release: &str, package: &str, program: &str) -> Result<(String, PathBuf)> {
        let lock = self.lock()?;
        self.update(release)?;
        let shown = self.show(release, package)?;
        drop(lock);
        let version = shown.version.split(['-', '+', '~']).next();
        let version = version
            .and_then(|version| version.split(':').next_back())
            .unwrap_or_default();
        let folder = self.folder.join(format!("{package}-{version}"));
        let wrapper = folder.join("run");
        self.once(&folder, || {
            let library = |name: &str| name.starts_with("lib");
            self.fetch(release, &[package], &library, &folder)?;
            // Older packages have it where `/sbin` was a folder of its own.
            let places = ["usr/sbin", "sbin"].map(|place| folder.join(place).join(program));
            let program = places.iter().find(|place| place.is_file());
            let program = program.with_context(|| format!("{package} has no such program"))?;
            write_wrapper(&folder, program, &wrapper)
        })?;
        Ok((version.to_owned(), wrapper))
    }

    /// Makes a folder unless it is complete. A second process waits for the first.
    fn once(&self, folder: &Path, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let complete = folder.join(COMPLETE);
        if complete.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if !complete.exists() {
            make()?;
            std::fs::write(complete, "")?;
        }
        Ok(())
    }

    /// Waits until no other process fetches. The lock ends with the file.
    fn lock(&self) -> Result<File> {
        let lock = File::create(self.folder.join("lock"))?;
        lock.lock()
            .context("wait for another command that fetches packages")?;
        Ok(lock)
    }

    /// Fetches packages and those they depend on that `belongs` names, and unpacks them into one folder.
    fn fetch(
        &self,
        release: &str,
        packages: &[&str],
        belongs: &dyn Fn(&str) -> bool,
        into: &Path,
    ) -> Result<()> {
        let mut names: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
        let (mut packages, mut seen) = (BTreeSet::new(), BTreeSet::new());
        while let Some(name) = names.pop() {
            // To ask apt takes a tenth of a second, and libraries depend on each other.
            if !seen.insert(name.clone()) {
                continue;
            }
            // An alternative or a virtual package has no entry; no package needed here is one.
            let Ok(package) = self.show(release, &name) else {
                continue;
            };
            let more = package.depends.iter().filter(|name| belongs(name)).cloned();
            if packages.insert(package.clone()) {
                names.extend(more);
            }
        }
        let _ = std::fs::remove_dir_all(into);
        let download = into.join("packages");
        std::fs::create_dir_all(&download)
            .with_context(|| format!("make {}", download.display()))?;
        let wanted = packages.iter().map(|p| format!("{}={}", p.name, p.version));
        run(self
            .apt("apt-get", release)
            .args(["-qq", "download"])
            .args(wanted)
            .current_dir(&download))?;
        for package in std::fs::read_dir(&download)? {
            let package = package?.path();
            output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into))?;
        }
        std::fs::remove_dir_all(&download)?;
        Ok(())
    }

    /// What apt says of a package in a release.
    fn show(&self, release: &str, package: &str) -> Result<Package> {
        let text = output(self.apt("apt-cache", release).args(["show", package]))?;
        parse(&String::from_utf8_lossy(&text))
            .with_context(|| format!("apt knows no {package} in {release}"))
    }

    /// Fetches the lists of a release, when those at hand are old.
    fn update(&self, release: &str) -> Result<()> {
        let state = self.state(release);
        let stamp = state.join("updated");
        let age = std::fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if age.is_ok_and(|age| age < FRESH) {
            return Ok(());
        }
        for folder in ["lists/partial", "archives/partial", "parts"] {
            std::fs::create_dir_all(state.join(folder))?;
        }
        std::fs::write(state.join("status"), "")?;
        let fetched = sources(release).and_then(|sources| {
            std::fs::write(state.join("sources.list"), sources)?;
            run(self.apt("apt-get", release).args(["-qq", "update"]))
        });
        match fetched {
            Ok(()) => std::fs::write(&stamp, "")?,
            // What is in the cache can be used without a mirror.
            Err(error) if stamp.exists() => {
                eprintln!("lists of {release} are old: {error:#}");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn state(&self, release: &str) -> PathBuf {
        self.folder.join("apt").join(release)
    }

    /// A command of apt with a state of its own. The rest of the configuration (proxies, credentials) is the
    /// machine's.
    fn apt(&self, program: &str, release: &str) -> Command {
        let state = self.state(release);
        let mut command = Command::new(program);
        for (option, place) in [
            ("Dir::State", ""),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", ""),
            ("Dir::Cache::archives", "archives"),
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "parts"),
            ("Dir::Etc::PreferencesParts", "parts"),
        ] {
            command
                .arg("-o")
                .arg(format!("{option}={}", state.join(place).display()));
        }
        // The cache belongs to root, and apt's own user need not read it.
        for option in ["APT::Sandbox::User=root", "Acquire::Languages=none"] {
            command.args(["-o", option]);
        }
        command
    }
}

/// The lines of a release, and of its security updates, on the mirrors that apt is configured for.
fn sources(release: &str) -> Result<String> {
    let targets = || -> Result<Vec<(String, String)>> {
        let format = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)";
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", format, "Created-By: Packages"]);
        let text = output(&mut command)?;
        Ok(mirrors(&String::from_utf8_lossy(&text)))
    };
    let mut found = targets()?;
    if found.is_empty() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        found = targets()?;
    }
    let signed = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    let mirror = |security: bool| {
        found
            .iter()
            .find(|(codename, _)| codename.ends_with("-security") == security)
    };
    let Some((_, uri)) = mirror(false) else {
        bail!("apt is configured for no mirror of Debian");
    };
    let mut lines = format!("deb {signed}{uri} {release} main\n");
    // The newest release has no security updates of its own.
    let has_security = RELEASES
        .iter()
        .any(|(name, series)| *name == release && series.is_some());
    if let Some((_, uri)) = mirror(true).filter(|_| has_security) {
        lines += &format!("deb {signed}{uri} {release}-security main\n");
    }
    Ok(lines)
}

/// Code names and addresses of Debian's main archive in apt's list of targets.
fn mirrors(targets: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in targets.lines() {
        let mut fields = line.split('|');
        if let (Some("Debian"), Some("main"), Some(codename), Some(uri)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        {
            found.push((codename.to_owned(), uri.to_owned()));
        }
    }
    found
}

/// The first (newest) entry of `apt-cache show`.
fn parse(text: &str) -> Option<Package> {
    let entry = text.split("\n\n").next()?;
    let field = |name: &str| {
        entry
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let depends = ["Pre-Depends", "Depends"]
        .into_iter()
        .filter_map(field)
        .flat_map(|list| list.split(','))
        .filter_map(|one| one.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned());
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        depends: depends.collect(),
    })
}

/// `5.10` of `linux-image-5.10.0-35-amd64`.
fn series_of(image: &str) -> Result<String> {
    let version = image.trim_start_matches("linux-image-");
    let mut parts = version.split(['.', '-', '+']);
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => bail!("{image} has no version"),
    }
}

/// The one kernel in a folder, as `uname -r` will tell it.
fn release_in(folder: &Path) -> Result<String> {
    let modules = folder.join("lib/modules");
    let mut found =
        std::fs::read_dir(&modules).with_context(|| format!("look into {}", modules.display()))?;
    let release = found.next().context("no modules in the package")??;
    Ok(release.file_name().to_string_lossy().into_owned())
}

/// A script that runs a program with the libraries of its folder, down to the C library.
fn write_wrapper(folder: &Path, program: &Path, wrapper: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|l| folder.join(l));
    let loader = libraries
        .iter()
        .map(|folder| folder.join("ld-linux-x86-64.so.2"))
        .find(|loader| loader.is_file())
        .context("the package of the C library has no loader")?;
    let [first, second] = libraries.map(|l| l.display().to_string());
    let (loader, program) = (loader.display(), program.display());
    let script =
        format!("#!/bin/sh\nexec {loader} --library-path {first}:{second} {program} \"$@\"\n");
    std::fs::write(wrapper, script)?;
    std::fs::set_permissions(wrapper, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn several_that_want_one_folder_make_it_once() -> Result<()> {
        let cache = tempfile::tempdir()?;
        let store = Store {
            folder: cache.path().to_owned(),
        };
        let folder = cache.path().join("package");
        std::fs::create_dir(&folder)?;
        let (barrier, made) = (Barrier::new(4), AtomicUsize::new(0));
        let make = || {
            made.fetch_add(1, Ordering::SeqCst);
            // Time for the others, which must not use it.
            (0..1000).for_each(|_| std::thread::yield_now());
            Ok(())
        };
        std::thread::scope(|scope| {
            let run = || {
                barrier.wait();
                store.once(&folder, make)
            };
            let runs = [(); 4].map(|()| scope.spawn(run));
            runs.into_iter()
                .try_for_each(|run| run.join().expect("no panic"))
        })?;
        assert_eq!(made.into_inner(), 1);
        Ok(())
    }

    #[test]
    fn a_folder_is_made_again_after_a_failure_and_then_never() -> Result<()> {
        let cache = tempfile::tempdir()?;
        let store = Store {
            folder: cache.path().to_owned(),
        };
        let folder = cache.path().join("package");
        let make = || Ok(std::fs::create_dir(&folder)?);
        assert!(store.once(&folder, || bail!("no mirror")).is_err());
        store.once(&folder, make)?;
        store.once(&folder, make)
    }

    #[test]
    fn the_series_is_in_the_name_of_the_image() {
        for (image, series) in [
            ("linux-image-5.10.0-35-amd64", "5.10"),
            ("linux-image-6.12.43+deb13-amd64", "6.12"),
            ("linux-image-7.2+1-amd64", "7.2"),
        ] {
            assert_eq!(series_of(image).unwrap(), series);
        }
    }

    #[test]
    fn the_newest_entry_is_read_with_what_it_depends_on() {
        let package = parse(
            "Package: nftables\nVersion: 1.0.6-2\nDepends: libnftables1 (= 1.0.6-2), libc6 (>= 2.34), a | b\n\n\
             Package: nftables\nVersion: 0.9\n",
        )
        .unwrap();
        assert_eq!(package.version, "1.0.6-2");
        assert_eq!(package.depends, ["libnftables1", "libc6", "a"]);
    }

    #[test]
    fn only_debian_itself_is_a_mirror() {
        let targets = "Debian|main|bookworm|mirror:/a/\nOthers|main|x|mirror:/b/\nDebian|contrib|bookworm|mirror:/c/\n";
        assert_eq!(
            mirrors(targets),
            [("bookworm".to_owned(), "mirror:/a/".to_owned())]
        );
    }
}
