//! The ordered steps from what the kernel holds to what it should hold.
//!
//! The rule that seals a port comes first, so that no packet leaves in clear text while devices are made. A device gets key
//! and peers before it is set up, and routes and rules after: the kernel refuses routes through a device that is down.
//! An address belongs to one peer of a device: putting a peer takes its addresses from the others, so peers are put before
//! stale ones are removed, and a peer that lost an address to another one is put again by the next observation.
//!
//! Invariant: there are no steps between equal states.

use std::collections::BTreeMap;
use std::time::Duration;

use net_types::Family;

use crate::key::PublicKey;
use crate::state::{
    Device, KEEPALIVE, Observed, ObservedDevice, ObservedPeer, Peer, PeerChange, Rule, Step,
    UNREACHABLE, Wanted,
};

/// Loose reverse-path filtering (`ip-sysctl.rst`, RFC 3704).
const LOOSE: u32 = 2;
/// After this time without a handshake, a peer's endpoint is set again. The kernel follows a peer to the address that its
/// packets come from, and that is left alone while the peer answers.
const SILENT: Duration = Duration::from_secs(30);

/// Whether devices and peers that are not wanted are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletions {
    /// They stay: the list of peers may be incomplete.
    Held,
    /// They are deleted.
    Allowed,
}

/// The steps. `now` is the time since 1970.
pub fn difference(
    wanted: &Wanted,
    found: &Observed,
    deletions: Deletions,
    now: Duration,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let families = Family::ALL.into_iter();
    let families: Vec<Family> = families.filter(|f| !found.without.contains(f)).collect();
    let wanted_rules: Vec<(Family, Rule)> = families
        .iter()
        .flat_map(|family| rules(wanted).into_iter().map(|rule| (*family, rule)))
        .collect();
    let missing = |rule: &&(Family, Rule)| !found.rules.contains(*rule);
    let missing: Vec<&(Family, Rule)> = wanted_rules.iter().filter(missing).collect();
    let last = |family: &Family| Some((*family, wanted.seal?.table, UNREACHABLE));
    let last: Vec<(Family, u32, u32)> = families.iter().filter_map(last).collect();
    let missing_last = last.iter().filter(|route| !found.routes.contains(route));
    steps.extend(missing_last.map(|(f, table, to)| Step::AddRoute(*f, *table, *to)));
    // Before the seal, so that no packet that may pass is refused for a moment.
    let (seals, devices): (Vec<_>, Vec<_>) = missing
        .into_iter()
        .partition(|(_, rule)| matches!(rule, Rule::Seal(_)));
    let adding = |(family, rule): &(Family, Rule)| Step::AddRule(*family, rule.clone());
    steps.extend(devices.into_iter().chain(seals).map(adding));
    for (name, device) in &wanted.devices {
        match found.devices.get(*name) {
            None => steps.push(Step::CreateDevice(name, device.mtu)),
            Some(other) if !other.is_wireguard => {
                steps.push(Step::DeleteDevice(other.index, (*name).to_owned()));
                steps.push(Step::CreateDevice(name, device.mtu));
            }
            Some(found_device) => {
                device_steps(device, found_device, (deletions, now), &mut steps);
                if device.ready {
                    let index = found_device.index;
                    let route = |family: &Family| (*family, device.table, index);
                    let missing = families.iter().map(route);
                    let missing = missing.filter(|route| !found.routes.contains(route));
                    steps.extend(missing.map(|(f, table, index)| Step::AddRoute(f, table, index)));
                }
            }
        }
    }
    let stale = found.rules.iter();
    let stale = stale.filter(|rule| !wanted_rules.contains(rule));
    steps.extend(stale.map(|(family, rule)| Step::DeleteRule(*family, rule.clone())));
    for (family, table, index) in &found.routes {
        let is_wanted = last.contains(&(*family, *table, *index))
            || wanted.devices.iter().any(|(name, device)| {
                let found = found.devices.get(*name);
                device.table == *table && found.is_some_and(|found| found.index == *index)
            });
        if !is_wanted {
            steps.push(Step::DeleteRoute(*family, *table, *index));
        }
    }
    for (name, device) in &found.devices {
        if !wanted.devices.contains_key(name.as_str()) && device.is_wireguard {
            steps.push(Step::DeleteDevice(device.index, name.clone()));
        }
    }
    steps
}

