//! The help against the tables of flags.

use super::*;

const ALL: [Dialect; 3] = [Dialect::KubeProxy, Dialect::Portolan, Dialect::Flanneld];

#[test]
fn every_flag_with_an_effect_has_help() {
    for dialect in ALL {
        let shown = flags(dialect);
        for flag in CommandLine::flags_of(dialect) {
            let has_effect = field_of(flag).is_some_and(|field| field.used);
            let is_shown = shown.iter().any(|help| help.name == flag.name);
            assert_eq!(has_effect, is_shown, "{dialect:?} --{}", flag.name);
        }
    }
}

#[test]
fn every_row_of_the_help_is_a_flag_of_some_dialect() {
    let rows = GROUPS.iter().flat_map(|(_, rows)| *rows);
    for (name, _, text) in rows {
        let is_flag = |dialect| flags(dialect).iter().any(|help| help.name == *name);
        assert!(ALL.into_iter().any(is_flag), "{name}");
        let first = text.chars().next().unwrap_or_default();
        assert!(
            first.is_uppercase() || text.starts_with("kube-proxy") || text.starts_with("flannel"),
            "{text}"
        );
    }
}

#[test]
fn no_line_of_the_help_is_longer_than_a_hundred_characters() {
    for line in ALL.map(text).concat().lines() {
        let line = line.trim();
        let said = line.find(" [").map_or(line, |at| line.get(..at).unwrap());
        assert!(said.chars().count() <= LONGEST, "{line}");
    }
}

#[test]
fn defaults_in_the_help_are_those_of_the_tables() {
    let text = text(Dialect::Portolan);
    for part in [
        "--conntrack-min <NUMBER>\n          Minimum nf_conntrack_max, in entries [default: 131072]",
        "[env: NODE_NAME]",
        "[default: 24h0m0s]",
        "[default: -999]",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}
