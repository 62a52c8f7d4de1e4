//! The `date` header, formatted once per second and thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_base::time::Civil;

thread_local! {
    static NOW: RefCell<(u64, [u8; 29])> = const { RefCell::new((0, [0; 29])) };
}

/// Calls `f` with the present time in IMF-fixdate form (RFC 9110 5.6.7).
pub fn with_now<T>(f: impl FnOnce(&[u8]) -> T) -> T {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    NOW.with_borrow_mut(|(second, text)| {
        if *second != now {
            *second = now;
            *text = format(now);
        }
        f(text)
    })
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
#[must_use]
pub fn format(seconds: u64) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let at = Civil::from_seconds(seconds);
    let mut out = *b"---, -- --- ---- --:--:-- GMT";
    let two = |n: u8| [b'0' + n / 10 % 10, b'0' + n % 10];
    let century = (at.year / 100 % 100) as u8;
    out[..3].copy_from_slice(DAYS[(at.days % 7) as usize]);
    out[5..7].copy_from_slice(&two(at.day));
    out[8..11].copy_from_slice(MONTHS[usize::from(at.month - 1)]);
    out[12..14].copy_from_slice(&two(century));
    out[14..16].copy_from_slice(&two((at.year % 100) as u8));
    out[17..19].copy_from_slice(&two(at.hour));
    out[20..22].copy_from_slice(&two(at.minute));
    out[23..25].copy_from_slice(&two(at.second));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_known_dates() {
        assert_eq!(&format(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&format(951_782_400), b"Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(&format(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
