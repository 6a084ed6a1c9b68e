//! `cargo xtask control-plane`: builds Kubernetes' own programs, for tests that the fake API server cannot serve.
//!
//! Owns how the modules of `tests/control-plane/` become programs: where they are kept, under which names, with which
//! versions stamped into them. What is built is upstream's own `main`, unchanged; the modules hold nothing but pins.
//!
//! Invariant: a returned folder is complete. Its name is a hash of everything that decides its content. It is built under
//! another name, renamed, and never changed afterwards, so that any number of checkouts may share it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{output, root, run};
use crate::tools;

pub(crate) mod coredns;
pub(crate) mod e2e;
pub(crate) mod flannel;
pub(crate) mod helm;
pub(crate) mod node;
#[cfg(test)]
mod tests;

/// Names the folder of the programs for the tests.
pub(crate) const VARIABLE: &str = "PORTOLAN_CONTROL_PLANE";

/// What Kubernetes' own build says (`hack/lib/golang.sh`): without `grpcnotrace` the linker keeps all methods.
const TAGS: &str = "selinux,notest,grpcnotrace";

/// Part of the key: raised when this file builds other programs from the same pins.
const BUILT_AS: u32 = 1;

const KUBERNETES: &str = "k8s.io/kubernetes";
const FLANNEL: &str = "github.com/flannel-io/flannel";
const ETCD: &str = "go.etcd.io/etcd/server/v3";

/// A Go module of this repository: pinned versions, and the programs to build with them.
#[derive(Debug)]
struct Module {
    /// Below `tests/control-plane/`.
    folder: &'static str,
    /// Whether it has parts in C.
    cgo: bool,
    /// The module whose version the program reports, the package of the program, and its file name. kube-proxy has its
    /// version in its file name, since there are several.
    programs: &'static [(&'static str, &'static str, &'static str)],
    /// Whether it has an older kube-proxy and nothing else.
    is_older: bool,
}

/// Which kube-proxies to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// That of the control plane's release.
    Newest,
    /// Those of the two releases before as well.
    All,
}

impl Versions {
    fn modules(self) -> Vec<&'static Module> {
        let is_wanted = move |module: &&Module| self == Versions::All || !module.is_older;
        MODULES.iter().filter(is_wanted).collect()
    }
}

