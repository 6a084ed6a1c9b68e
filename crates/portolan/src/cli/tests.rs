use clap::{CommandFactory, Parser};

use super::{Cli, Command, LogArgs};

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
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
