//! The wall clock that certificates follow, and a sleep that neither a clock step nor a suspended
//! machine can lengthen. Replaced in tests.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A sleep in progress.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Source of time for lifetimes and renewals.
pub trait Clock: Debug + Send + Sync {
    /// The wall clock.
    fn now(&self) -> SystemTime;

    /// Time since some moment, by a clock that nobody sets and that counts suspension.
    fn monotonic(&self) -> Duration;

    /// Ends when `wait` has passed, and at once when the wall clock is set to the moment at which
    /// it would have passed. Setting the clock back does not lengthen it.
    fn sleep(&self, wait: Duration) -> Sleep<'_>;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        // Cannot fail for this clock on any supported kernel.
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or(Duration::ZERO, Duration::from)
    }

    fn sleep(&self, wait: Duration) -> Sleep<'_> {
        let deadline = SystemTime::now().checked_add(wait);
        Box::pin(async move {
            let reached = async {
                match deadline.map(wall_clock_reaches) {
                    Some(Ok(timer)) => timer.await,
                    // No descriptor left, or no such date: the monotonic clock alone.
                    Some(Err(error)) => {
                        tracing::debug!(%error, "no wall clock timer");
                        std::future::pending().await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = reached => {}
            }
        })
    }
}

/// Ends when the wall clock shows `deadline` or later, by waiting, by being set, or by waking from
/// suspension (which the monotonic clock does not count).
fn wall_clock_reaches(
    deadline: SystemTime,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let timer = TimerFd::new(
        ClockId::CLOCK_REALTIME,
        TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
    )?;
    let since_epoch = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
    timer.set(
        Expiration::OneShot(since_epoch.into()),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME,
    )?;
    let timer = readable(timer.into())?;
    Ok(async move {
        if timer.readable().await.is_err() {
            // The runtime ends; so does whoever waits.
            std::future::pending().await
        }
    })
}

/// Waits for `descriptor` to be readable on the current runtime.
#[allow(
    unsafe_code,
    reason = "tokio has no safe registration of descriptors yet"
)]
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, which stays open, and the same, until it ends.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wall_clock_timer_ends_at_its_date_and_at_once_for_a_past_one() {
        let now = SystemTime::now();
        for deadline in [
            now - Duration::from_secs(60),
            now + Duration::from_millis(20),
        ] {
            let timer = wall_clock_reaches(deadline).expect("timer");
            tokio::time::timeout(Duration::from_secs(20), timer)
                .await
                .expect("ends");
            assert!(SystemTime::now() >= deadline);
        }
    }

    #[tokio::test]
    async fn sleep_ends_and_survives_dates_that_do_not_exist() {
        let before = SystemClock.monotonic();
        SystemClock.sleep(Duration::from_millis(1)).await;
        assert!(SystemClock.monotonic() >= before + Duration::from_millis(1));
        let endless = SystemClock.sleep(Duration::MAX);
        let short = tokio::time::timeout(Duration::from_millis(1), endless).await;
        assert!(short.is_err(), "an endless sleep goes on");
    }
}
