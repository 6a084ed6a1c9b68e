use clap::{CommandFactory, Parser};

use super::{Cli, Command, LogArgs};

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

/// Where the page of commands repeats their help.
const MARK: &str = "<!-- Generated below: the help of each command. -->\n";

#[test]
fn the_page_of_commands_has_the_help_of_each() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (written, _) = page.split_once(MARK).expect("the mark");
    let mut expected = format!("{written}{MARK}");
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands_mut() {
        // The flags of `run` have a page of their own.
        if matches!(command.get_name(), "run" | "help") {
            continue;
        }
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let name = command.get_name();
        expected += &format!(
            "\n### portolan {name}\n\n```text\n{}\n```\n",
            help.join("\n")
        );
    }
    if std::env::var_os("PORTOLAN_EXPECTED").is_some_and(|value| value == "write") {
        std::fs::write(path, &expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "stale; PORTOLAN_EXPECTED=write writes docs/commands.md again"
    );
}

#[test]
fn completions_and_pages_know_the_flags_of_run() {
    let mut command = crate::operator::reference::command();
    command.clone().debug_assert();
    let mut script = Vec::new();
    clap_complete::generate(
        clap_complete::Shell::Bash,
        &mut command,
        "portolan",
        &mut script,
    );
    let script = String::from_utf8(script).unwrap();
    for word in ["--detect-local-mode", "--service", "status", "trace"] {
        assert!(script.contains(word), "{word}");
    }
    let folder = tempfile::tempdir().unwrap();
    crate::operator::reference::manual(folder.path()).unwrap();
    let page = std::fs::read_to_string(folder.path().join("portolan-run.1")).unwrap();
    assert!(page.contains("detect\\-local\\-mode"), "{page}");
}

#[test]
fn all_arguments_of_run_are_passed_on() {
    let flags = ["--config=x", "--v", "2", "--help", "-v=3", "--unknown"];
    let words = ["portolan", "run"].iter().chain(&flags);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Run(args) => assert_eq!(args.arguments, flags),
        other => panic!("parsed {other:?}"),
    }
}

#[test]
fn flags_of_the_node_are_those_of_run() {
    let words = [
        "portolan",
        "render",
        "--manifests=m",
        "--hostname-override= Node-A ",
        "--masquerade-all",
        "--nodeport-addresses=127.0.0.0/8",
        "--nodeport-addresses=all",
    ];
    let Command::Render(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not render");
    };
    let effective = args.node.line().resolve(None).unwrap().effective;
    assert_eq!(effective.node_name.as_deref(), Some("node-a"));
    assert!(effective.services.masquerade_all);
    assert_eq!(effective.services.node_port_addresses.len(), 2);
}

#[test]
fn a_number_as_log_level_is_a_verbosity_and_keeps_errors() {
    let logging = |level: &str| {
        let log_level = level.to_owned();
        let log_format = super::OutputForm::Text;
        let args = LogArgs {
            log_format,
            log_level,
        };
        args.logging().filter
    };
    assert_eq!(logging("0"), "info");
    assert!(logging("6").starts_with("info,"));
    assert_eq!(logging("warn"), "warn");
}
