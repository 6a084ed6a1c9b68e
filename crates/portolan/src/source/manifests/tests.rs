use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use service_model::{ObjectEvent, ObjectKind};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ManifestsConfig, SourceEvent, read, run};
use crate::source::{Events, Problem};

const LIMIT: Duration = Duration::from_secs(5);

fn service(name: &str, ip: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {ip}\n  ports:\n  - port: {port}\n"
    )
}

fn node_port(name: &str, ip: &str, node_port: u32) -> String {
    service(name, ip, 80).replace("spec:", "spec:\n  type: NodePort")
        + &format!("    nodePort: {node_port}\n")
}

fn config(dir: &Path) -> ManifestsConfig {
    ManifestsConfig {
        dir: dir.to_owned(),
        node_ports: 30000..=32767,
    }
}

/// The source running on a folder, and what it has told so far, as a reader would know it.
struct Follower {
    events: Events,
    /// `default/web` to its first port's number.
    services: BTreeMap<String, u16>,
    slices: BTreeSet<String>,
    listed: BTreeSet<ObjectKind>,
    problems: BTreeMap<String, Vec<Problem>>,
    connected: Option<Result<(), String>>,
    deleted: Vec<String>,
    _stop: DropGuard,
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
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("the source ended before {what}"),
                Err(_) => panic!(
                    "not in time: {what}; services {:?} problems {:?}",
                    self.services, self.problems
                ),
            }
        }
    }

    fn take(&mut self, event: SourceEvent) {
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
                    .entry(problem.invalid.object.to_string())
                    .or_default()
                    .push(problem);
            }
            SourceEvent::Solved { object, .. } => {
                self.problems.remove(&object.to_string());
            }
            SourceEvent::Connection { state, .. } => self.connected = Some(state),
        }
    }

    fn port(&self, name: &str) -> Option<u16> {
        self.services.get(&format!("default/{name}")).copied()
    }
}

fn problems(events: &[SourceEvent]) -> Vec<String> {
    events
        .iter()
        .filter_map(|e| {
            if let SourceEvent::Problem(p) = e {
                Some(p.to_string())
            } else {
                None
            }
        })
        .collect()
}

fn services(events: &[SourceEvent]) -> Vec<String> {
    let mut names = Vec::new();
    for event in events {
        if let SourceEvent::Service(ObjectEvent::Reset { objects, .. }) = event {
            names.extend(objects.iter().map(|s| s.name.to_string()));
        }
    }
    names
}

/// What one reading of a single file called `a.yaml` says.
fn read_one(text: impl AsRef<[u8]>) -> (Vec<String>, Vec<String>) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), text).unwrap();
    let events = read(&config(dir.path())).unwrap();
    (services(&events), problems(&events))
}

#[tokio::test]
async fn an_edit_arrives_within_100_ms() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, service("web", "10.96.0.1", 80)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    assert_eq!(follower.port("web"), Some(80));
    for port in 81..=90 {
        let start = Instant::now();
        fs::write(&file, service("web", "10.96.0.1", port)).unwrap();
        follower
            .until("the edit", |f| f.port("web") == u16::try_from(port).ok())
            .await;
        // The promise is to the kernel; half of it is ours. (The folder's own tick takes ten times as long.)
        assert!(
            start.elapsed() < Duration::from_millis(100),
            "{:?}",
            start.elapsed()
        );
    }
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
async fn an_object_that_turns_invalid_keeps_serving_and_the_rest_of_its_file_goes_on() {
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
    assert_eq!(problem.place, Some((file.clone(), 8)));
    assert_eq!(problem.invalid.field, "spec.ports[0].port");
    assert!(problem.whole_object);
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
async fn a_file_that_does_not_parse_keeps_its_objects_and_other_files_are_unaffected() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, service("a", "10.96.0.1", 1)).unwrap();
    fs::write(&b, service("b", "10.96.0.2", 1)).unwrap();
    let mut follower = Follower::ready(dir.path()).await;
    fs::write(&a, service("a", "10.96.0.1", 2) + "---\na: b\nc: [\n").unwrap();
    fs::write(&b, service("b", "10.96.0.2", 2)).unwrap();
    follower
        .until("the other file", |f| f.port("b") == Some(2))
        .await;
    follower
        .until("the problem", |f| !f.problems.is_empty())
        .await;
    assert_eq!(follower.port("a"), Some(1));
    let (path, line) = follower.problems["a.yaml"][0].place.clone().unwrap();
    assert_eq!(path, a);
    assert!((11..=13).contains(&line), "{line}");
    fs::write(&a, service("a", "10.96.0.1", 3)).unwrap();
    follower
        .until("the repaired file", |f| f.port("a") == Some(3))
        .await;
    follower
        .until("the problem is over", |f| f.problems.is_empty())
        .await;
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
async fn a_folder_that_goes_keeps_serving_and_is_followed_again_when_it_returns() {
    let top = TempDir::new().unwrap();
    let dir = top.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), service("web", "10.96.0.1", 80)).unwrap();
    let mut follower = Follower::ready(&dir).await;
    fs::rename(&dir, top.path().join("away")).unwrap();
    follower
        .until(
            "word of it",
            |f| matches!(&f.connected, Some(Err(why)) if why.contains("manifests")),
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
async fn the_first_file_has_an_object_and_the_second_takes_over() {
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
    assert_eq!(problem.place, Some((b.clone(), 2)));
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

#[test]
fn a_node_port_outside_the_range_is_refused_with_file_line_object_and_field() {
    let text =
        node_port("good", "10.96.0.1", 30080) + "---\n" + &node_port("bad", "10.96.0.2", 8080);
    let (services, problems) = read_one(text);
    assert_eq!(services, ["default/good"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    for part in [
        "a.yaml\":21: ",
        "Service default/bad",
        "spec.ports[0].nodePort",
        "8080",
        "30000-32767",
    ] {
        assert!(problem.contains(part), "{part} not in {problem}");
    }
}

#[test]
fn a_field_of_the_wrong_type_is_found_in_a_list() {
    let text = "\
kind: List
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata: {name: bad, namespace: ns}
  spec:
    clusterIP: 10.96.0.9
    ports:
    - port: 1
    - port: eighty
- apiVersion: v1
  kind: Service
  metadata: {name: good}
  spec: {clusterIP: 10.96.0.8, ports: [{port: 1}]}
";
    let (services, problems) = read_one(text);
    assert_eq!(services, ["default/good"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    for part in [
        "a.yaml\":11: ",
        "Service ns/bad",
        "spec.ports[1].port",
        "eighty",
    ] {
        assert!(problems[0].contains(part), "{part} not in {}", problems[0]);
    }
}

#[test]
fn typed_lists_and_lists_of_lists_are_flattened() {
    let item = |name: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"10.96.0.1","ports":[{{"port":1}}]}}}}"#
        )
    };
    let typed = format!(
        r#"{{"apiVersion":"v1","kind":"ServiceList","items":[{},{}]}}"#,
        item("a"),
        item("b")
    );
    let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{typed}]}}"#);
    let (services, problems) = read_one(text);
    assert_eq!(services, ["default/a", "default/b"]);
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn other_kinds_are_ignored_even_when_they_are_called_service() {
    let text = "\
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
# nothing
---
";
    assert_eq!(read_one(text), (vec![], vec![]));
}

