//! The drain signal of a process or listener: first "finish what you have", then "stop now". Whoever holds a
//! [`Drain`] is waited for. Never decides how long a phase lasts.

use tokio::sync::watch;

/// How far the end has come. Phases only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Running,
    /// No new work; work at hand is finished and peers are told to go elsewhere.
    Draining,
    /// Everything stops at once.
    Closing,
}

/// The side that orders the drain. Dropping it means [`Phase::Closing`]: a task whose owner is gone must not
/// run on.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
}

/// The side that is drained. Clones are waited for by [`DrainTrigger::drained`].
#[derive(Debug, Clone)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
}

/// A signal in [`Phase::Running`].
#[must_use]
pub fn channel() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(Phase::Running);
    (DrainTrigger { phase: sender }, Drain { phase: receiver })
}

impl DrainTrigger {
    /// Orders [`Phase::Draining`]; false if that or more was ordered before.
    pub fn drain(&self) -> bool {
        self.advance(Phase::Draining)
    }

    /// Orders [`Phase::Closing`]; false if it was ordered before.
    pub fn close(&self) -> bool {
        self.advance(Phase::Closing)
    }

    fn advance(&self, to: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            if later {
                *phase = to;
            }
            later
        })
    }

    /// The phase that was ordered last.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// One more side to be waited for.
    #[must_use]
    pub fn subscribe(&self) -> Drain {
        Drain {
            phase: self.phase.subscribe(),
        }
    }

    /// How many [`Drain`]s are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.phase.receiver_count()
    }

    /// Returns when no [`Drain`] is held any more. Safe to cancel.
    pub async fn drained(&self) {
        self.phase.closed().await;
    }
}

impl Drain {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.phase.has_changed().is_err() {
            Phase::Closing
        } else {
            *self.phase.borrow()
        }
    }

    /// Returns when draining or more was ordered, at once if it was before. Safe to cancel.
    pub async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Returns when closing was ordered, at once if it was before. Safe to cancel.
    pub async fn closing(&mut self) {
        self.reached(Phase::Closing).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger is gone, which is the last phase.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Whether the future is ready at its first poll.
    async fn ready(future: impl Future<Output = ()>) -> bool {
        let mut future = pin!(future);
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn phases_only_go_forward_and_late_waiters_see_them() {
        let (trigger, mut drain) = channel();
        assert!(!ready(drain.draining()).await);
        assert!(trigger.drain() && !trigger.drain());
        assert!(ready(drain.draining()).await && !ready(drain.closing()).await);
        assert!(trigger.close() && !trigger.drain());
        assert_eq!(
            (trigger.phase(), trigger.subscribe().phase()),
            (Phase::Closing, Phase::Closing)
        );
        assert!(ready(drain.closing()).await && ready(drain.draining()).await);
    }

    #[tokio::test]
    async fn drained_waits_for_the_last_holder() {
        let (trigger, drain) = channel();
        let second = drain.clone();
        trigger.drain();
        drop(drain);
        assert_eq!(trigger.held(), 1);
        assert!(!ready(trigger.drained()).await);
        drop(second);
        assert!(ready(trigger.drained()).await);
    }

    #[tokio::test]
    async fn a_dropped_trigger_closes() {
        let (trigger, mut drain) = channel();
        drop(trigger);
        assert_eq!(drain.phase(), Phase::Closing);
        assert!(ready(drain.closing()).await);
    }
}
