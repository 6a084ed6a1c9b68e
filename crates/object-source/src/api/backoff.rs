//! How long to wait after a failure. Knows no clock: the caller says what time it is.
//!
//! Full jitter (a draw between nothing and the current step), so that a thousand nodes that lost their API
//! server together do not come back together; steps begin small again only after a stable while, so a server
//! that answers and fails in turn is not asked at the first step's pace for ever.
//!
//! A server that is starting refuses for some seconds what it will allow (401, 403: its authorizer has not read the
//! roles yet), and saying so costs it nothing. Refusals have the small limit too, until there were too many of them
//! to come from a start.
//!
//! A server that does not answer at all has a limit of its own, a small one: an attempt costs nobody anything, and
//! once there is a server again, nodes shall be in step within seconds, however long it was away. (client-go waits
//! up to 30 s here too.)

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// Refusals in a row that may come from a server's start: at most half a minute of them.
const REFUSALS_AT_START: u32 = 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    limit: Duration,
    away_limit: Duration,
    stable_after: Duration,
    failures: u32,
    /// Attempts in a row that nobody answered.
    away: u32,
    /// Attempts in a row that were refused.
    refusals: u32,
    well_since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(
        base: Duration,
        limit: Duration,
        away_limit: Duration,
        stable_after: Duration,
    ) -> Self {
        Backoff {
            base,
            limit,
            away_limit,
            stable_after,
            failures: 0,
            away: 0,
            refusals: 0,
            well_since: None,
        }
    }

    /// All is well, as far as one can see.
    pub(super) fn well(&mut self, now: Instant) {
        self.well_since.get_or_insert(now);
        self.away = 0;
        self.refusals = 0;
    }

    /// We are refused what we ask for: how long to wait.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        asked: Option<Duration>,
        chance: &mut impl Rng,
    ) -> Duration {
        if !self.may_be_starting() {
            return self.failed(now, asked, chance);
        }
        let step = self.doubled(self.refusals).min(self.away_limit);
        self.away = 0;
        self.refusals += 1;
        asked.unwrap_or_default() + step.mul_f64(chance.random_range(0.0..=1.0))
    }

    /// Whether another refusal would be one of a server that is not ready yet.
    pub(super) fn may_be_starting(&self) -> bool {
        self.refusals < REFUSALS_AT_START
    }

    /// Nobody answers: how long to wait.
    pub(super) fn unanswered(&mut self, chance: &mut impl Rng) -> Duration {
        let step = self.doubled(self.away).min(self.away_limit);
        self.away = self.away.saturating_add(1);
        self.refusals = 0;
        step.mul_f64(chance.random_range(0.0..=1.0))
    }

    /// Something failed: how long to wait, at least `asked`, which is what the server wants.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        asked: Option<Duration>,
        chance: &mut impl Rng,
    ) -> Duration {
        if let Some(since) = self.well_since.take()
            && now.duration_since(since) >= self.stable_after
        {
            self.failures = 0;
        }
        self.away = 0;
        let step = self.step();
        self.failures = self.failures.saturating_add(1);
        // Added to what the server asks for, not drawn from it: it means "not before".
        asked.unwrap_or_default() + step.mul_f64(chance.random_range(0.0..=1.0))
    }

    /// The upper end of the next draw.
    pub(super) fn step(&self) -> Duration {
        self.doubled(self.failures).min(self.limit)
    }

    fn doubled(&self, times: u32) -> Duration {
        self.base
            .saturating_mul(2_u32.saturating_pow(times.min(30)))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const BASE: Duration = Duration::from_millis(800);
    const LIMIT: Duration = Duration::from_secs(30);
    const AWAY: Duration = Duration::from_secs(3);
    const STABLE: Duration = Duration::from_secs(60);

    #[test]
    fn steps_double_up_to_the_limit_and_draws_spread_over_the_whole_step() {
        let now = Instant::now();
        let mut chance = SmallRng::seed_from_u64(1);
        let mut longest = Duration::ZERO;
        let mut shortest = LIMIT;
        let mut backoff = Backoff::new(BASE, LIMIT, AWAY, STABLE);
        for failure in 0..200 {
            let step = backoff.step();
            assert_eq!(step, LIMIT.min(BASE * 2_u32.pow(failure.min(20))));
            let pause = backoff.failed(now, None, &mut chance);
            assert!(pause <= step);
            if step == LIMIT {
                longest = longest.max(pause);
                shortest = shortest.min(pause);
            }
        }
        assert!(longest > LIMIT.mul_f64(0.9) && shortest < LIMIT.mul_f64(0.1));
    }

    #[test]
    fn steps_begin_anew_only_after_a_stable_while() {
        let start = Instant::now();
        let mut chance = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, LIMIT, AWAY, STABLE);
        for _ in 0..3 {
            backoff.failed(start, None, &mut chance);
        }
        backoff.well(start);
        backoff.failed(start + STABLE / 2, None, &mut chance);
        assert_eq!(backoff.step(), BASE * 16);
        backoff.well(start + STABLE);
        backoff.well(start + STABLE + STABLE / 2);
        backoff.failed(start + STABLE * 2, None, &mut chance);
        assert_eq!(backoff.step(), BASE * 2);
    }

    #[test]
    fn a_server_that_is_away_is_looked_for_every_few_seconds_however_long_it_has_been() {
        let mut chance = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, LIMIT, AWAY, STABLE);
        let longest = (0..300).map(|_| backoff.unanswered(&mut chance)).max();
        assert!(longest > Some(AWAY.mul_f64(0.9)) && longest <= Some(AWAY));
        // It is back, and not ready yet: pauses are those of a first failure.
        assert!(backoff.failed(Instant::now(), None, &mut chance) <= BASE);
        assert!(backoff.unanswered(&mut chance) <= BASE);
    }

    #[test]
    fn refusals_are_taken_for_a_start_until_there_are_too_many_of_them() {
        let now = Instant::now();
        let mut chance = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, LIMIT, AWAY, STABLE);
        for _ in 0..100 {
            backoff.failed(now, None, &mut chance);
        }
        // Whatever was before: a server that was away starts now.
        backoff.unanswered(&mut chance);
        while backoff.may_be_starting() {
            assert!(backoff.refused(now, None, &mut chance) <= AWAY);
        }
        let longest = (0..300).map(|_| backoff.refused(now, None, &mut chance));
        assert!(longest.max() > Some(LIMIT.mul_f64(0.9)));
        backoff.well(now);
        assert!(backoff.refused(now, None, &mut chance) <= BASE);
    }

    #[test]
    fn the_server_is_never_asked_before_it_wants_to_be() {
        let asked = Duration::from_secs(5);
        let mut chance = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::new(BASE, LIMIT, AWAY, STABLE);
        let pause = backoff.failed(Instant::now(), Some(asked), &mut chance);
        assert!(pause >= asked && pause <= asked + BASE);
    }
}
