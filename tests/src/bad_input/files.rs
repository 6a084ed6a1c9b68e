//! Files of a folder of manifests that hold no objects, or hold them badly: what no API server has.

use serde_json::Value;

use super::{Content, Find, Row, Source, Victim};
use crate::stage::Stage;

/// Files that hold no objects, or hold them badly.
pub fn files(stage: &Stage) -> Vec<Row> {
    let victim = Victim::new(stage);
    let documents = |objects: Vec<Value>| {
        let documents: Vec<String> = objects
            .iter()
            .map(|object| format!("{object:#}\n"))
            .collect();
        documents.join("---\n")
    };
    let more = documents(stage.objects(&victim.service, 0..3));
    let good = documents(victim.good());
    let row = |what, files: &[(&str, &[u8])]| Row {
        content: Content::Files(
            files
                .iter()
                .map(|(name, text)| (name.to_string(), text.to_vec()))
                .collect(),
        ),
        ..victim
            .row(what)
            .finds(Find::Servers(2))
            .only(Source::Manifests)
    };
    let file = "victim.yaml";
    let broken = |what, text: &str, line: usize| {
        row(what, &[(file, text.as_bytes())])
            .names_line(&[&format!("{file}\":{line}: cannot be parsed: ")])
    };
    let lines = |text: &str| text.bytes().filter(|byte| *byte == b'\n').count();
    let laughs = (1..9).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
        let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
        format!("{text}a{i}: &a{i} [{aliases}]\n")
    });
    let stray = format!("{more}---\njust text\n---\nkind: Service\n---\napiVersion: v1\n");
    let doubled = format!("{more}---\napiVersion: v1\nkind: Service\nkind: Node\n");
    vec![
        broken(
            "a file that is no YAML after its good documents",
            &format!("{more}---\na: [1\nb: }}\n"),
            lines(&more) + 3,
        ),
        row(
            "a file that breaks off",
            &[(file, &more.as_bytes()[..more.len() - 4])],
        )
        .names_line(&[&format!("{file}\":"), "cannot be parsed: "]),
        row(
            "a file that is no text",
            &[(file, b"kind: \xff\xfe planted")],
        )
        .names_line(&[&format!("{file}\": is not UTF-8")]),
        row("a file of a billion laughs", &[(file, laughs.as_bytes())])
            .names_line(&[&format!("{file}\""), "cannot be parsed: "]),
        row("documents that are no objects", &[(file, stray.as_bytes())])
            .names_line(&[&format!("{file}\":{}: not an object", lines(&more) + 2)])
            .names_line(&[&format!(
                "{file}\":{}: apiVersion of a Service is missing",
                lines(&more) + 4
            )])
            .names_line(&[&format!("{file}\":{}: kind is missing", lines(&more) + 6)])
            .finds(Find::Servers(3)),
        row(
            "a file whose name would be two lines",
            &[("x\nplanted\u{1b}\".yaml", b"\tplanted: [")],
        )
        .names_line(&["x\\nplanted\\u{1b}\\\".yaml\":", "cannot be parsed: "]),
        row(
            "the same object in two files",
            &[(file, good.as_bytes()), ("w.yaml", more.as_bytes())],
        )
        .names_line(&["w.yaml\":1: Service default/victim: metadata.name: is also at "]),
        broken("a key that stands twice", &doubled, lines(&more) + 4),
    ]
}
