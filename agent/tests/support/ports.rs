//! Ports for servers that have to know theirs before they start.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that nobody has now, and that no later call of this process gives again. Below the range from
/// which the kernel takes ports by itself: connections of other tests would take it away again.
pub(crate) fn free_port() -> u16 {
    const RANGE: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test programs run side by side; each starts somewhere else.
    let start = std::process::id().wrapping_mul(611);
    loop {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = RANGE.start + offset % (RANGE.end - RANGE.start);
        let port = u16::try_from(port).expect("in range");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
