//! The effective configuration in its documents again: for `--write-config-to` and `/configz`.
//!
//! kube-proxy's decoder takes the first document strictly, and ignores the second. Two things have no field and are left
//! out: `--master`, and that a listener is off (an empty address in a file is the default).

use crate::command_line::{CommandLine, Dialect};
use crate::file::{KUBE_PROXY_GROUP, KUBE_PROXY_KIND, KUBE_PROXY_VERSION};
use crate::flag::{Flag, Target};
use crate::problem::Origin;
use crate::resolve::Resolved;
use crate::schema::Settings;
use crate::tables::portolan::{PORTOLAN_GROUP, PORTOLAN_KIND, PORTOLAN_VERSION};
use crate::value::Value;

/// The configuration cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("write the effective configuration as YAML: {0}")]
pub struct WriteError(String);

/// Both documents of a configuration, with all fields: what `/configz` and `/flagz` show, and what
/// `--write-config-to` writes.
#[derive(Clone, Debug)]
pub struct Documents {
    proxy: Settings,
    own: Settings,
}

impl Resolved {
    /// The documents that say what counts.
    pub fn documents(&self) -> Documents {
        let mut proxy = self.proxy.clone();
        let listeners = &self.effective.listeners;
        let text = |text: &str| Value::Text(text.to_owned());
        let address = |address: &Option<std::net::SocketAddr>| {
            let address = address.map(|address| address.to_string());
            text(&address.unwrap_or_default())
        };
        let name = self.effective.node_name.as_deref().unwrap_or_default();
        for (path, value) in [
            ("mode", text(self.effective.mode.name())),
            ("healthzBindAddress", address(&listeners.healthz)),
            ("metricsBindAddress", address(&listeners.metrics)),
            ("nodePortAddresses", self.node_ports_written()),
            ("hostnameOverride", text(name)),
        ] {
            proxy.set(path, value, Origin::Flag("--write-config-to".to_owned()));
        }
        Documents {
            proxy,
            own: self.own.clone(),
        }
    }

    /// The text of a configuration file that says what counts: both documents, all fields.
    ///
    /// # Errors
    /// When the YAML library refuses a text.
    pub fn write_config(&self) -> Result<String, WriteError> {
        let documents = self.documents();
        let mut text = String::new();
        for document in [documents.proxy_document(), documents.own_document()] {
            if !text.is_empty() {
                text.push_str("---\n");
            }
            let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
            let written = serde_saphyr::to_string_with_options(&document, options);
            text.push_str(&written.map_err(|error| WriteError(error.to_string()))?);
        }
        Ok(text)
    }
}

impl Documents {
    /// Takes the values of these fields, named by their paths, from other documents.
    pub fn apply(&mut self, changed: &Documents, fields: &[&str]) {
        let pairs = [
            (&mut self.proxy, &changed.proxy),
            (&mut self.own, &changed.own),
        ];
        for (mine, theirs) in pairs {
            for field in mine
                .table
                .iter()
                .filter(|field| fields.contains(&field.path))
            {
                let origin = Origin::Flag("--write-config-to".to_owned());
                mine.set(field.path, theirs.value(field.path), origin);
            }
        }
    }

    /// What `/configz` answers, as kube-proxy does: the configuration under the name of its group, and Portolan's own
    /// under that of its own.
    pub fn configz(&self) -> Value {
        Value::Map(vec![
            (KUBE_PROXY_GROUP.to_owned(), self.proxy_document()),
            (PORTOLAN_GROUP.to_owned(), self.own_document()),
        ])
    }

    /// All flags of `portolan run` that a document has a field for, with the values that count.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let flags = CommandLine::flags_of(Dialect::Portolan);
        let value = |flag: &Flag| match flag.target {
            Target::Proxy(path) => Some(self.proxy.value(path)),
            Target::Own(path) if !flag.inverted => Some(self.own.value(path)),
            Target::Own(_) | Target::Command(_) => None,
        };
        flags
            .filter_map(|flag| Some((flag.name, value(flag)?.describe())))
            .collect()
    }

    fn proxy_document(&self) -> Value {
        let version = format!("{KUBE_PROXY_GROUP}/{KUBE_PROXY_VERSION}");
        self.proxy.document(version, KUBE_PROXY_KIND)
    }

    fn own_document(&self) -> Value {
        let version = format!("{PORTOLAN_GROUP}/{PORTOLAN_VERSION}");
        self.own.document(version, PORTOLAN_KIND)
    }
}
