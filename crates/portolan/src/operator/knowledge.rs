//! Everything that requests are answered from: the catalog, and what other parts publish.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::Sources;
use super::catalog::Catalog;
use super::notices::Notices;
use super::traffic::Census;

/// Parameters of a request, by name.
pub(super) type Parameters = BTreeMap<String, String>;

/// Everything that requests are answered from.
pub(super) struct Knowledge {
    pub(super) sources: Sources,
    pub(super) catalog: RefCell<Catalog>,
    pub(super) census: RefCell<Census>,
    notices: Notices,
}

impl Knowledge {
    /// Begins with an empty catalog.
    pub(super) fn new(sources: Sources, notices: Notices) -> Knowledge {
        Knowledge {
            sources,
            catalog: RefCell::default(),
            census: RefCell::default(),
            notices,
        }
    }

    /// Brings the catalog up to date: the queued notices, and the quarantined Services.
    pub(super) fn update(&self) {
        let mut catalog = self.catalog.borrow_mut();
        self.notices
            .drain()
            .for_each(|notice| catalog.apply(notice));
        if let Some(status) = &self.sources.published.status {
            catalog.set_quarantined(status.load().quarantined.clone());
        }
    }
}
