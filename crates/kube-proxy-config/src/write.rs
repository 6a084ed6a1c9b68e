//! The effective configuration in its documents again: for `--write-config-to` and `/configz`.
//!
//! kube-proxy's decoder takes the first document strictly, and ignores the second. Two things have no field and are left
//! out: `--master`, and that a listener is off (an empty address in a file is the default).

use crate::file::{KUBE_PROXY_GROUP, KUBE_PROXY_KIND, KUBE_PROXY_VERSION};
use crate::problem::Origin;
use crate::resolve::Resolved;
use crate::schema::Settings;
use crate::tables::portolan::{PORTOLAN_GROUP, PORTOLAN_KIND, PORTOLAN_VERSION};
use crate::value::Value;

/// The configuration cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("write the effective configuration as YAML: {0}")]
pub struct WriteError(String);

impl Resolved {
    /// The text of a configuration file that says what counts: both documents, all fields.
    ///
    /// # Errors
    /// When the YAML library refuses a text.
    pub fn write_config(&self) -> Result<String, WriteError> {
        let mut text = String::new();
        for document in [self.proxy_document(), self.own_document()] {
            if !text.is_empty() {
                text.push_str("---\n");
            }
            let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
            let written = serde_saphyr::to_string_with_options(&document, options);
            text.push_str(&written.map_err(|error| WriteError(error.to_string()))?);
        }
        Ok(text)
    }

    /// What `/configz` answers, as kube-proxy does: the configuration under the name of its group, and Portolan's own
    /// under that of its own.
    pub fn configz(&self) -> Value {
        Value::Map(vec![
            (KUBE_PROXY_GROUP.to_owned(), self.proxy_document()),
            (PORTOLAN_GROUP.to_owned(), self.own_document()),
        ])
    }

    fn proxy_document(&self) -> Value {
        let mut settings = self.proxy.clone();
        let listeners = &self.effective.listeners;
        let text = |text: &str| Value::Text(text.to_owned());
        let address = |address: &Option<std::net::SocketAddr>| {
            text(
                &address
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
            )
        };
        set(&mut settings, "mode", text(self.effective.mode.name()));
        set(
            &mut settings,
            "healthzBindAddress",
            address(&listeners.healthz),
        );
        set(
            &mut settings,
            "metricsBindAddress",
            address(&listeners.metrics),
        );
        set(
            &mut settings,
            "nodePortAddresses",
            self.node_ports_written(),
        );
        let name = self.effective.node_name.as_deref().unwrap_or_default();
        set(&mut settings, "hostnameOverride", text(name));
        let version = format!("{KUBE_PROXY_GROUP}/{KUBE_PROXY_VERSION}");
        settings.document(version, KUBE_PROXY_KIND)
    }

    fn own_document(&self) -> Value {
        let version = format!("{PORTOLAN_GROUP}/{PORTOLAN_VERSION}");
        self.own.document(version, PORTOLAN_KIND)
    }
}

fn set(settings: &mut Settings, path: &'static str, value: Value) {
    settings.set(path, value, Origin::Flag("--write-config-to".to_owned()));
}
