//! The folder over time: events as it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use service_model::{ObjectEvent, ObjectKind};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::{SourceEvent, TICK, read, run};
use super::{config, service};
use crate::{Events, Outage, Problem, Subject};

const LIMIT: Duration = Duration::from_secs(5);

/// A source that follows a folder, and the sum of its events.
struct Follower {
    events: Events,
    /// `default/web` to its first port's number.
    services: BTreeMap<String, u16>,
    slices: BTreeSet<String>,
    listed: BTreeSet<ObjectKind>,
    problems: BTreeMap<String, Vec<Problem>>,
    connected: Option<Result<(), Outage>>,
    deleted: Vec<String>,
    _stop: DropGuard,
}

/// Of an object with its namespace, of a file without its folder.
fn name(subject: &Subject) -> String {
    match subject {
        Subject::File(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
        Subject::Object(_, name) => name.to_string(),
    }
}

impl Follower {
    fn of(dir: &Path) -> Follower {
        let (sender, events) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        tokio::spawn(run(config(dir), sender, cancel.clone()));
        Follower {
            events,
            services: BTreeMap::new(),
            slices: BTreeSet::new(),
            listed: BTreeSet::new(),
            problems: BTreeMap::new(),
            connected: None,
            deleted: Vec::new(),
            _stop: cancel.drop_guard(),
        }
    }

    /// After the first complete view.
    async fn ready(dir: &Path) -> Follower {
        let mut follower = Follower::of(dir);
        follower
            .until("all four kinds are listed", |f| f.listed.len() == 4)
            .await;
        follower
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Follower) -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !done(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            match event {
                Ok(Some(event)) => self.on_event(event),
                Ok(None) => panic!("the source ended before {what}"),
                Err(_) => panic!(
                    "not in time: {what}; services {:?} problems {:?}",
                    self.services, self.problems
                ),
            }
        }
    }

    fn on_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(ObjectEvent::Reset { objects, .. }) => {
                self.listed.insert(ObjectKind::Service);
                self.services = objects
                    .iter()
                    .map(|s| (s.name.to_string(), s.ports[0].port))
                    .collect();
            }
            SourceEvent::Service(ObjectEvent::Apply(service)) => {
                let name = service.name.to_string();
                self.problems.remove(&name);
                self.services.insert(name, service.ports[0].port);
            }
            SourceEvent::Service(ObjectEvent::Delete(name)) => {
                self.problems.remove(&name.to_string());
                self.services.remove(&name.to_string());
                self.deleted.push(name.to_string());
            }
            SourceEvent::EndpointSlice(ObjectEvent::Reset { objects, .. }) => {
                self.listed.insert(ObjectKind::EndpointSlice);
                self.slices = objects.iter().map(|s| s.name.to_string()).collect();
            }
            SourceEvent::EndpointSlice(ObjectEvent::Apply(slice)) => {
                self.slices.insert(slice.name.to_string());
            }
            SourceEvent::EndpointSlice(ObjectEvent::Delete(name)) => {
                self.slices.remove(&name.to_string());
            }
            SourceEvent::Node(_) => {
                self.listed.insert(ObjectKind::Node);
            }
            SourceEvent::ServiceCidr(_) => {
                self.listed.insert(ObjectKind::ServiceCidr);
            }
            SourceEvent::Problem(problem) => {
                self.problems
                    .entry(name(&problem.subject()))
                    .or_default()
                    .push(problem);
            }
            SourceEvent::Solved(subject) => {
                self.problems.remove(&name(&subject));
            }
            SourceEvent::Connection { state, .. } => self.connected = Some(state),
        }
    }

    fn port(&self, name: &str) -> Option<u16> {
        self.services.get(&format!("default/{name}")).copied()
    }
}

#[tokio::test]
async fn an_edit_arrives_by_notification_before_the_next_poll() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, service("web", "10.96.0.1", 80)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    assert_eq!(follower.port("web"), Some(80));
    let mut fastest = Duration::MAX;
    for port in 81..=90 {
        let start = Instant::now();
        fs::write(&file, service("web", "10.96.0.1", port)).unwrap();
        follower
            .until("the edit", |f| f.port("web") == u16::try_from(port).ok())
            .await;
        fastest = fastest.min(start.elapsed());
    }
    // Ten edits in a row that only the next look finds would take that long each; a busy machine does not slow down all.
    assert!(fastest < TICK / 2, "{fastest:?}");
}

