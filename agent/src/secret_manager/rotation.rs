//! When to renew: pure functions of lifetimes and random numbers.

use std::time::Duration;

/// `SECRET_GRACE_PERIOD_RATIO` and its jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotationConfig {
    /// Part of the lifetime that is left at renewal; default 0.5.
    pub grace_ratio: f64,
    /// Largest random change of the ratio; default 0.01.
    pub jitter: f64,
    /// First wait after a failed renewal; default 500 ms. Grows by half each time, ±50 %.
    pub first_retry: Duration,
    /// Longest wait; default 60 s.
    pub max_retry: Duration,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            grace_ratio: 0.5,
            jitter: 0.01,
            first_retry: Duration::from_millis(500),
            max_retry: Duration::from_secs(60),
        }
    }
}

impl RotationConfig {
    /// Delay until renewal for a certificate that lives `lifetime` from now. `random` is uniform
    /// in [-1, 1).
    #[must_use]
    pub fn delay(&self, lifetime: Duration, random: f64) -> Duration {
        let ratio = (self.grace_ratio + self.jitter * random).clamp(0.0, 1.0);
        lifetime.saturating_sub(lifetime.mul_f64(ratio))
    }

    /// Wait before try number `failures + 1`. `random` is uniform in [-1, 1).
    #[must_use]
    pub fn retry_wait(&self, failures: u32, random: f64) -> Duration {
        let factor = 1.5f64.powi(i32::try_from(failures.saturating_sub(1).min(60)).unwrap_or(60));
        let wait = self.first_retry.as_secs_f64() * factor;
        let wait = wait.min(self.max_retry.as_secs_f64());
        Duration::from_secs_f64(wait * (1.0 + 0.5 * random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_rotation_of_a_day_is_at_half_time_within_a_quarter_hour() {
        let config = RotationConfig::default();
        let day = Duration::from_secs(86_400);
        for (random, minutes) in [(0.0, 720.0), (1.0, 705.6), (-1.0, 734.4)] {
            let got = config.delay(day, random).as_secs_f64() / 60.0;
            assert!((got - minutes).abs() < 0.01, "{random}: {got}");
        }
    }

    #[test]
    fn ratio_is_clamped() {
        let hour = Duration::from_secs(3600);
        let late = RotationConfig {
            grace_ratio: -3.0,
            ..RotationConfig::default()
        };
        assert_eq!(late.delay(hour, 0.0), hour);
        let early = RotationConfig {
            grace_ratio: 7.0,
            ..RotationConfig::default()
        };
        assert_eq!(early.delay(hour, 0.0), Duration::ZERO);
    }

    #[test]
    fn retries_grow_to_a_minute_and_stay_there() {
        let config = RotationConfig::default();
        assert_eq!(config.retry_wait(1, 0.0), Duration::from_millis(500));
        assert_eq!(config.retry_wait(2, 0.0), Duration::from_millis(750));
        assert_eq!(config.retry_wait(2, -1.0), Duration::from_millis(375));
        assert_eq!(config.retry_wait(1000, 0.0), Duration::from_secs(60));
    }
}
