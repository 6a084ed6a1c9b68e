//! Command lines and files of distributions, unchanged, with the effective configuration they must give.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kube_proxy_config::{CommandLine, Dialect, Resolved};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/distributions");
    let entries = std::fs::read_dir(root).expect("the folder of distributions");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut folders: Vec<_> = paths.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn text(path: PathBuf) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn command_line(folder: &Path) -> CommandLine {
    let arguments = text(folder.join("arguments")).expect("arguments");
    let arguments: Vec<&str> = arguments.lines().collect();
    let environment = text(folder.join("environment")).unwrap_or_default();
    let environment: BTreeMap<&str, &str> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let dialect = match text(folder.join("program")).as_deref().map(str::trim) {
        Some("flanneld") => Dialect::Flanneld,
        Some("portolan") => Dialect::Portolan,
        _ => Dialect::KubeProxy,
    };
    CommandLine::read(dialect, &arguments, |name| {
        environment.get(name).map(|value| (*value).to_owned())
    })
}

fn described(line: &CommandLine, resolved: &Resolved) -> String {
    let mut text = format!("# {:?}\n", line.action());
    let notes = &resolved.notes;
    if !notes.node_ports.is_empty() {
        writeln!(text, "# {}", notes.node_ports).unwrap();
    }
    for warning in &notes.warnings {
        writeln!(text, "# warning: {warning}").unwrap();
    }
    for overridden in &notes.overridden {
        writeln!(text, "# {overridden}").unwrap();
    }
    if !notes.unused.is_empty() {
        writeln!(text, "# unused: {}", notes.unused.join(", ")).unwrap();
    }
    text.push_str(&serde_saphyr::to_string(&resolved.effective).unwrap());
    text
}

#[test]
fn distributions_give_their_effective_configuration() {
    let mut different = Vec::new();
    for folder in folders() {
        let line = command_line(&folder);
        let file = text(folder.join("config"));
        assert_eq!(file.is_some(), line.config_file().is_some(), "{folder:?}");
        let resolved = line.resolve(file.as_deref());
        let resolved = resolved.unwrap_or_else(|problems| panic!("{folder:?}: {problems}"));
        let found = described(&line, &resolved);
        let path = folder.join("expected");
        if std::env::var_os("PORTOLAN_EXPECTED").is_some_and(|value| value == "write") {
            std::fs::write(&path, &found).unwrap();
        }
        if text(path).as_deref() != Some(found.as_str()) {
            different.push(format!("{}:\n{found}", folder.display()));
        }
    }
    assert!(
        different.is_empty(),
        "differs from `expected`: {}",
        different.join("\n")
    );
}

#[test]
fn a_written_configuration_means_the_same_again() {
    for folder in folders() {
        let line = command_line(&folder);
        let resolved = line
            .resolve(text(folder.join("config")).as_deref())
            .unwrap();
        let written = resolved.write_config().unwrap();
        let read = CommandLine::read(Dialect::KubeProxy, &["--config=written"], |_| None);
        let mut again = read
            .resolve(Some(&written))
            .unwrap_or_else(|problems| panic!("{folder:?}: {problems}\n{written}"));
        assert_eq!(again.notes.warnings, Vec::<String>::new(), "{folder:?}");
        // No field of the file says these two.
        let api_server = &mut again.effective.api_server;
        api_server
            .master
            .clone_from(&resolved.effective.api_server.master);
        let is_off = resolved.effective.listeners.metrics.is_none();
        if is_off {
            again.effective.listeners = resolved.effective.listeners.clone();
        }
        assert_eq!(again.effective, resolved.effective, "{folder:?}");
        assert!(
            is_off || again.write_config().unwrap() == written,
            "{folder:?}"
        );
    }
}
