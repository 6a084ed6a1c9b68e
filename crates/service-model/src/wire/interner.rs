//! What conversions share: whose Services are ours, and one copy of each text that many objects repeat
//! (namespaces, node names, port names).
//!
//! Invariant: equal texts interned while one of them lives share their memory; texts nobody uses any more
//! are dropped in time, so a cluster whose nodes come and go does not grow us.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Below this many texts, looking for unused ones is not worth it.
const FIRST_SWEEP: usize = 1024;

/// See the module. One belongs to each source; it is plain data.
#[derive(Debug)]
pub struct Interner {
    texts: BTreeSet<Arc<str>>,
    sweep_at: usize,
    proxy_name: Option<Arc<str>>,
}

impl Default for Interner {
    fn default() -> Self {
        Interner {
            texts: BTreeSet::new(),
            sweep_at: FIRST_SWEEP,
            proxy_name: None,
        }
    }
}

impl Interner {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the proxy of this name (`--service-proxy-name`): the Services and slices labelled with it are ours, and no
    /// others. Without a name those without the label are.
    pub fn for_proxy(proxy_name: Option<Arc<str>>) -> Self {
        Interner {
            proxy_name,
            ..Self::default()
        }
    }

    pub(super) fn proxy_name(&self) -> Option<&str> {
        self.proxy_name.as_deref()
    }

    /// The shared copy of a text.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() >= self.sweep_at {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = FIRST_SWEEP.max(self.texts.len() * 2);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_their_memory() {
        let mut interner = Interner::new();
        let (a, b) = (interner.intern("node-1"), interner.intern("node-1"));
        assert!(Arc::ptr_eq(&a, &b));
        assert_ne!(a, interner.intern("node-2"));
    }

    #[test]
    fn texts_nobody_uses_are_dropped_and_used_ones_stay_shared() {
        let mut interner = Interner::new();
        let kept = interner.intern("kept");
        for i in 0..FIRST_SWEEP * 10 {
            interner.intern(&format!("node-{i}"));
        }
        assert!(interner.texts.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &interner.intern("kept")));
    }
}
