//! The folder at one moment: what its files come to.

use std::fs;
use std::time::{Duration, Instant};

use service_model::ObjectEvent;
use tempfile::TempDir;

use super::super::{SourceEvent, read};
use super::{config, service};

fn node_port(name: &str, ip: &str, node_port: u32) -> String {
    service(name, ip, 80).replace("spec:", "spec:\n  type: NodePort")
        + &format!("    nodePort: {node_port}\n")
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

#[test]
fn a_node_port_out_of_range_names_file_line_object_and_field() {
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
fn documents_that_are_not_objects_are_named_and_others_read() {
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
fn a_syntax_error_has_its_line_in_the_file() {
    for (text, line) in [
        ("a: [\n", 1),
        ("# c\n---\nkind: List\n---\n\na: 1\na: 2\n", 7),
        ("--- # c\n{\"a\": 1,\n \"b\": }}\n", 3),
        ("%YAML 1.2\n---\nkind: List\n...\n---\na: b: c\n", 6),
    ] {
        let (_, problems) = read_one(text);
        let expected = format!("a.yaml\":{line}: cannot be parsed: ");
        assert!(
            problems.len() == 1 && problems[0].contains(&expected),
            "{text}: {problems:?}"
        );
        assert!(!problems[0].contains(" line "), "{problems:?}");
    }
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
fn files_that_are_not_manifests_are_ignored() {
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
