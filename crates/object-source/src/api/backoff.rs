//! The pause after a failure. Pure: the caller gives the time and the random numbers.
//!
//! * Full jitter (a draw between zero and the current step), so that a thousand nodes that lost their API server together
//!   do not return together. Steps begin small again only after the server has served for [`ApiConfig::stable_after`], so
//!   that a server that serves and fails in turn is not asked at the rate of the first step for ever.
//! * A starting server refuses for some seconds what it will allow later (401, 403: its authorizer has not read the roles
//!   yet), and a refusal costs the server nothing. So pauses after refusals have the small limit, until there are more
//!   refusals than a start can cause.
//! * Pauses while a server does not answer have the small limit too: an attempt costs nothing, and nodes synchronize within
//!   seconds after an outage of any length. (client-go waits up to 30 s here too.)
//!
//! `backon` was considered: its jitter only adds to a step, and it has neither the three classes nor the time of service.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::ApiConfig;

/// Refusals in a row that a starting server may cause: at most half a minute of them.
const REFUSALS_AT_START: u32 = 10;

/// Computes the pause after each failure.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    limit: Duration,
    away_limit: Duration,
    stable_after: Duration,
    failures: u32,
    /// Unanswered attempts in a row.
    unanswered: u32,
    /// Refused attempts in a row.
    refusals: u32,
    serving_since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(config: &ApiConfig) -> Self {
        Backoff {
            base: config.retry_base,
            limit: config.retry_limit,
            away_limit: config.away_limit,
            stable_after: config.stable_after,
            failures: 0,
            unanswered: 0,
            refusals: 0,
            serving_since: None,
        }
    }

    /// Records that the server serves.
    pub(super) fn serving(&mut self, now: Instant) {
        self.serving_since.get_or_insert(now);
        self.unanswered = 0;
        self.refusals = 0;
    }

    /// The pause after a refusal.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Duration {
        if !self.may_be_starting() {
            return self.failed(now, retry_after, rng);
        }
        let step = self.doubled(self.refusals).min(self.away_limit);
        self.unanswered = 0;
        self.refusals += 1;
        retry_after.unwrap_or_default() + step.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// Whether another refusal may come from a server that is not ready yet.
    pub(super) fn may_be_starting(&self) -> bool {
        self.refusals < REFUSALS_AT_START
    }

    /// The pause after an unanswered attempt.
    pub(super) fn unanswered(&mut self, rng: &mut impl Rng) -> Duration {
        let step = self.doubled(self.unanswered).min(self.away_limit);
        self.unanswered = self.unanswered.saturating_add(1);
        self.refusals = 0;
        step.mul_f64(rng.random_range(0.0..=1.0))
    }

    /// The pause after any other failure, at least `retry_after`, which is what the server asks for.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Duration {
        if let Some(since) = self.serving_since.take()
            && now.duration_since(since) >= self.stable_after
        {
            self.failures = 0;
        }
        self.unanswered = 0;
        let step = self.step();
        self.failures = self.failures.saturating_add(1);
        // Added to `retry_after`, not drawn from it: it means "not before".
        retry_after.unwrap_or_default() + step.mul_f64(rng.random_range(0.0..=1.0))
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

    fn backoff() -> Backoff {
        Backoff::new(&ApiConfig {
            retry_base: BASE,
            retry_limit: LIMIT,
            away_limit: AWAY,
            stable_after: STABLE,
            ..ApiConfig::default()
        })
    }

    #[test]
    fn steps_double_up_to_the_limit_and_draws_spread_over_them() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut longest = Duration::ZERO;
        let mut shortest = LIMIT;
        let mut backoff = backoff();
        for failure in 0..200 {
            let step = backoff.step();
            assert_eq!(step, LIMIT.min(BASE * 2_u32.pow(failure.min(20))));
            let pause = backoff.failed(now, None, &mut rng);
            assert!(pause <= step);
            if step == LIMIT {
                longest = longest.max(pause);
                shortest = shortest.min(pause);
            }
        }
        assert!(longest > LIMIT.mul_f64(0.9) && shortest < LIMIT.mul_f64(0.1));
    }

    #[test]
    fn steps_begin_small_again_only_after_stable_service() {
        let start = Instant::now();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = backoff();
        for _ in 0..3 {
            backoff.failed(start, None, &mut rng);
        }
        backoff.serving(start);
        backoff.failed(start + STABLE / 2, None, &mut rng);
        assert_eq!(backoff.step(), BASE * 16);
        backoff.serving(start + STABLE);
        backoff.serving(start + STABLE + STABLE / 2);
        backoff.failed(start + STABLE * 2, None, &mut rng);
        assert_eq!(backoff.step(), BASE * 2);
    }

    #[test]
    fn pauses_stay_small_while_a_server_does_not_answer() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = backoff();
        let longest = (0..300).map(|_| backoff.unanswered(&mut rng)).max();
        assert!(longest > Some(AWAY.mul_f64(0.9)) && longest <= Some(AWAY));
        // The server is back, and not ready yet: pauses are those of a first failure.
        assert!(backoff.failed(Instant::now(), None, &mut rng) <= BASE);
        assert!(backoff.unanswered(&mut rng) <= BASE);
    }

    #[test]
    fn refusals_count_as_a_start_until_they_are_too_many() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = backoff();
        for _ in 0..100 {
            backoff.failed(now, None, &mut rng);
        }
        // A server that was away may be starting.
        backoff.unanswered(&mut rng);
        while backoff.may_be_starting() {
            assert!(backoff.refused(now, None, &mut rng) <= AWAY);
        }
        let longest = (0..300).map(|_| backoff.refused(now, None, &mut rng));
        assert!(longest.max() > Some(LIMIT.mul_f64(0.9)));
        backoff.serving(now);
        assert!(backoff.refused(now, None, &mut rng) <= BASE);
    }

    #[test]
    fn a_pause_is_never_shorter_than_retry_after() {
        let retry_after = Duration::from_secs(5);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = backoff();
        let pause = backoff.failed(Instant::now(), Some(retry_after), &mut rng);
        assert!(pause >= retry_after && pause <= retry_after + BASE);
    }
}
