//! Endpoints whose unanswered attempts say nothing for a while: their node has answered a probe all the same.
//!
//! Datagrams that are never answered, and a policy that drops a client's connections, look like a node that is down. So the
//! pause doubles each time, and one-way traffic leads to ever fewer probes. Another endpoint or protocol of the node still
//! counts. Where the attempt that led to the last pause has got its reply, a packet was lost or late: the pause stays
//! short, so that a lossy network does not hide a node that goes down. A pure function of instants and replies.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::Attempt;
use nft::Protocol;

use super::age::Timeouts;

/// Bounds of the pause.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// The same for TCP, whose attempts have replies by design: those that a policy drops are rare.
const LONGEST_TCP: Duration = Duration::from_secs(4);
/// Endpoints that are known at most; further ones are probed as if new.
const MOST: usize = 8192;

/// Attempts of a kind at one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    endpoint: SocketAddr,
    protocol: u8,
    /// Old ones stay for minutes after a node has come back, and hide none that begin when it goes down again.
    recent: bool,
}

impl Key {
    pub(super) fn of(attempt: &Attempt, timeouts: &Timeouts) -> Key {
        Key {
            endpoint: attempt.flow.answers_from,
            protocol: attempt.flow.protocol as u8,
            recent: timeouts.is_recent(attempt),
        }
    }

    fn longest(&self) -> Duration {
        match self.protocol == Protocol::Tcp as u8 {
            true => LONGEST_TCP,
            false => LONGEST,
        }
    }
}

/// See the module. `A` is an attempt.
#[derive(Debug)]
pub(super) struct Ignored<A> {
    endpoints: BTreeMap<Key, Pause<A>>,
}

#[derive(Debug)]
struct Pause<A> {
    until: Instant,
    length: Duration,
    /// What led to the pause.
    attempt: A,
}

impl<A> Default for Ignored<A> {
    fn default() -> Self {
        let endpoints = BTreeMap::new();
        Ignored { endpoints }
    }
}

impl<A> Ignored<A> {
    /// Whether attempts at this endpoint say nothing.
    pub(super) fn has(&self, endpoint: &Key, now: Instant) -> bool {
        let pause = self.endpoints.get(endpoint);
        pause.is_some_and(|pause| now < pause.until)
    }

    /// Ignores attempts at the endpoints of these, for twice as long as before, or for the shortest time if the attempt
    /// before has got its reply since.
    pub(super) fn add(
        &mut self,
        attempts: impl IntoIterator<Item = (Key, A)>,
        now: Instant,
        mut has_reply: impl FnMut(&A) -> bool,
    ) {
        // Conntrack may be read as seldom as that, so an endpoint that begins anew was quiet.
        self.endpoints
            .retain(|_, pause| now < pause.until + LONGEST);
        for (endpoint, attempt) in attempts {
            let length = match self.endpoints.get(&endpoint) {
                // One of several attempts at a time.
                Some(known) if now < known.until => continue,
                Some(known) if has_reply(&known.attempt) => FIRST,
                Some(known) => (known.length * 2).min(endpoint.longest()),
                None if self.endpoints.len() >= MOST => continue,
                None => FIRST,
            };
            let until = now + length;
            let pause = Pause {
                until,
                length,
                attempt,
            };
            self.endpoints.insert(endpoint, pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Key {
        of_protocol(Protocol::Udp, port)
    }

    fn of_protocol(protocol: Protocol, port: u16) -> Key {
        Key {
            endpoint: SocketAddr::from(([10, 1, 0, 1], port)),
            protocol: protocol as u8,
            recent: true,
        }
    }

    /// Probes in an hour of attempts without a reply at any time, if each of them gets its reply after all or none does.
    fn probes(has_reply: bool) -> u32 {
        let start = Instant::now();
        let (mut ignored, mut now, mut probes) = (Ignored::default(), start, 0);
        while now < start + Duration::from_secs(3600) {
            if !ignored.has(&endpoint(514), now) {
                probes += 1;
                ignored.add([(endpoint(514), ())], now, |()| has_reply);
            }
            now += Duration::from_millis(250);
        }
        assert!(!ignored.has(&endpoint(515), now));
        probes
    }

    #[test]
    fn one_way_traffic_is_probed_ever_more_seldom() {
        let probes = probes(false);
        assert!((60..70).contains(&probes), "{probes} in an hour");
    }

    #[test]
    fn late_replies_hide_an_endpoint_for_a_second_only() {
        let probes = probes(true);
        assert!((3000..=3600).contains(&probes), "{probes} in an hour");
    }

    #[test]
    fn unanswered_connections_hide_an_endpoint_for_four_seconds() {
        let tcp = of_protocol(Protocol::Tcp, 80);
        let (mut ignored, mut now) = (Ignored::default(), Instant::now());
        for _ in 0..10 {
            ignored.add([(tcp, ())], now, |()| false);
            now += LONGEST_TCP;
            assert!(!ignored.has(&tcp, now));
        }
        ignored.add([(tcp, ())], now, |()| false);
        assert!(ignored.has(&tcp, now + LONGEST_TCP / 2));
    }

    #[test]
    fn old_attempts_hide_no_recent_ones() {
        let (mut ignored, now) = (Ignored::default(), Instant::now());
        let recent = endpoint(1);
        let old = Key {
            recent: false,
            ..recent
        };
        ignored.add([(old, ())], now, |()| false);
        assert!(ignored.has(&old, now) && !ignored.has(&recent, now));
    }

    #[test]
    fn several_attempts_at_a_time_lead_to_one_pause() {
        let (mut ignored, now) = (Ignored::default(), Instant::now());
        ignored.add([(endpoint(1), ()), (endpoint(1), ())], now, |()| false);
        assert!(ignored.has(&endpoint(1), now + FIRST / 2));
        assert!(!ignored.has(&endpoint(1), now + FIRST));
    }

    #[test]
    fn an_endpoint_that_was_quiet_begins_anew() {
        let (mut ignored, start) = (Ignored::default(), Instant::now());
        ignored.add([(endpoint(1), ())], start, |()| false);
        ignored.add([(endpoint(1), ())], start + FIRST, |()| false);
        let quiet = start + FIRST + 2 * FIRST + LONGEST;
        assert!(!ignored.has(&endpoint(1), quiet));
        let later = quiet + 2 * FIRST;
        ignored.add([(endpoint(1), ())], later, |()| false);
        assert!(ignored.has(&endpoint(1), later + FIRST / 2));
        assert!(!ignored.has(&endpoint(1), later + FIRST));
    }

    #[test]
    fn the_number_of_endpoints_is_bounded() {
        let (mut ignored, now) = (Ignored::default(), Instant::now());
        let all = (0..=u16::MAX).map(|port| (endpoint(port), ()));
        ignored.add(all, now, |()| false);
        assert_eq!(ignored.endpoints.len(), MOST);
    }
}