fn rules(wanted: &Wanted) -> Vec<Rule> {
    let devices = wanted.devices.iter();
    let devices = devices.map(|(name, device)| Rule::Device((*name).to_owned(), device.table));
    devices.chain(wanted.seal.map(Rule::Seal)).collect()
}

fn device_steps(
    wanted: &Device,
    found: &ObservedDevice,
    (deletions, now): (Deletions, Duration),
    steps: &mut Vec<Step>,
) {
    let index = found.index;
    if found.mtu != wanted.mtu {
        steps.push(Step::SetMtu(index, wanted.mtu));
    }
    if found.rp_filter.is_some_and(|value| value != LOOSE) {
        steps.push(Step::SetLooseFilter(index));
    }
    if !found.has_address {
        steps.push(Step::AddAddress(index));
    }
    let same_key = found.private.as_ref() == Some(&wanted.private);
    if !same_key || found.port != wanted.port || found.mark != 0 {
        steps.push(Step::SetKey(index, wanted.private.clone(), wanted.port));
    }
    // The kernel keeps the time of the last handshake of a peer over a change of the key, which ends all sessions: peers are
    // added anew, so that a handshake is one with this key.
    let known = wanted
        .peers
        .keys()
        .filter(|key| found.peers.contains_key(*key));
    let stale: Vec<PeerChange> = known
        .filter(|_| !same_key)
        .map(|key| PeerChange::Remove(*key))
        .collect();
    let mut others = found.peers.clone();
    if !stale.is_empty() {
        others.retain(|key, _| !wanted.peers.contains_key(key));
        steps.push(Step::ChangePeers(index, stale));
    }
    let changes = peer_changes(&wanted.peers, &others, deletions, now);
    if !changes.is_empty() {
        steps.push(Step::ChangePeers(index, changes));
    }
    if wanted.ready && !found.up {
        steps.push(Step::SetUp(index));
    }
}

fn peer_changes(
    wanted: &BTreeMap<PublicKey, Peer>,
    found: &BTreeMap<PublicKey, ObservedPeer>,
    deletions: Deletions,
    now: Duration,
) -> Vec<PeerChange> {
    let differs = |(key, peer): &(&PublicKey, &Peer)| {
        found
            .get(*key)
            .is_none_or(|found| !is_same(peer, found, now))
    };
    let put = wanted.iter().filter(differs);
    let mut changes: Vec<PeerChange> = put
        .map(|(key, peer)| PeerChange::Put(*key, peer.clone()))
        .collect();
    if deletions == Deletions::Allowed {
        let stale = found.keys().filter(|key| !wanted.contains_key(*key));
        changes.extend(stale.map(|key| PeerChange::Remove(*key)));
    }
    changes
}

fn is_same(wanted: &Peer, found: &ObservedPeer, now: Duration) -> bool {
    let whole = |address: &std::net::IpAddr| (*address, if address.is_ipv4() { 32 } else { 128 });
    let same_addresses = found.allowed.len() == wanted.addresses.len()
        && wanted
            .addresses
            .iter()
            .all(|address| found.allowed.contains(&whole(address)));
    let answers = found
        .last_handshake
        .is_some_and(|at| now.saturating_sub(at) < crate::state::SESSION + SILENT);
    same_addresses
        && !found.has_preshared_key
        && found.keepalive == KEEPALIVE
        && (answers || found.endpoint == Some(wanted.endpoint))
}

#[cfg(test)]
mod tests;