#[tokio::test]
async fn editors_that_replace_files_do_not_take_a_service_away() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, service("web", "10.96.0.1", 80)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;

    // A new file moved over the old one.
    let other = dir.path().join(".web.yaml.new");
    fs::write(&other, service("web", "10.96.0.1", 81)).unwrap();
    fs::rename(&other, &file).unwrap();
    follower
        .until("the replacement", |f| f.port("web") == Some(81))
        .await;

    // The old file moved aside, a new one written slowly.
    fs::rename(&file, dir.path().join("web.yaml~")).unwrap();
    let mut slow = fs::File::create(&file).unwrap();
    slow.write_all(b"apiVersion: v1\n").unwrap();
    fs::write(dir.path().join("b.yaml"), service("other", "10.96.0.2", 1)).unwrap();
    follower
        .until("another file", |f| f.port("other") == Some(1))
        .await;
    assert_eq!(follower.port("web"), Some(81));
    let rest = service("web", "10.96.0.1", 82).replace("apiVersion: v1\n", "");
    slow.write_all(rest.as_bytes()).unwrap();
    drop(slow);
    follower
        .until("the slowly written file", |f| f.port("web") == Some(82))
        .await;

    // Emptied and written again in place.
    let mut slow = fs::File::create(&file).unwrap();
    fs::write(dir.path().join("b.yaml"), service("other", "10.96.0.2", 2)).unwrap();
    follower
        .until("another edit", |f| f.port("other") == Some(2))
        .await;
    slow.write_all(service("web", "10.96.0.1", 83).as_bytes())
        .unwrap();
    drop(slow);
    follower
        .until("the file written in place", |f| f.port("web") == Some(83))
        .await;
    assert!(follower.deleted.is_empty(), "{:?}", follower.deleted);
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
}

#[tokio::test]
async fn removed_files_and_documents_take_their_objects_away() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.json"));
    let two = [
        service("one", "10.96.0.1", 1),
        service("two", "10.96.0.2", 2),
    ]
    .join("---\n");
    fs::write(&a, two).unwrap();
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"three"},"spec":{"clusterIP":"10.96.0.3","ports":[{"port":3}]}}"#;
    fs::write(&b, json).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    assert_eq!(follower.services.len(), 3);
    fs::write(&a, service("two", "10.96.0.2", 2)).unwrap();
    follower
        .until("one is gone", |f| f.port("one").is_none())
        .await;
    fs::remove_file(&b).unwrap();
    follower
        .until("three is gone", |f| f.port("three").is_none())
        .await;
    assert_eq!(
        follower.services,
        BTreeMap::from([("default/two".into(), 2)])
    );
}

#[tokio::test]
async fn an_invalid_object_keeps_its_last_version_and_others_change() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("web.yaml");
    let both = |web: u32, other: u32| {
        [
            service("web", "10.96.0.1", web),
            service("other", "10.96.0.2", other),
        ]
        .join("---\n")
    };
    fs::write(&file, both(80, 1)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    fs::write(&file, both(70000, 2)).unwrap();
    follower
        .until("the good object", |f| f.port("other") == Some(2))
        .await;
    follower
        .until("the problem", |f| f.problems.contains_key("default/web"))
        .await;
    assert_eq!(follower.port("web"), Some(80));
    let problem = &follower.problems["default/web"][0];
    let Problem::Object { at, invalid } = problem else {
        panic!("{problem:?}");
    };
    assert_eq!(*at, Some((file.clone(), 8)));
    assert_eq!(invalid.field, "spec.ports[0].port");
    // Back to what was served all along: nothing to apply, but the problem is over.
    fs::write(&file, both(80, 2)).unwrap();
    follower
        .until("the problem is over", |f| f.problems.is_empty())
        .await;
    fs::write(&file, both(81, 2)).unwrap();
    follower
        .until("the good version", |f| f.port("web") == Some(81))
        .await;
    assert!(follower.deleted.is_empty());
}

#[tokio::test]
async fn a_document_that_does_not_parse_leaves_the_rest_in_force() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    // Also at the first reading, when there is no earlier version.
    let broken = "---\na: b\nc: [\n---\n";
    let (one, two) = (service("a", "10.96.0.1", 1), service("a2", "10.96.0.3", 1));
    fs::write(&a, one + broken + &two).unwrap();
    fs::write(&b, service("b", "10.96.0.2", 1)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    assert_eq!(
        (follower.port("a"), follower.port("a2")),
        (Some(1), Some(1))
    );
    // The second Service may be what the broken document was to be.
    fs::write(&a, service("a", "10.96.0.1", 2) + broken).unwrap();
    fs::write(&b, service("b", "10.96.0.2", 2)).unwrap();
    follower
        .until("the other file", |f| f.port("b") == Some(2))
        .await;
    follower
        .until("the problem", |f| !f.problems.is_empty())
        .await;
    follower
        .until("the rest of the file", |f| f.port("a") == Some(2))
        .await;
    assert_eq!(follower.port("a2"), Some(1));
    let Problem::File { path, line, .. } = &follower.problems["a.yaml"][0] else {
        panic!("{:?}", follower.problems);
    };
    assert_eq!(*path, a);
    assert!((11..=13).contains(line), "{line}");
    fs::write(&a, service("a", "10.96.0.1", 3)).unwrap();
    follower
        .until("the repaired file", |f| f.port("a") == Some(3))
        .await;
    follower
        .until("the problem is over", |f| f.problems.is_empty())
        .await;
    assert_eq!(follower.port("a2"), None, "it is deleted for good");
}

