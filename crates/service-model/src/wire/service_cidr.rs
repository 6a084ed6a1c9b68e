//! networking.k8s.io/v1 ServiceCIDR.

use serde::Deserialize;

use super::node::ranges;
use super::{Converted, Interner, Metadata, Object, null_is_default};
use crate::objects::{self, Invalid, ObjectKind};

/// A ServiceCIDR as decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidr {
    /// `metadata`
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_default")]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "null_is_default")]
    cidrs: Vec<String>,
}

impl Object for ServiceCidr {
    type Model = objects::ServiceCidr;

    const KIND: ObjectKind = ObjectKind::ServiceCidr;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn into_model(
        self,
        interner: &mut Interner,
    ) -> Result<Converted<objects::ServiceCidr>, Invalid> {
        let mut report = self.metadata.report(Self::KIND, interner)?;
        let written = self.spec.cidrs.iter().enumerate();
        let name = report.object().clone();
        let cidrs = ranges(
            written.map(|(i, text)| (format!("spec.cidrs[{i}]"), text)),
            &mut report,
        );
        Ok(report.converted(objects::ServiceCidr { name, cidrs }))
    }
}
