//! Jittered exponential back-off between attempts.

use std::time::Duration;

use rand::RngExt;

/// Waits drawn uniformly from an interval that doubles up to a cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Default for Backoff {
    /// 500 ms base, 30 s cap.
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

impl Backoff {
    /// First wait at most `base`, later ones at most `max`.
    #[must_use]
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            attempt: 0,
        }
    }

    /// The upper bound of the next wait.
    #[must_use]
    pub fn bound(&self) -> Duration {
        let factor = 1u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// Draws the next wait and doubles the interval.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.bound();
        self.attempt = (self.attempt + 1).min(31);
        bound.mul_f64(rand::rng().random_range(0.0..1.0))
    }

    /// Starts over, after a success.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_doubles_to_the_cap_and_resets() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        for _ in 0..40 {
            bounds.push(backoff.bound().as_millis());
            let bound = backoff.bound();
            assert!(backoff.next_wait() <= bound);
        }
        assert_eq!(
            bounds[..8],
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
        );
        assert_eq!(bounds[39], 30_000);
        backoff.reset();
        assert_eq!(backoff.bound().as_millis(), 500);
    }
}