#[tokio::test]
async fn a_folder_swapped_as_a_config_map_is_follows() {
    let dir = TempDir::new().unwrap();
    let version = |name: &str, port: u32| {
        let real = dir.path().join(name);
        fs::create_dir(&real).unwrap();
        fs::write(real.join("web.yaml"), service("web", "10.96.0.1", port)).unwrap();
    };
    version("..1", 80);
    std::os::unix::fs::symlink("..1", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    assert_eq!(follower.port("web"), Some(80));
    let start = Instant::now();
    version("..2", 81);
    std::os::unix::fs::symlink("..2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    fs::remove_dir_all(dir.path().join("..1")).unwrap();
    follower
        .until("the new version", |f| f.port("web") == Some(81))
        .await;
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert!(follower.deleted.is_empty());
}

#[tokio::test]
async fn a_removed_folder_keeps_serving_and_is_followed_again() {
    let top = TempDir::new().unwrap();
    let dir = top.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), service("web", "10.96.0.1", 80)).unwrap();
    let mut follower = Follower::ready(&dir).await;
    fs::rename(&dir, top.path().join("away")).unwrap();
    follower
        .until(
            "word of it",
            |f| matches!(&f.connected, Some(Err(why)) if why.reason.contains("manifests")),
        )
        .await;
    assert_eq!(follower.port("web"), Some(80));

    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), service("web", "10.96.0.1", 81)).unwrap();
    follower
        .until("the new folder", |f| f.port("web") == Some(81))
        .await;
    assert_eq!(follower.connected, Some(Ok(())));
    let start = Instant::now();
    fs::write(dir.join("web.yaml"), service("web", "10.96.0.1", 82)).unwrap();
    follower
        .until("an edit in the new folder", |f| f.port("web") == Some(82))
        .await;
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_folder_behind_a_link_is_followed_through_the_link() {
    let top = TempDir::new().unwrap();
    for (name, port) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(top.path().join(name)).unwrap();
        fs::write(
            top.path().join(name).join("web.yaml"),
            service("web", "10.96.0.1", port),
        )
        .unwrap();
    }
    let current = top.path().join("current");
    std::os::unix::fs::symlink("v1", &current).unwrap();
    let mut follower = Follower::ready(&current).await;
    assert_eq!(follower.port("web"), Some(1));
    std::os::unix::fs::symlink("v2", top.path().join("next")).unwrap();
    fs::rename(top.path().join("next"), &current).unwrap();
    follower
        .until("the folder behind the link", |f| f.port("web") == Some(2))
        .await;
    fs::write(
        top.path().join("v2/web.yaml"),
        service("web", "10.96.0.1", 3),
    )
    .unwrap();
    follower
        .until("an edit behind the link", |f| f.port("web") == Some(3))
        .await;
}

#[tokio::test]
async fn a_missing_folder_is_an_error_at_the_start() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("no\nsuch");
    let (sender, _events) = mpsc::channel(1);
    let error = run(config(&missing), sender, CancellationToken::new())
        .await
        .unwrap_err();
    assert!(format!("{error:#}").contains("no\\nsuch"), "{error:#}");
    assert!(read(&config(&missing)).is_err());
}

#[tokio::test]
async fn a_duplicate_belongs_to_the_first_file_until_that_is_removed() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, service("web", "10.96.0.1", 1)).unwrap();
    fs::write(&b, format!("# two\n{}", service("web", "10.96.0.1", 2))).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    follower
        .until("the problem", |f| f.problems.contains_key("default/web"))
        .await;
    assert_eq!(follower.port("web"), Some(1));
    let problem = &follower.problems["default/web"][0];
    assert!(matches!(problem, Problem::Object { at: Some(at), .. } if *at == (b.clone(), 2)));
    assert!(problem.to_string().contains("a.yaml"), "{problem}");
    fs::remove_file(&a).unwrap();
    follower
        .until("the second file's version", |f| f.port("web") == Some(2))
        .await;
    follower
        .until("the problem is over", |f| f.problems.is_empty())
        .await;
    assert!(follower.deleted.is_empty());
}
