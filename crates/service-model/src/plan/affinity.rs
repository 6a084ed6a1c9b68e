//! The number that names a Service port's affinity entries in the kernel.

use crate::objects::{Service, ServicePort, TrafficPolicy};

/// The affinity group of a Service port: FNV-1a over the Service's UID, the names of Service and port and the protocol,
/// so that it is the same on every node. The kernel keeps it across restarts. The API server draws the UID, so nobody
/// can choose names that collide with another tenant's Service. In a folder of manifests there may be none.
///
/// All frontends of a Service port are one group (row 42), unless a policy is Local. Internal and external traffic may
/// then reach different endpoints, and an entry made by one could be wrong for the other: each is a group of its own.
pub(super) fn group(service: &Service, port: &ServicePort, is_external: bool) -> u32 {
    let policies = [service.internal_policy, service.external_policy];
    let side = match is_external && policies.contains(&TrafficPolicy::Local) {
        true => "external",
        false => "",
    };
    let protocol = port.protocol.to_string();
    let parts = [
        service.uid.as_deref().unwrap_or_default(),
        &*service.name.namespace,
        &*service.name.name,
        &*port.name,
        &protocol,
        side,
    ];
    hash(&parts).clamp(1, u32::MAX - 1)
}

/// The map of a Service's affinity entries: a hash of what names the Service, as for groups.
pub(super) fn map(service: &Service) -> u32 {
    let uid = service.uid.as_deref().unwrap_or_default();
    hash(&[uid, &*service.name.namespace, &*service.name.name])
}

fn hash(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
