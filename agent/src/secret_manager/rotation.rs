//! When to renew: pure functions of lifetimes and random numbers.

use std::time::Duration;

/// No renewal sooner than this after the last one, whatever lifetimes the CA gives.
const MIN_RENEWAL: Duration = Duration::from_millis(100);
/// Part of the lifetime that passes at least between two renewals: a ratio near 1 must not turn
/// into a request loop.
const MIN_RENEWAL_PART: u32 = 20;
/// Upper bound of the floor that `MIN_RENEWAL_PART` gives.
const MAX_RENEWAL_FLOOR: Duration = Duration::from_secs(60);

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
    /// in [-1, 1). At least a twentieth of the lifetime (1 min at most, 100 ms at least), unless
    /// less than that is left.
    #[must_use]
    pub fn delay(&self, lifetime: Duration, random: f64) -> Duration {
        let ratio = (self.grace_ratio + self.jitter * random).clamp(0.0, 1.0);
        // Not a number after arithmetic with infinities: renew at half time.
        let ratio = if ratio.is_nan() { 0.5 } else { ratio };
        let floor = (lifetime / MIN_RENEWAL_PART)
            .min(MAX_RENEWAL_FLOOR)
            .max(MIN_RENEWAL);
        lifetime.saturating_sub(lifetime.mul_f64(ratio)).max(floor)
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

/// Longest wait between two tries while a certificate of `lifetime` is served of which `left` is
/// left: several tries must fit in before it expires. A day's certificate is not affected.
pub(super) fn patience(lifetime: Duration, left: Duration) -> Duration {
    (left / 8).max(lifetime / 50).max(Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn default_rotation_of_a_day_is_at_half_time_within_a_quarter_hour() {
        let config = RotationConfig::default();
        for (random, minutes) in [(0.0, 720.0), (1.0, 705.6), (-1.0, 734.4)] {
            let got = config.delay(DAY, random).as_secs_f64() / 60.0;
            assert!((got - minutes).abs() < 0.01, "{random}: {got}");
        }
    }

    #[test]
    fn ratio_is_clamped_and_no_ratio_makes_a_request_loop() {
        let with = |grace_ratio, jitter| RotationConfig {
            grace_ratio,
            jitter,
            ..RotationConfig::default()
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(with(-3.0, 0.01).delay(hour, 0.0), hour);
        assert_eq!(with(7.0, 0.01).delay(hour, 0.0), Duration::from_secs(60));
        assert_eq!(
            with(1.0, 0.0).delay(Duration::from_secs(60), 0.0),
            Duration::from_secs(3)
        );
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for delay in [
                with(broken, 0.01).delay(hour, 0.5),
                with(0.5, broken).delay(hour, 0.5),
                with(broken, -broken).delay(hour, 1.0),
            ] {
                assert!(
                    (Duration::from_secs(60)..=hour).contains(&delay),
                    "{delay:?}"
                );
            }
        }
        for tiny in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(with(0.5, 0.0).delay(tiny, 0.0), MIN_RENEWAL);
        }
    }

    #[test]
    fn retries_grow_to_a_minute_and_stay_there() {
        let config = RotationConfig::default();
        assert_eq!(config.retry_wait(1, 0.0), Duration::from_millis(500));
        assert_eq!(config.retry_wait(2, 0.0), Duration::from_millis(750));
        assert_eq!(config.retry_wait(2, -1.0), Duration::from_millis(375));
        assert_eq!(config.retry_wait(1000, 0.0), Duration::from_secs(60));
    }

    #[test]
    fn short_lives_shorten_the_waits_and_long_ones_do_not() {
        let second = Duration::from_secs(1);
        assert_eq!(patience(second, second / 2), Duration::from_micros(62_500));
        assert_eq!(patience(second, Duration::ZERO), second / 50);
        let longest = RotationConfig::default().max_retry * 3 / 2;
        for left in [DAY / 2, Duration::from_secs(1)] {
            assert!(patience(DAY, left) > longest);
        }
    }
}
