//! Flags of `portolan run` that decide what Services mean on a node, for commands that only plan.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kube_proxy_config::help::{self, FlagHelp};
use kube_proxy_config::{CommandLine, Dialect};

const NAMES: &[&str] = &[
    "allowed-external-ips",
    "cluster-cidr",
    "config",
    "detect-local-mode",
    "hostname-override",
    "masquerade-all",
    "node-port-range",
    "nodeport-addresses",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "proxy-mode",
    "service-proxy-name",
];

/// The flags that are given, as `--name=value`.
#[derive(Clone, Debug, Default)]
pub struct NodeFlags(Vec<String>);

impl NodeFlags {
    /// Reads them, together with the variables that replace flags.
    pub fn line(&self) -> CommandLine {
        CommandLine::read(Dialect::Portolan, &self.0, |name| std::env::var(name).ok())
    }
}

fn flags() -> impl Iterator<Item = FlagHelp> {
    let all = help::flags(Dialect::Portolan).into_iter();
    all.filter(|flag| NAMES.contains(&flag.name))
}

impl Args for NodeFlags {
    fn augment_args(command: Command) -> Command {
        command.args(flags().map(|flag| {
            let arg = Arg::new(flag.name)
                .long(flag.name)
                .help(flag.text)
                .help_heading(flag.group)
                .action(ArgAction::Append);
            match flag.value {
                "" => arg
                    .value_name("BOOL")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                value => arg.value_name(value),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for NodeFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for flag in flags() {
            let values = matches.get_many::<String>(flag.name).into_iter().flatten();
            given.extend(values.map(|value| format!("--{}={value}", flag.name)));
        }
        Ok(NodeFlags(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
