//! Arguments: pflag's grammar as kube-proxy has it, and that of Go's `flag` for flanneld.
//!
//! pflag: `--a=b`, `--a b`, `-v 2`, `-v=2`, `-v2`; `_` is `-`; a boolean flag takes a value only after `=`; the last of
//! repeated flags wins, lists append. Go's `flag`: one dash or two, the first argument that is no flag ends them.
//! Invariant: nothing here fails; what is wrong is kept, with the flag and its value, until [`CommandLine::resolve`].

use std::path::PathBuf;

use crate::flag::{Flag, Target};
use crate::problem::{Origin, Problem, shown};
use crate::schema::{Settings, Shape};
use crate::suggest;
use crate::tables::fields::COMMAND;
use crate::tables::{field_of, flags, flannel, is_switch, portolan};
use crate::value::Value;

/// Whose command line it is: that decides the grammar, some names, and what is on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// kube-proxy's, with Portolan's flags in addition. Without a mode, kube-proxy's default mode counts.
    KubeProxy,
    /// `portolan run`: the same flags and some of flanneld's; node ports are served on primary addresses by default.
    Portolan,
    /// flanneld's, with Portolan's flags in addition: the overlay is on, the service proxy and all listeners are off.
    Flanneld,
}

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run until stopped.
    Run,
    /// Make the settings that need privileges, then exit (`--init-only`).
    InitOnly,
    /// Remove what kube-proxy has left, then exit (`--cleanup`).
    Cleanup,
    /// Write the effective configuration to this file, then exit (`--write-config-to`).
    WriteConfig(PathBuf),
    /// Print the version, then exit; `raw` prints Go's structure (`--version=raw`).
    PrintVersion {
        /// `--version=raw`
        raw: bool,
    },
    /// Print the help, then exit.
    PrintHelp,
}

/// A command line, read but not yet resolved against a file.
#[derive(Clone, Debug)]
pub struct CommandLine {
    pub(crate) dialect: Dialect,
    pub(crate) given: Vec<Given>,
    /// What the command line alone can say.
    pub(crate) command: Settings,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
    /// Flags that Portolan has no use for and that have no field.
    pub(crate) inert: Vec<String>,
}

