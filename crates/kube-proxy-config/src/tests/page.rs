//! `docs/kube-proxy-flags.md`: its tables of flags and fields are those of the code, so that the page cannot be stale.

use std::fmt::Write as _;

use super::meanings::{FIELDS, OWN_FIELDS};
use crate::flag::{Flag, Target};
use crate::schema::Field;
use crate::tables::fields::{COMMAND, KUBE_PROXY};
use crate::tables::flags::FLAGS;
use crate::tables::portolan::PORTOLAN;
use crate::tables::{field_of, flannel, portolan};

const PAGE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/kube-proxy-flags.md"
);
const UNUSED: &str = "accepted and checked; named once in the log as unused";
const UNUSED_TEST: &str = "unused_flags_and_fields_are_named_once";

/// Text and tests of a path.
fn meaning(
    table: &[(&str, &'static str, &'static str)],
    path: &str,
) -> (&'static str, &'static str) {
    let found = table.iter().find(|(of, _, _)| *of == path);
    found.map_or(("", ""), |(_, text, tests)| (*text, *tests))
}

fn default_of(field: &Field) -> String {
    let text = field.default().describe();
    match text.as_str() {
        "" | "null" | "[]" | "{}" => "none".to_owned(),
        text => format!("`{text}`"),
    }
}

/// Tests in back quotes; without any of its own, the one over all flags or fields.
fn shown_by(tests: &str, of_all: &str) -> String {
    let tests = if tests.is_empty() { of_all } else { tests };
    let quoted: Vec<String> = tests.split(' ').map(|test| format!("`{test}`")).collect();
    quoted.join(" ")
}

fn field_rows(table: &[Field], meanings: &[(&str, &'static str, &'static str)]) -> String {
    let mut rows = String::from("| field | default | Portolan | shown by |\n|---|---|---|---|\n");
    for field in table {
        let (text, tests) = meaning(meanings, field.path);
        let (text, of_all) = match field.used {
            false => (UNUSED, UNUSED_TEST),
            true => (text, "defaults_pass_their_own_checks"),
        };
        assert!(!text.is_empty(), "no meaning of {}", field.path);
        let (path, default) = (field.path, default_of(field));
        let tests = shown_by(tests, of_all);
        writeln!(rows, "| `{path}` | {default} | {text} | {tests} |").unwrap();
    }
    rows
}

/// A row of flags: each sets a field that the page explains, or has its meaning here.
fn flag_rows(table: &[Flag], meanings: &[(&str, &'static str, &'static str)]) -> String {
    let mut rows = String::from("| flag | variable | Portolan | shown by |\n|---|---|---|---|\n");
    for flag in table {
        let field = field_of(flag).unwrap();
        let (text, tests) = match flag.target {
            Target::Command(path) if field.used => meaning(meanings, path),
            _ => ("", ""),
        };
        let not = if flag.inverted {
            "the opposite of "
        } else {
            ""
        };
        let mut text = match flag.target {
            _ if !field.used => UNUSED.to_owned(),
            Target::Command(_) => text.to_owned(),
            Target::Proxy(path) | Target::Own(path) => format!("{not}`{path}`"),
        };
        assert!(!text.is_empty(), "no meaning of --{}", flag.name);
        if let Some(instead) = flag.deprecated {
            write!(text, "; deprecated for `{instead}`").unwrap();
        }
        let of_all = if field.used {
            "every_flag_takes_the_default_of_its_field"
        } else {
            UNUSED_TEST
        };
        let variable = flag.env.map_or(String::new(), |name| format!("`{name}`"));
        let tests = shown_by(tests, of_all);
        writeln!(
            rows,
            "| `--{}` | {variable} | {text} | {tests} |",
            flag.name
        )
        .unwrap();
    }
    rows
}

/// Replaces what is between the two marks of a section.
fn replaced(page: &str, section: &str, rows: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {section} -->\n"),
        format!("<!-- end {section} -->"),
    );
    let (head, rest) = page.split_once(&begin).expect("the begin of a section");
    let (_, tail) = rest.split_once(&end).expect("the end of a section");
    format!("{head}{begin}\n{rows}\n{end}{tail}")
}

#[test]
fn the_page_of_flags_has_the_tables_of_the_code() {
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let sections = [
        ("kube-proxy flags", flag_rows(FLAGS, FIELDS)),
        ("KubeProxyConfiguration", field_rows(KUBE_PROXY, FIELDS)),
        ("flanneld flags", flag_rows(flannel::FLAGS, FIELDS)),
        ("Portolan flags", flag_rows(portolan::FLAGS, OWN_FIELDS)),
        ("PortolanConfiguration", field_rows(PORTOLAN, OWN_FIELDS)),
    ];
    let mut expected = page.clone();
    for (section, rows) in &sections {
        expected = replaced(&expected, section, rows);
    }
    if std::env::var_os("PORTOLAN_EXPECTED").is_some_and(|value| value == "write") {
        std::fs::write(PAGE, &expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "stale; PORTOLAN_EXPECTED=write writes docs/kube-proxy-flags.md again"
    );
}

#[test]
fn every_meaning_is_of_a_setting_that_is_used() {
    let is_used = |tables: &[&[Field]], path: &str| {
        let mut fields = tables.iter().flat_map(|table| table.iter());
        fields.any(|field| field.path == path && field.used)
    };
    for (path, _, _) in FIELDS {
        assert!(is_used(&[KUBE_PROXY, COMMAND], path), "{path}");
    }
    for (path, _, _) in OWN_FIELDS {
        assert!(is_used(&[PORTOLAN], path), "{path}");
    }
}
