//! A clock that only the test moves. True time never jumps; the machine's wall clock is true time
//! and an offset that the test sets.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pilot_agent::secret_manager::{Clock, Sleep};
use tokio::sync::{mpsc, watch};

#[derive(Debug, Clone, Copy)]
struct Times {
    elapsed: Duration,
    /// Of the wall clock, milliseconds.
    offset: i64,
}

/// The machine's view.
#[derive(Debug)]
pub(crate) struct TestClock {
    start: SystemTime,
    times: watch::Sender<Times>,
    asleep: mpsc::UnboundedSender<Duration>,
}

/// Says how long somebody sleeps who has just begun to.
pub(crate) type Sleepers = mpsc::UnboundedReceiver<Duration>;

impl TestClock {
    pub(crate) fn new() -> (Arc<Self>, Sleepers) {
        let (asleep, sleepers) = mpsc::unbounded_channel();
        let times = Times {
            elapsed: Duration::ZERO,
            offset: 0,
        };
        let clock = Self {
            start: SystemTime::now(),
            times: watch::channel(times).0,
            asleep,
        };
        (Arc::new(clock), sleepers)
    }

    /// What a right clock shows.
    pub(crate) fn true_now(&self) -> SystemTime {
        self.start + self.times.borrow().elapsed
    }

    /// What the machine's clock shows.
    pub(crate) fn now_wall(&self) -> SystemTime {
        self.wall(*self.times.borrow())
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.times.send_modify(|times| times.elapsed += by);
    }

    /// Sets the wall clock to true time and `milliseconds`.
    pub(crate) fn set_offset(&self, milliseconds: i64) {
        self.times.send_modify(|times| times.offset = milliseconds);
    }

    fn wall(&self, times: Times) -> SystemTime {
        let now = self.start + times.elapsed;
        let offset = Duration::from_millis(times.offset.unsigned_abs());
        if times.offset < 0 {
            now - offset
        } else {
            now + offset
        }
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.now_wall()
    }

    fn monotonic(&self) -> Duration {
        self.times.borrow().elapsed
    }

    fn sleep(&self, wait: Duration) -> Sleep<'_> {
        let mut times = self.times.subscribe();
        let start = *times.borrow();
        let wake = self.wall(start) + wait;
        Box::pin(async move {
            // The test is over if nobody listens.
            let _ = self.asleep.send(wait);
            let over = |now: &Times| now.elapsed >= start.elapsed + wait || self.wall(*now) >= wake;
            times.wait_for(over).await.expect("clock lives");
        })
    }
}
