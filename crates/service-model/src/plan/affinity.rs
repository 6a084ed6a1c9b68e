//! The number that names a Service port's affinity entries in the kernel.

use crate::hash;
use crate::objects::{Service, ServicePort, TrafficPolicy};

/// The affinity group of a Service port: a hash over the Service's UID and name, the port and the protocol,
/// so that it is the same on every node. The kernel keeps it across restarts. The API server draws the UID, and a port leaves
/// 65,535 choices, so nobody can look for a group that is another tenant's; the name of a port would leave as many as one likes.
/// In a folder of manifests there may be no UID.
///
/// All frontends of a Service port are one group (row 42), unless a policy is Local. Internal and external traffic may
/// then reach different endpoints, and an entry made by one could be wrong for the other: each is a group of its own.
pub(super) fn group(service: &Service, port: &ServicePort, is_external: bool) -> u32 {
    let policies = [service.internal_policy, service.external_policy];
    let side = match is_external && policies.contains(&TrafficPolicy::Local) {
        true => "external",
        false => "",
    };
    let (number, protocol) = (port.port.to_string(), port.protocol.to_string());
    let parts = [
        service.uid.as_deref().unwrap_or_default(),
        &*service.name.namespace,
        &*service.name.name,
        &number,
        &protocol,
        side,
    ];
    // FNV-1a of 32 bits: a group travels in the packet's priority. Of two Services that collide, the younger has no affinity.
    let step = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = bytes(&parts).fold(0x811c_9dc5, step);
    hash.clamp(1, u32::MAX - 1)
}

/// The map of a Service's affinity entries: FNV-1a over what names the Service, as for groups, but of 64 bits, since two Services
/// with one map would share its bound, and nothing else keeps them apart. Whoever wants the map of another Service has to
/// create 2^64 Services on average: the API server draws each UID after the names are chosen.
pub(super) fn map(service: &Service) -> u64 {
    let uid = service.uid.as_deref().unwrap_or_default();
    let parts = [uid, &*service.name.namespace, &*service.name.name];
    hash::fnv(bytes(&parts))
}

/// The bytes of all parts, each ended by a zero.
fn bytes<'a>(parts: &'a [&'a str]) -> impl Iterator<Item = u8> {
    parts.iter().flat_map(|part| part.bytes().chain([0]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::samples::service;

    /// With 32 bits, about five of these pairs would collide.
    #[test]
    fn two_hundred_thousand_services_have_a_map_each() {
        const SERVICES: u32 = 200_000;
        let mut service = service("shop/web", "10.96.0.1", "http/80/TCP");
        let maps = (0..SERVICES).map(|n| {
            service.name.name = format!("web-{n}").into();
            map(&service)
        });
        assert_eq!(maps.collect::<HashSet<u64>>().len(), SERVICES as usize);
    }
}