#[test]
fn documents_that_are_no_objects_are_named_and_the_others_go_on() {
    let text = format!(
        "hello\n---\n- 1\n---\nkind: Service\nmetadata: {{name: x}}\n---\n{}",
        service("a", "10.96.0.1", 1)
    );
    let (services, problems) = read_one(text);
    assert_eq!(services, ["default/a"]);
    let places: Vec<&str> = problems
        .iter()
        .map(|p| {
            p.split("a.yaml")
                .nth(1)
                .unwrap()
                .split(": ")
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(places, ["\":1", "\":3", "\":5"]);
    assert!(problems[2].contains("apiVersion"), "{problems:?}");
}

#[test]
fn hostile_files_are_refused_and_cost_little() {
    let start = Instant::now();
    let laughs = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        let alias = format!("*a{},", i - 1);
        text + &format!("a{i}: &a{i} [{}]\n", alias.repeat(9))
    });
    let deep = "[".repeat(100_000);
    let deep_blocks: String = (0..2_000).map(|i| " ".repeat(i) + "a:\n").collect();
    for text in [
        laughs.as_bytes(),
        deep.as_bytes(),
        deep_blocks.as_bytes(),
        b"\xff\xfe\x00",
        b"a: 1\na: 2\n",
    ] {
        let (services, problems) = read_one(text);
        assert!(services.is_empty());
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn hostile_names_and_values_stay_on_one_printable_line() {
    let long = "x".repeat(100_000);
    let text = format!(
        "{}---\n{}---\n{}",
        service("\"a\\n\\e[31mb\"", "10.96.0.1", 1),
        service("web", "\"10.96.0.1\\nfake: log line\"", 1),
        service("big", "10.96.0.2", 1).replace("port: 1", &format!("port: {long}")),
    );
    let (services, problems) = read_one(text);
    assert!(services.is_empty());
    assert_eq!(problems.len(), 3, "{problems:?}");
    for problem in problems {
        assert!(!problem.chars().any(char::is_control), "{problem:?}");
        assert!(problem.len() < 1000, "{}", problem.len());
    }
}

#[test]
fn a_hostile_file_name_is_printed_escaped() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a\n\u{1b}[31m.yaml"), "a: [\n").unwrap();
    let problems = problems(&read(&config(dir.path())).unwrap());
    assert_eq!(problems.len(), 1);
    assert!(!problems[0].chars().any(char::is_control), "{problems:?}");
}

#[test]
fn what_is_no_manifest_is_left_alone() {
    let dir = TempDir::new().unwrap();
    for name in ["web.yaml~", ".web.yaml", "notes.txt", "#web.yaml#"] {
        fs::write(dir.path().join(name), service("web", "10.96.0.1", 80)).unwrap();
    }
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("gone.yaml")).unwrap();
    // Reading it would wait for ever.
    nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let events = read(&config(dir.path())).unwrap();
    assert!(services(&events).is_empty());
    assert!(problems(&events).is_empty());
}

#[test]
fn a_link_to_itself_is_a_problem_and_other_files_are_unaffected() {
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink("loop.yaml", dir.path().join("loop.yaml")).unwrap();
    fs::write(dir.path().join("web.yaml"), service("web", "10.96.0.1", 80)).unwrap();
    let events = read(&config(dir.path())).unwrap();
    assert_eq!(services(&events), ["default/web"]);
    assert_eq!(problems(&events).len(), 1);
}
