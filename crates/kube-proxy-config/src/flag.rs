//! A flag as a row of a table: a name, and the setting that it sets.

/// The setting that a flag sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A field of `KubeProxyConfiguration`.
    Proxy(&'static str),
    /// A field of `PortolanConfiguration`.
    Own(&'static str),
    /// What only the command line can say.
    Command(&'static str),
}

/// A flag.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    /// A variable that replaces the flag.
    pub(crate) env: Option<&'static str>,
    /// The flag says the opposite of its field.
    pub(crate) inverted: bool,
    /// What to use instead.
    pub(crate) deprecated: Option<&'static str>,
}

impl Flag {
    pub(crate) const fn new(name: &'static str, target: Target) -> Flag {
        Flag {
            name,
            target,
            env: None,
            inverted: false,
            deprecated: None,
        }
    }

    pub(crate) const fn env(mut self, name: &'static str) -> Flag {
        self.env = Some(name);
        self
    }

    pub(crate) const fn inverted(mut self) -> Flag {
        self.inverted = true;
        self
    }

    pub(crate) const fn deprecated(mut self, instead: &'static str) -> Flag {
        self.deprecated = Some(instead);
        self
    }

    /// kube-proxy honors this flag beside `--config` (`Options.Complete`).
    pub(crate) fn counts_beside_a_file(&self) -> bool {
        match self.target {
            Target::Proxy(path) => path == "hostnameOverride" || path.starts_with("logging."),
            Target::Own(_) => true,
            Target::Command(path) => {
                !matches!(path, "masqueradeAll" | "healthzPort" | "metricsPort")
            }
        }
    }
}
