//! Endpoints whose unanswered attempts say nothing for a while: their node has answered a probe all the same.
//!
//! Datagrams that are never answered, and a policy that drops a client's connections, look like a node that is down. So the
//! pause doubles each time, and one-way traffic leads to ever fewer probes. Another endpoint or protocol of the node still
//! counts. A pure function of instants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::Flow;

/// Bounds of the pause.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Endpoints that are known at most; further ones are probed as if new.
const MOST: usize = 8192;

/// Endpoint and number of the protocol.
pub(super) type Key = (SocketAddr, u8);

/// The endpoint that a flow was sent to.
pub(super) fn key(flow: &Flow) -> Key {
    (flow.answers_from, flow.protocol as u8)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    endpoints: BTreeMap<Key, Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl Ignored {
    /// Whether attempts at this endpoint say nothing.
    pub(super) fn has(&self, endpoint: &Key, now: Instant) -> bool {
        let pause = self.endpoints.get(endpoint);
        pause.is_some_and(|pause| now < pause.until)
    }

    /// Ignores attempts at these endpoints, for twice as long as before.
    pub(super) fn add(&mut self, endpoints: impl IntoIterator<Item = Key>, now: Instant) {
        // Conntrack may be read as seldom as that, so an endpoint that begins anew was quiet.
        self.endpoints
            .retain(|_, pause| now < pause.until + LONGEST);
        for endpoint in endpoints {
            let known = self.endpoints.get(&endpoint).map(|pause| pause.length);
            if known.is_none() && self.endpoints.len() >= MOST {
                continue;
            }
            let length = known.map_or(FIRST, |length| (length * 2).min(LONGEST));
            let until = now + length;
            self.endpoints.insert(endpoint, Pause { until, length });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Key {
        (SocketAddr::from(([10, 1, 0, 1], port)), 17)
    }

    #[test]
    fn one_way_traffic_is_probed_ever_more_seldom() {
        let start = Instant::now();
        let (mut ignored, mut now, mut probes) = (Ignored::default(), start, 0);
        while now < start + Duration::from_secs(3600) {
            if !ignored.has(&endpoint(514), now) {
                probes += 1;
                ignored.add([endpoint(514)], now);
            }
            now += Duration::from_millis(250);
        }
        assert!((60..70).contains(&probes), "{probes} in an hour");
        assert!(!ignored.has(&endpoint(515), now));
    }

    #[test]
    fn an_endpoint_that_was_quiet_begins_anew() {
        let (mut ignored, start) = (Ignored::default(), Instant::now());
        ignored.add([endpoint(1)], start);
        ignored.add([endpoint(1)], start + FIRST);
        let quiet = start + FIRST + 2 * FIRST + LONGEST;
        assert!(!ignored.has(&endpoint(1), quiet));
        let later = quiet + 2 * FIRST;
        ignored.add([endpoint(1)], later);
        assert!(ignored.has(&endpoint(1), later + FIRST / 2));
        assert!(!ignored.has(&endpoint(1), later + FIRST));
    }

    #[test]
    fn the_number_of_endpoints_is_bounded() {
        let (mut ignored, now) = (Ignored::default(), Instant::now());
        ignored.add((0..=u16::MAX).map(endpoint), now);
        assert_eq!(ignored.endpoints.len(), MOST);
    }
}
