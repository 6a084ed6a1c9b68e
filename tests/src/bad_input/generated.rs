//! Cases that no file can hold: texts of many kilobytes, a thousand endpoints, and files of a folder of manifests that are
//! no objects, which no API server has.

use serde_json::{Value, json};

use super::{Content, Document, Find, MARK, Row, SERVICE, SLICE, Source, put, victim};
use crate::stage::{Stage, service};

/// Objects that are long.
pub(super) fn objects(stage: &Stage) -> Vec<Row> {
    let row = |what: &str, objects: Vec<Value>| Row {
        content: Content::Objects(objects),
        ..Document::default().row(what, stage)
    };
    let good = || stage.objects(&victim(), 0..3);
    let port_name = format!("\"}}; add table ip {MARK} {{ }}\n{}", "x".repeat(10_000));
    let mut named_ports = good();
    put(
        &mut named_ports[SERVICE],
        "/spec/ports/0/name",
        json!(port_name),
    );
    put(&mut named_ports[SLICE], "/ports/0/name", json!(port_name));
    let text = format!("{MARK} $(reboot) \"; }}\n\u{1b}").repeat(256 * 1024 / 26);
    let mut annotated = good();
    put(
        &mut annotated[SERVICE],
        "/metadata/annotations",
        json!({ "x": text }),
    );
    let annotations = json!({
        (MARK): text,
        "endpoints.kubernetes.io/last-change-trigger-time": format!("99999999-{MARK}"),
    });
    put(&mut annotated[SLICE], "/metadata/annotations", annotations);
    let nowhere = |field: &str, value: String| {
        let mut object = service("nowhere", 91).object();
        put(&mut object, field, json!(value));
        object
    };
    let too_long = [
        nowhere("/metadata/name", "b".repeat(300)),
        nowhere("/metadata/namespace", "n".repeat(64)),
    ];
    vec![
        Row {
            said: vec![
                vec![
                    "default/bbbbbbbb".into(),
                    "…".into(),
                    "metadata.name".into(),
                ],
                vec![
                    "nnnn".into(),
                    "/nowhere".into(),
                    "metadata.namespace".into(),
                ],
            ],
            to: ([10, 96, 0, 91], 80).into(),
            find: Find::Nothing,
            ..row(
                "names that are too long",
                [good(), too_long.into()].concat(),
            )
        },
        Row {
            to: ([10, 96, 0, 92], 80).into(),
            find: Find::Servers(2),
            ..row(
                "names of the greatest length",
                [good(), long_names(stage)].concat(),
            )
        },
        row("port names of any text", named_ports),
        row("annotations of any text and length", annotated),
        Row {
            to: ([10, 96, 0, 93], 8009).into(),
            find: Find::Servers(1),
            ..row(
                "1,000 endpoints with 10 ports each",
                [good(), big(stage)].concat(),
            )
        },
    ]
}

fn long_names(stage: &Stage) -> Vec<Value> {
    let mut long = service(&"l".repeat(253), 92);
    long.node_port = None;
    let mut objects = stage.objects(&long, 0..2);
    for (object, letter) in objects.iter_mut().zip(["l", "m", "s"]) {
        put(object, "/metadata/namespace", json!("n".repeat(63)));
        put(object, "/metadata/name", json!(letter.repeat(253)));
    }
    objects
}

fn big(stage: &Stage) -> Vec<Value> {
    let mut objects = stage.objects(&service("big", 93), 0..0);
    let numbered = |base: u16| {
        let port = move |i: u16| json!({ "name": format!("p{i}"), "port": base + i });
        (0..10).map(port).collect::<Value>()
    };
    let endpoints = (0..1000).map(|i| {
        let address = format!("10.244.{}.{}", 200 + i / 250, 1 + i % 250);
        json!({ "addresses": [address] })
    });
    put(&mut objects[SERVICE], "/spec/ports", numbered(8000));
    put(&mut objects[SLICE], "/ports", numbered(9000));
    put(&mut objects[SLICE], "/endpoints", endpoints.collect());
    objects
}

/// Files that hold no objects, or hold them badly.
pub fn files(stage: &Stage) -> Vec<Row> {
    let documents = |objects: Vec<Value>| {
        let documents: Vec<String> = objects
            .iter()
            .map(|object| format!("{object:#}\n"))
            .collect();
        documents.join("---\n")
    };
    let more = documents(stage.objects(&victim(), 0..3));
    let good = documents(super::good(stage));
    // Files, and for each line of the log that must be there its words.
    let row = |what: &str, files: &[(&str, &[u8])], named: &[&[&str]]| Row {
        content: Content::Files(
            files
                .iter()
                .map(|(name, text)| (name.to_string(), text.to_vec()))
                .collect(),
        ),
        only: Some(Source::Manifests),
        named: named
            .iter()
            .map(|words| words.iter().map(ToString::to_string).collect())
            .collect(),
        find: Find::Servers(2),
        ..Document::default().row(what, stage)
    };
    let file = "victim.yaml";
    let one = |what: &str, text: &str, lines: &[usize]| {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let words: Vec<[&str; 2]> = lines.iter().map(|line| [file, line.as_str()]).collect();
        let words: Vec<&[&str]> = words.iter().map(|words| &words[..]).collect();
        row(what, &[(file, text.as_bytes())], &words)
    };
    let lines = more.lines().count();
    let laughs = (1..9).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
        let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
        format!("{text}a{i}: &a{i} [{aliases}]\n")
    });
    let stray = format!("{more}---\njust text\n---\nkind: Service\n---\napiVersion: v1\n");
    let doubled = format!("{more}---\napiVersion: v1\nkind: Service\nkind: Node\n");
    let broken = format!("{more}---\na: [1\nb: }}\n");
    let cut = &more.as_bytes()[..more.len() - 4];
    vec![
        // The good documents count.
        Row {
            find: Find::Servers(3),
            ..one(
                "a file that is no YAML after its good documents",
                &broken,
                &[lines + 3],
            )
        },
        // What breaks off is the slice of the other family.
        Row {
            find: Find::Servers(3),
            ..row("a file that ends early", &[(file, cut)], &[&[file]])
        },
        row(
            "a file that is no text",
            &[(file, b"kind: \xff\xfe planted")],
            &[&[file, "UTF-8"]],
        ),
        row(
            "a file of a billion laughs",
            &[(file, laughs.as_bytes())],
            &[&[file]],
        ),
        Row {
            find: Find::Servers(3),
            ..one(
                "documents that are no objects",
                &stray,
                &[lines + 2, lines + 4, lines + 6],
            )
        },
        row(
            "a file name of two lines",
            &[("x\nplanted\u{1b}\".yaml", b"\tplanted: [")],
            &[&["x\\nplanted\\u{1b}\\\".yaml"]],
        ),
        row(
            "the same object in two files",
            &[(file, good.as_bytes()), ("w.yaml", more.as_bytes())],
            &[&["w.yaml", "1", "default/victim", "metadata.name"]],
        ),
        Row {
            find: Find::Servers(3),
            ..one("a key that occurs twice", &doubled, &[lines + 4])
        },
    ]
}