const MODULES: &[Module] = &[
    Module {
        folder: "",
        is_older: false,
        cgo: false,
        programs: &[
            (ETCD, "go.etcd.io/etcd/server/v3", "etcd"),
            (ETCD, "go.etcd.io/etcd/etcdctl/v3", "etcdctl"),
            (
                KUBERNETES,
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "kube-apiserver",
            ),
            (
                KUBERNETES,
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "kube-controller-manager",
            ),
            (
                KUBERNETES,
                "k8s.io/kubernetes/cmd/kube-scheduler",
                "kube-scheduler",
            ),
            (KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", "kubectl"),
            (KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
        ],
    },
    Module {
        folder: "kube-proxy-1.36",
        is_older: true,
        cgo: false,
        programs: &[(KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy")],
    },
    Module {
        folder: "kube-proxy-1.35",
        is_older: true,
        cgo: false,
        programs: &[(KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy")],
    },
    Module {
        folder: "flanneld",
        is_older: false,
        // Its UDP backend is in C, and does not compile without.
        cgo: true,
        programs: &[(FLANNEL, FLANNEL, "flanneld")],
    },
];

/// Builds missing programs, and prints the folder and the versions.
pub(crate) fn control_plane() -> Result<()> {
    let folder = build(&Versions::All.modules())?;
    eprint!("{}", fs::read_to_string(folder.join("versions"))?);
    eprintln!("{}={}", helm::VARIABLE, helm::program()?.display());
    println!("{}", folder.display());
    Ok(())
}

/// The folder for the tests: the one that the environment names, else the one built here. `None`, with a warning,
/// without Go; with `CI` set that is an error.
pub(crate) fn for_tests(versions: Versions) -> Result<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os(VARIABLE) {
        return Ok(Some(folder.into()));
    }
    if tools::find("go").is_some() {
        return match versions {
            Versions::All => build(&versions.modules()),
            Versions::Newest => newest(),
        }
        .map(Some);
    }
    if std::env::var_os("CI").is_some() {
        bail!("no Go, so no control plane, and CI is set: nothing may be skipped");
    }
    eprintln!(
        "SKIPPED: every test against a real API server, controllers and kube-proxy: Go is not installed"
    );
    Ok(None)
}

/// The folder with the newest release, if it is built.
pub(crate) fn built() -> Result<Option<PathBuf>> {
    let is_built = is_built(&Versions::All.modules())? || is_built(&Versions::Newest.modules())?;
    is_built.then(newest).transpose()
}

/// The folder with the newest release. One with older kube-proxies as well serves too, if it is there.
pub(crate) fn newest() -> Result<PathBuf> {
    let all = Versions::All.modules();
    build(&match is_built(&all)? {
        true => all,
        false => Versions::Newest.modules(),
    })
}

/// Whether all programs of a cluster of `cargo xtask cluster` are built.
pub(crate) fn cluster_is_built() -> Result<bool> {
    let mut modules = vec![&node::MODULE, &coredns::MODULE];
    modules.extend(flannel::MODULES);
    let alone = modules.into_iter().map(|module| is_built(&[module]));
    let all = alone
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .all(|one| one);
    Ok(all && built()?.is_some())
}

fn is_built(modules: &[&'static Module]) -> Result<bool> {
    let key = key(&root()?.join("tests/control-plane"), modules)?;
    Ok(cache_folder("control-plane")?.join(key).exists())
}

/// Builds all programs unless that has been done, and returns their folder, which holds each under its name and a
/// file `versions` with a line `name version` for each. A second caller waits for the first.
fn build(wanted: &[&Module]) -> Result<PathBuf> {
    build_with(wanted, &|_| Ok(()))
}

/// The same with further files, which `more` puts into the folder and which depend on nothing but the same pins.
fn build_with(wanted: &[&Module], more: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let modules = root()?.join("tests/control-plane");
    let cache = cache_folder("control-plane")?;
    fs::create_dir_all(&cache).with_context(|| format!("make {cache:?}"))?;
    let key = key(&modules, wanted)?;
    let done = cache.join(&key);
    let lock = File::create(cache.join(format!("{key}.lock")))?;
    lock.lock().context("wait for another build")?;
    if done.exists() {
        return Ok(done);
    }
    if tools::find("go").is_none() {
        bail!(
            "no program `go` on PATH: install Go, the version that tests/control-plane/go.mod asks for or newer"
        );
    }
    eprintln!(
        "building programs once for each set of versions (a whole control plane: 20 to 30 minutes)"
    );
    let draft = cache.join(format!("{key}.draft"));
    if draft.exists() {
        // Left by an interrupted build: this process has the lock.
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir_all(&draft)?;
    let mut built = String::new();
    for module in wanted {
        for (name, version) in module.build(&modules, &draft)? {
            built += &format!("{name} {version}\n");
        }
    }
    more(&draft)?;
    fs::write(draft.join("versions"), built)?;
    fs::rename(&draft, &done).with_context(|| format!("rename {draft:?} to {done:?}"))?;
    Ok(done)
}

/// `$XDG_CACHE_HOME/portolan/NAME`, or below `~/.cache`.
pub(crate) fn cache_folder(name: &str) -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("portolan").join(name))
}

/// A hash of everything that decides what is built: the pins, and how this file builds.
fn key(modules: &Path, wanted: &[&Module]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    format!("{BUILT_AS} {TAGS}").hash(&mut hasher);
    for module in wanted {
        format!("{module:?}").hash(&mut hasher);
        for file in ["go.mod", "go.sum"] {
            let path = modules.join(module.folder).join(file);
            fs::read(&path)
                .with_context(|| format!("read {path:?}"))?
                .hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

impl Module {
    /// Builds into `draft`; returns names and versions.
    fn build(&self, modules: &Path, draft: &Path) -> Result<Vec<(String, String)>> {
        let folder = modules.join(self.folder);
        let mut built = Vec::new();
        let mut stamps = Vec::new();
        for (module, package, name) in self.programs {
            let version = self.version(&folder, module)?;
            for stamp in stamps_of(module, &version) {
                if !stamps.contains(&stamp) {
                    stamps.push(stamp);
                }
            }
            built.push((*package, file_name(name, &version), version));
        }
        for (_, name, version) in &built {
            eprintln!("  {name} {version}");
        }
        // In a folder of its own: kube-proxy is built under the same name by several modules.
        let out = draft.join("out");
        let mut go = self.go(&folder);
        go.args(["build", "-trimpath", "-tags", TAGS, "-ldflags"])
            .arg(format!("-s -w {}", stamps.join(" ")))
            .arg("-o")
            .arg(&out)
            .args(self.programs.iter().map(|(_, package, _)| package));
        // With -o a folder that exists, each program gets the name of its package.
        fs::create_dir(&out)?;
        run(&mut go).with_context(|| format!("build the module {folder:?}"))?;
        for (package, name, _) in &built {
            fs::rename(out.join(go_name(package)), draft.join(name))
                .with_context(|| format!("move {name}"))?;
        }
        fs::remove_dir(&out)?;
        Ok(built
            .into_iter()
            .map(|(_, name, version)| (name, version))
            .collect())
    }

    /// The version of a module that ours pins.
    fn version(&self, folder: &Path, module: &str) -> Result<String> {
        let version = output(
            self.go(folder)
                .args(["list", "-m", "-f", "{{.Version}}", module]),
        )?;
        Ok(String::from_utf8(version)?.trim().to_owned())
    }

    /// `go` with the settings of the pins, regardless of the environment.
    fn go(&self, folder: &Path) -> Command {
        let mut go = Command::new("go");
        go.current_dir(folder)
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("GOWORK", "off")
            // Compilers that collect their garbage less often: a tenth less time for about 1 GB.
            .env("GOGC", "400")
            .env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        go
    }
}

/// Linker flags that set version variables, so that `/version`, `--version` and user agents are right. Kubernetes'
/// own build does it by `hack/lib/version.sh`. The commit is not known here, so it is empty.
fn stamps_of(module: &str, version: &str) -> Vec<String> {
    let stamp = |variable: String, value: &str| format!("-X {variable}={value}");
    match module {
        KUBERNETES => {
            let (major, minor) = major_minor(version);
            [
                "k8s.io/component-base/version",
                "k8s.io/client-go/pkg/version",
            ]
            .into_iter()
            .flat_map(|package| {
                [
                    ("gitVersion", version),
                    ("gitMajor", major),
                    ("gitMinor", minor),
                    ("gitCommit", ""),
                ]
                .map(|(variable, value)| stamp(format!("{package}.{variable}"), value))
            })
            .collect()
        }
        FLANNEL => vec![stamp(format!("{FLANNEL}/pkg/version.Version"), version)],
        helm::HELM => vec![stamp(
            format!("{}/internal/version.version", helm::HELM),
            version,
        )],
        // etcd has its version in a constant.
        _ => Vec::new(),
    }
}

/// The file name of a program of some version: `kube-proxy` of v1.36.3 is `kube-proxy-1.36`.
fn file_name(name: &str, version: &str) -> String {
    match name {
        "kube-proxy" => {
            let (major, minor) = major_minor(version);
            format!("{name}-{major}.{minor}")
        }
        _ => name.to_owned(),
    }
}

/// `v1.36.3` -> `1` and `36`.
fn major_minor(version: &str) -> (&str, &str) {
    let mut numbers = version.trim_start_matches('v').split('.');
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

/// The name that `go build` gives to a program: the last part of its package's path that is no major version.
fn go_name(package: &str) -> &str {
    let is_version = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    package
        .rsplit('/')
        .find(|part| !is_version(part))
        .unwrap_or(package)
}