/// A flag of a document with its value: of several, in the order of the arguments.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) flag: &'static Flag,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl CommandLine {
    /// Reads arguments (without the program's name) and, through `environment`, the variables that replace flags.
    /// An empty variable is none.
    pub fn read<S: AsRef<str>>(
        dialect: Dialect,
        arguments: &[S],
        environment: impl Fn(&str) -> Option<String>,
    ) -> CommandLine {
        let mut line = CommandLine {
            dialect,
            given: Vec::new(),
            command: Settings::new(COMMAND),
            problems: Vec::new(),
            warnings: Vec::new(),
            inert: Vec::new(),
        };
        line.read_environment(environment);
        let arguments = arguments.iter().map(AsRef::as_ref);
        match dialect {
            Dialect::KubeProxy | Dialect::Portolan => line.read_pflag(arguments),
            Dialect::Flanneld => line.read_go_flag(arguments),
        }
        line
    }

    /// What the process is to do. Help and version count before anything else is checked.
    pub fn action(&self) -> Action {
        let version = self.command.text("version");
        match version.as_str() {
            _ if self.command.bool("help") => return Action::PrintHelp,
            "raw" => return Action::PrintVersion { raw: true },
            "true" => return Action::PrintVersion { raw: false },
            _ => {}
        }
        match self.command.some_text("writeConfigTo") {
            Some(path) => Action::WriteConfig(path.into()),
            None if self.command.bool("cleanup") => Action::Cleanup,
            None if self.command.bool("initOnly") => Action::InitOnly,
            None => Action::Run,
        }
    }

    /// The file to read before [`CommandLine::resolve`] (`--config`).
    pub fn config_file(&self) -> Option<PathBuf> {
        self.command.some_text("config").map(PathBuf::from)
    }

    /// The dialect's flags; the first of a name counts.
    fn flags(&self) -> impl Iterator<Item = &'static Flag> {
        Self::flags_of(self.dialect)
    }

    /// The flags of a dialect; the first of a name counts.
    pub(crate) fn flags_of(dialect: Dialect) -> impl Iterator<Item = &'static Flag> {
        let (first, second): (&[Flag], &[&str]) = match dialect {
            Dialect::KubeProxy => (flags::FLAGS, &[]),
            Dialect::Portolan => (flags::FLAGS, flannel::ALSO_IN_RUN),
            Dialect::Flanneld => (flannel::FLAGS, &[]),
        };
        let also = flannel::FLAGS
            .iter()
            .filter(|flag| second.contains(&flag.name));
        let late: &[Flag] = match dialect {
            Dialect::Flanneld => flags::FLAGS,
            _ => &[],
        };
        // flanneld's daemon can be given a file, a name and a log format as well; kube-proxy's other flags are unknown there.
        let late = late.iter().filter(|flag| {
            matches!(
                flag.name,
                "config" | "write-config-to" | "hostname-override" | "logging-format"
            )
        });
        first.iter().chain(also).chain(portolan::FLAGS).chain(late)
    }

    fn find(&self, name: &str) -> Option<&'static Flag> {
        let name = match self.dialect {
            Dialect::Flanneld => name.to_owned(),
            _ => name.replace('_', "-"),
        };
        self.flags().find(|flag| flag.name == name)
    }

    fn read_environment(&mut self, environment: impl Fn(&str) -> Option<String>) {
        let flags: Vec<_> = self.flags().collect();
        for flag in flags {
            let Some(name) = flag.env else { continue };
            let Some(text) = environment(name).filter(|text| !text.is_empty()) else {
                continue;
            };
            let (problems, given) = (self.problems.len(), self.given.len());
            self.add(flag, &text, Origin::Environment(name));
            // flanneld reports a wrong variable and goes on without it.
            if name.starts_with("FLANNELD_") && self.problems.len() > problems {
                let ignored = self.problems.drain(problems..);
                let ignored = ignored.map(|problem| format!("{problem}; the variable is ignored"));
                self.warnings.extend(ignored);
                self.given.truncate(given);
            }
        }
    }

    fn read_pflag<'a>(&mut self, arguments: impl Iterator<Item = &'a str>) {
        let mut arguments = arguments.peekable();
        let mut switch: Option<&'static Flag> = None;
        while let Some(argument) = arguments.next() {
            let before = switch.take();
            if argument == "--" {
                arguments
                    .by_ref()
                    .for_each(|rest| self.positional(rest, None));
            } else if let Some(long) = argument.strip_prefix("--") {
                let (name, value) = split(long);
                let Some(flag) = self.find(name) else {
                    self.unknown(argument, name, value.is_none(), &mut arguments);
                    continue;
                };
                switch = (value.is_none() && is_switch(flag)).then_some(flag);
                self.flag(flag, argument, value, &mut arguments);
            } else if let Some(short) = argument.strip_prefix('-').filter(|short| !short.is_empty())
            {
                self.short(argument, short, &mut arguments);
            } else {
                self.positional(argument, before);
            }
        }
    }

    /// `-v 2`, `-v=2`, `-v2` and `-h`.
    fn short<'a>(
        &mut self,
        argument: &str,
        short: &str,
        arguments: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    ) {
        let (name, rest) = split_first(short);
        match (name, self.find(name)) {
            ("h", _) => self
                .command
                .set("help", Value::Bool(true), Origin::Flag("-h".to_owned())),
            ("v", Some(flag)) => {
                let value = match rest {
                    "" => None,
                    rest => Some(
                        rest.strip_prefix('=')
                            .filter(|rest| !rest.is_empty())
                            .unwrap_or(rest),
                    ),
                };
                self.flag(flag, argument, value, arguments);
            }
            _ => {
                let long = short.split('=').next().unwrap_or_default();
                let hint = match self.find(long) {
                    Some(flag) => format!("; did you mean --{}?", flag.name),
                    None => String::new(),
                };
                let reason = format!("unknown flag{hint}");
                self.problems.push(Problem::plain(argument, reason));
                if !short.contains('=') {
                    arguments.next_if(|next| !next.starts_with('-'));
                }
            }
        }
    }

    fn read_go_flag<'a>(&mut self, arguments: impl Iterator<Item = &'a str>) {
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let name = match argument.strip_prefix('-') {
                Some("-") => return,
                Some(rest) if !rest.is_empty() => rest.strip_prefix('-').unwrap_or(rest),
                _ => {
                    let argument = shown(argument);
                    self.warnings.push(format!(
                        "{argument} is not a flag: flanneld ignores this argument and the ones after it, and so does Portolan"
                    ));
                    return;
                }
            };
            let (name, value) = split(name);
            match self.find(name) {
                Some(flag) => self.flag(flag, argument, value, &mut arguments),
                None if name == "h" => {
                    self.command
                        .set("help", Value::Bool(true), Origin::Flag("-h".to_owned()));
                }
                None => self.unknown(argument, name, value.is_none(), &mut arguments),
            }
        }
    }

    /// A flag that is known: its value is in the argument, in the next one, or implied.
    fn flag<'a>(
        &mut self,
        flag: &'static Flag,
        argument: &str,
        value: Option<&str>,
        arguments: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    ) {
        let value = match value {
            Some(value) => value,
            None if is_switch(flag) => "true",
            None => match arguments.next() {
                Some(next) => next,
                None => {
                    let reason = "needs a value";
                    return self.problems.push(Problem::plain(argument, reason));
                }
            },
        };
        self.add(flag, value, Origin::Flag(format!("--{}", flag.name)));
    }

    fn unknown<'a>(
        &mut self,
        argument: &str,
        name: &str,
        may_have_value: bool,
        arguments: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    ) {
        let hint =
            match suggest::closest(&name.replace('_', "-"), self.flags().map(|flag| flag.name)) {
                Some(name) => format!("; did you mean --{name}?"),
                None => String::new(),
            };
        self.problems
            .push(Problem::plain(argument, format!("unknown flag{hint}")));
        // The next argument is its value rather than a mistake of its own.
        if may_have_value {
            arguments.next_if(|next| !next.starts_with('-'));
        }
    }

    fn positional(&mut self, argument: &str, before: Option<&'static Flag>) {
        if argument.is_empty() {
            return;
        }
        let hint = match before {
            Some(flag) => format!("; a value of --{} must follow '='", flag.name),
            None => String::new(),
        };
        let reason = format!("unexpected argument: only flags are accepted{hint}");
        self.problems.push(Problem::plain(argument, reason));
    }

    /// Takes a value, or a problem that names flag and value.
    fn add(&mut self, flag: &'static Flag, text: &str, origin: Origin) {
        let Some(field) = field_of(flag) else { return };
        let parsed = match (field.path, flag.inverted) {
            ("version", _) => version(text),
            _ => field.shape.parse_flag(text),
        };
        let checked = parsed.and_then(|value| match field.shape.check(&value) {
            Ok(()) => Ok(value),
            Err(reason) => Err(reason),
        });
        let value = match (checked, flag.inverted) {
            (Ok(Value::Bool(value)), true) => Value::Bool(!value),
            (Ok(value), _) => value,
            (Err(reason), _) => {
                let hint = match (field.shape, text) {
                    (Shape::Level, "error" | "warn" | "info" | "debug" | "trace") => {
                        "; levels by name go to --log-level"
                    }
                    _ => "",
                };
                return self.problems.push(Problem {
                    setting: field.path.to_owned(),
                    value: Some(text.to_owned()),
                    origin: Some(origin),
                    reason: format!("{reason}{hint}"),
                });
            }
        };
        if let (Some(instead), Origin::Flag(name)) = (flag.deprecated, &origin) {
            let warning = format!("{name} is deprecated: use {instead}");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        match flag.target {
            Target::Command(_) if !field.used => {
                let name = origin_name(&origin);
                if !self.inert.contains(&name) {
                    self.inert.push(name);
                }
            }
            Target::Command(path) => self.command.set(path, value, origin),
            Target::Proxy(_) | Target::Own(_) => self.given.push(Given {
                flag,
                value,
                origin,
            }),
        }
    }
}

/// The flag or variable.
pub(crate) fn origin_name(origin: &Origin) -> String {
    match origin {
        Origin::Flag(name) => name.clone(),
        Origin::Environment(name) => (*name).to_owned(),
        Origin::File { line } => format!("line {line}"),
    }
}

/// `--version` takes a boolean, `raw`, and a version to pretend, which is of no use here.
fn version(text: &str) -> Result<Value, String> {
    let boolean = crate::go::parse_bool(text).map(|value| value.to_string());
    match (boolean, text) {
        (Some(value), _) => Ok(Value::Text(value)),
        (None, "raw") => Ok(Value::Text("raw".to_owned())),
        (None, _) => Err("must be true, false or raw".to_owned()),
    }
}

/// The name of a flag, and the value after `=`.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    }
}

fn split_first(text: &str) -> (&str, &str) {
    let end = text.chars().next().map_or(0, char::len_utf8);
    text.split_at(end)
}
