//! Injected faults and the requests they affect.
//!
//! Decides; the effects are in `body` and `server`. With a seed, the same requests in the same order meet the
//! same faults.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::store::Resource;

/// The verbs that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// A list, or a page of one.
    List,
    /// A watch, with or without initial events.
    Watch,
    /// One object by its name. Only refusals and hangs affect it.
    Get,
}

/// A fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error answer, for example 429 with the seconds of its `Retry-After`.
    Status {
        /// HTTP status, 400-599.
        code: u16,
        /// Seconds of `Retry-After`, if that header is sent.
        retry_after: Option<u64>,
    },
    /// No answer at all; the connection stays open and says nothing.
    Hang,
    /// This many bytes of the body, then silence; the connection stays open.
    HangAfter(usize),
    /// This many bytes of the body, then the connection breaks.
    CutAfter(usize),
    /// This many bytes of the body, then its regular end: a truncated but well-framed answer.
    EndAfter(usize),
    /// The body trickles.
    Slow {
        /// Bytes at a time.
        bytes: usize,
        /// Pause after each.
        pause: Duration,
    },
    /// A watch that begins and then delivers an ERROR event with this code, for example 410.
    ErrorEvent(u16),
    /// Everything twice: items of a list, events of a watch.
    Duplicate,
    /// The oldest event of a watch again after each event: versions out of order.
    Replay,
}

impl Fault {
    /// An error answer without `Retry-After`.
    pub const fn status(code: u16) -> Self {
        Fault::Status {
            code,
            retry_after: None,
        }
    }
}

/// A fault and the requests it affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    pub fault: Fault,
    /// Only this resource.
    pub resource: Option<Resource>,
    /// Only this verb.
    pub verb: Option<Verb>,
    /// How many requests; `None` for all until [`super::FakeApi::heal`].
    pub times: Option<usize>,
}

impl Injection {
    /// Affects every request until healed.
    pub fn always(fault: Fault) -> Self {
        Injection {
            fault,
            resource: None,
            verb: None,
            times: None,
        }
    }

    /// Affects the next request.
    pub fn once(fault: Fault) -> Self {
        Injection {
            times: Some(1),
            ..Self::always(fault)
        }
    }

    /// Affects the next `times` requests.
    pub fn times(self, times: usize) -> Self {
        Injection {
            times: Some(times),
            ..self
        }
    }

    /// Only requests for this resource.
    pub fn on(self, resource: Resource) -> Self {
        Injection {
            resource: Some(resource),
            ..self
        }
    }

    /// Only requests for this resource with this verb.
    pub fn of(self, resource: Resource, verb: Verb) -> Self {
        Injection {
            resource: Some(resource),
            verb: Some(verb),
            ..self
        }
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    injections: Vec<Injection>,
    random: Option<(SmallRng, f64)>,
}

impl Faults {
    pub(super) fn inject(&mut self, injection: Injection) {
        self.injections.push(injection);
    }

    pub(super) fn randomly(&mut self, seed: u64, probability: f64) {
        self.random = Some((SmallRng::seed_from_u64(seed), probability.clamp(0.0, 1.0)));
    }

    pub(super) fn clear(&mut self) {
        *self = Faults::default();
    }

    /// The fault for this request: the oldest injection that fits, else one by rng.
    pub(super) fn draw(&mut self, resource: Resource, verb: Verb) -> Option<Fault> {
        let fits = |i: &Injection| {
            i.resource.is_none_or(|r| r == resource) && i.verb.is_none_or(|v| v == verb)
        };
        if let Some(at) = self.injections.iter().position(fits) {
            let injection = &mut self.injections[at];
            let fault = injection.fault;
            if let Some(times) = &mut injection.times {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    self.injections.remove(at);
                }
            }
            return Some(fault);
        }
        let (rng, probability) = self.random.as_mut()?;
        let strikes = rng.random_bool(*probability);
        strikes.then(|| any(rng))
    }
}

fn any(rng: &mut SmallRng) -> Fault {
    match rng.random_range(0..9) {
        0 => Fault::Status {
            code: 429,
            retry_after: Some(0),
        },
        1 => Fault::status(503),
        2 => Fault::status(500),
        3 => Fault::status(410),
        4 => Fault::CutAfter(rng.random_range(0..20_000)),
        5 => Fault::EndAfter(rng.random_range(0..20_000)),
        6 => Fault::HangAfter(rng.random_range(0..20_000)),
        7 => Fault::ErrorEvent(410),
        _ => Fault::Duplicate,
    }
}
