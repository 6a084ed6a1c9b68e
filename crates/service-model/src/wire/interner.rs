//! One copy of each text that many objects repeat: namespaces, node names, port names.
//!
//! Invariant: equal texts that are in use share their memory; unused texts are dropped in time, so memory does not grow
//! while nodes come and go.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Below this many texts, looking for unused ones is not worth it.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Interner {
    texts: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Interner {
            texts: BTreeSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl Interner {
    /// The shared copy of a text.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
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
        let mut interner = Interner::default();
        let (a, b) = (interner.intern("node-1"), interner.intern("node-1"));
        assert!(Arc::ptr_eq(&a, &b));
        assert_ne!(a, interner.intern("node-2"));
    }

    #[test]
    fn unused_texts_are_dropped_and_used_ones_stay_shared() {
        let mut interner = Interner::default();
        let kept = interner.intern("kept");
        for i in 0..FIRST_SWEEP * 10 {
            interner.intern(&format!("node-{i}"));
        }
        assert!(interner.texts.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &interner.intern("kept")));
    }
}
