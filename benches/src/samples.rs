//! Many measurements of one thing.

use std::time::Duration;

/// Durations, and what half or most of them stayed below.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    durations: Vec<Duration>,
}

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Samples {
            durations: Vec::new(),
        }
    }

    /// Adds one.
    pub fn push(&mut self, duration: Duration) {
        self.durations.push(duration);
    }

    /// Adds those of another.
    pub fn extend(&mut self, other: &Samples) {
        self.durations.extend(&other.durations);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.durations.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.durations.is_empty()
    }

    /// Half are at most this. Zero when there are none.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// 5 of 100 are at most this.
    pub fn p5(&self) -> Duration {
        self.quantile(0.05)
    }

    /// 95 of 100 are at most this.
    pub fn p95(&self) -> Duration {
        self.quantile(0.95)
    }

    /// 99 of 100 are at most this.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The largest.
    pub fn max(&self) -> Duration {
        self.quantile(1.0)
    }

    /// The nearest rank: the smallest sample that at least this part of all does not exceed.
    fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.durations.clone();
        sorted.sort_unstable();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let mut samples = Samples::new();
        (1..=200)
            .rev()
            .for_each(|n| samples.push(Duration::from_micros(n)));
        assert_eq!(samples.median(), Duration::from_micros(100));
        assert_eq!(samples.p95(), Duration::from_micros(190));
        assert_eq!(samples.p99(), Duration::from_micros(198));
        assert_eq!(samples.max(), Duration::from_micros(200));
        assert_eq!(Samples::new().median(), Duration::ZERO);
    }
}
