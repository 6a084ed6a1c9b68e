//! What a fleet asks of the API server in some time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use lab::AuditEvent;

use super::cluster::Cluster;
use super::fleets::{Fleet, Traffic};

/// Requests by what they ask for. Refused ones are counted as such only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Lists that arrive as a stream and go on as a watch (KEP-3157).
    pub streamed: u32,
    /// Other lists of all objects.
    pub lists: u32,
    /// Lists of one object, by which Portolan learns the server's version.
    pub versions: u32,
    /// Watches from a version.
    pub watches: u32,
    /// Others: Events that are created, and reads.
    pub others: u32,
    /// Answers with a status of 400 or more.
    pub refused: u32,
    /// Of these, 429: too many requests.
    pub throttled: u32,
}

impl Requests {
    /// Those that were received from `from` to `to`.
    pub(super) fn of(audit: &[AuditEvent], from: SystemTime, to: SystemTime) -> Requests {
        let mut requests = Requests::default();
        for event in first_events(audit) {
            if event.received >= from && event.received < to {
                requests.count(event);
            }
        }
        requests
    }

    fn count(&mut self, event: &AuditEvent) {
        let has = |parameter: &str| event.uri.contains(parameter);
        let counter = match event.right.verb.as_str() {
            _ if event.code == 429 => {
                self.refused += 1;
                &mut self.throttled
            }
            _ if event.code >= 400 => &mut self.refused,
            "watch" if has("sendInitialEvents=true") => &mut self.streamed,
            "watch" => &mut self.watches,
            "list" if has("limit=1&") || event.uri.ends_with("limit=1") => &mut self.versions,
            "list" => &mut self.lists,
            _ => &mut self.others,
        };
        *counter += 1;
    }

    /// All together.
    pub fn total(self) -> u32 {
        self.streamed + self.lists + self.versions + self.watches + self.others + self.refused
    }
}

/// The first event of each request.
fn first_events(audit: &[AuditEvent]) -> Vec<&AuditEvent> {
    let mut seen = BTreeSet::new();
    let mut first = Vec::new();
    for event in audit {
        if seen.insert(event.request.as_str()) {
            first.push(event);
        }
    }
    first
}

/// The most requests in one second, from each full second after `from`.
pub(super) fn busiest_second(audit: &[AuditEvent], from: SystemTime) -> u32 {
    let mut seconds: BTreeMap<u64, u32> = BTreeMap::new();
    for event in first_events(audit) {
        if let Ok(after) = event.received.duration_since(from) {
            *seconds.entry(after.as_secs()).or_default() += 1;
        }
    }
    seconds.into_values().max().unwrap_or(0)
}

/// Requests, bytes and the server's work in some time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// How long it was measured.
    pub elapsed: Duration,
    /// Requests of all nodes.
    pub requests: Requests,
    /// Bytes of all nodes, and connections at the end.
    pub traffic: Traffic,
    /// Processor time of the API server.
    pub processor: Duration,
    /// Resident memory of the API server at the end, in bytes.
    pub memory: u64,
    /// Open watches at the end, those of the server itself included.
    pub watches: u64,
}

/// Where a measurement begins.
pub(super) struct Beginning {
    at: Instant,
    time: SystemTime,
    processor: Duration,
    traffic: Traffic,
}

impl Beginning {
    pub(super) fn now(cluster: &Cluster, fleet: &impl Fleet) -> Result<Beginning> {
        Ok(Beginning {
            processor: cluster.metrics()?.processor,
            traffic: fleet.traffic()?,
            at: Instant::now(),
            time: SystemTime::now(),
        })
    }

    /// At the start of the server's process. `traffic` is that of before.
    pub(super) fn of_server(time: SystemTime, traffic: Traffic) -> Beginning {
        let ago = time.elapsed().unwrap_or_default();
        Beginning {
            at: Instant::now().checked_sub(ago).unwrap_or_else(Instant::now),
            time,
            processor: Duration::ZERO,
            traffic,
        }
    }

    pub(super) fn until_now(&self, cluster: &Cluster, fleet: &impl Fleet) -> Result<Load> {
        let (elapsed, now) = (self.at.elapsed(), SystemTime::now());
        let traffic = fleet.traffic()?.since(self.traffic);
        let metrics = cluster.metrics()?;
        let audit = cluster.audit(fleet.user())?;
        Ok(Load {
            elapsed,
            requests: Requests::of(&audit, self.time, now),
            traffic,
            processor: metrics.processor.saturating_sub(self.processor),
            memory: metrics.memory,
            watches: metrics.watches,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::Right;

    fn event(request: &str, verb: &str, uri: &str, code: u16) -> AuditEvent {
        AuditEvent {
            right: Right {
                group: String::new(),
                resource: "services".into(),
                verb: verb.into(),
            },
            uri: uri.into(),
            code,
            request: request.into(),
            source: None,
            received: SystemTime::UNIX_EPOCH,
            answered: SystemTime::UNIX_EPOCH,
            is_begin: false,
        }
    }

    #[test]
    fn each_request_is_counted_once_by_what_it_asks_for() {
        let path = "/api/v1/services?";
        let audit = [
            event(
                "a",
                "watch",
                &format!("{path}sendInitialEvents=true&watch=1"),
                200,
            ),
            event(
                "a",
                "watch",
                &format!("{path}sendInitialEvents=true&watch=1"),
                200,
            ),
            event("b", "watch", &format!("{path}watch=1"), 200),
            event("c", "list", &format!("{path}limit=1"), 200),
            event("d", "list", &format!("{path}limit=500"), 200),
            event("e", "watch", path, 429),
            event("f", "create", path, 403),
        ];
        let from = SystemTime::UNIX_EPOCH;
        let requests = Requests::of(&audit, from, from + Duration::from_secs(1));
        let expected = Requests {
            streamed: 1,
            lists: 1,
            versions: 1,
            watches: 1,
            others: 0,
            refused: 2,
            throttled: 1,
        };
        assert_eq!(requests, expected);
        assert_eq!((requests.total(), busiest_second(&audit, from)), (6, 6));
    }
}
