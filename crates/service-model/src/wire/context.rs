//! What the conversions of one source share: interned texts, and which Services are this proxy's.

use std::sync::Arc;

use super::interner::Interner;

/// One belongs to each source; it is plain data.
#[derive(Debug, Default)]
pub struct ConversionContext {
    texts: Interner,
    proxy_name: Option<Arc<str>>,
}

impl ConversionContext {
    /// For the proxy of this name (`--service-proxy-name`): it serves the Services and slices that are labeled with it.
    /// Without a name it serves those without the label.
    pub fn new(proxy_name: Option<Arc<str>>) -> Self {
        ConversionContext {
            texts: Interner::default(),
            proxy_name,
        }
    }

    /// Whether an object with this value of the label is this proxy's.
    pub(super) fn serves(&self, label: Option<&str>) -> bool {
        label == self.proxy_name.as_deref()
    }

    /// The shared copy of a text.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        self.texts.intern(text)
    }
}
