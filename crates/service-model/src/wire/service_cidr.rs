//! networking.k8s.io/v1 ServiceCIDR.

use serde::Deserialize;

use super::node::ranges;
use super::{ConversionContext, Converted, Metadata, Object, null_is_default};
use crate::objects::{self, Invalid};

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

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn into_model(
        self,
        context: &mut ConversionContext,
    ) -> Result<Converted<objects::ServiceCidr>, Invalid> {
        let mut validation = self.metadata.validate(Self::KIND, context)?;
        let written = self.spec.cidrs.iter().enumerate();
        let name = validation.object().clone();
        let cidrs = ranges(
            written.map(|(i, text)| (format!("spec.cidrs[{i}]"), text)),
            &mut validation,
        );
        Ok(validation.converted(objects::ServiceCidr { name, cidrs }))
    }
}
