//! Memory that only the start needed.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the program's code and constants. The kernel maps a page again from the page cache when it is next
/// used, so what only the start needed (parsing flags, templates, whole configurations) counts no longer as
/// resident; an idle process uses about a tenth of what its start touched.
///
/// Only mappings of the executable are concerned that cannot be written and hold no private copy of a page:
/// what is dropped can always be read again. Returns the bytes that were resident there.
///
/// # Errors
/// If `/proc/self/smaps` cannot be read, or the kernel refuses.
pub fn release_start_up_pages() -> io::Result<u64> {
    let program = fs::read_link("/proc/self/exe")?;
    let mappings = fs::read_to_string("/proc/self/smaps")?;
    let mut released = 0;
    for mapping in mappings_of(&mappings, &program.to_string_lossy()) {
        release(&mapping)?;
        released += mapping.resident;
    }
    Ok(released)
}

/// One file mapping whose pages are those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: usize,
    end: usize,
    /// Bytes.
    resident: u64,
}

/// The mappings of `program` that can be dropped without losing anything.
fn mappings_of(smaps: &str, program: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    // The mapping that the lines belong to, if it is of the program and read-only.
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), second) = (words.next(), words.next().unwrap_or_default()) else {
            continue;
        };
        if !first.ends_with(':') {
            let path = line.splitn(6, ' ').nth(5).unwrap_or_default().trim_start();
            let ours = path == program && second.starts_with('r') && !second.contains('w');
            current = range(first).filter(|_| ours).map(|(start, end)| Mapping {
                start,
                end,
                resident: 0,
            });
            continue;
        }
        let bytes = second
            .parse::<u64>()
            .unwrap_or(u64::MAX)
            .saturating_mul(1024);
        match (first, &mut current) {
            ("Rss:", Some(mapping)) => mapping.resident = bytes,
            // A relocated or patched page exists nowhere else.
            ("Anonymous:" | "Swap:", Some(_)) if bytes > 0 => current = None,
            ("Swap:", Some(mapping)) => found.push(*mapping),
            _ => {}
        }
    }
    found
}

fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (start < end).then_some((start, end))
}

#[allow(unsafe_code, reason = "no safe wrapper can know what a range holds")]
fn release(mapping: &Mapping) -> io::Result<()> {
    let Some(address) = NonNull::new(mapping.start as *mut c_void) else {
        return Ok(());
    };
    // SAFETY: the range is one read-only private mapping of a file without a private copy of any page (nothing
    // was written before it was protected, nothing can be since), so every page reads the same again.
    unsafe {
        madvise(
            address,
            mapping.end - mapping.start,
            MmapAdvise::MADV_DONTNEED,
        )
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-8f00 r--p 00000000 fe:00 1 /usr/local/bin/a b
Rss:                 100 kB
Anonymous:             0 kB
Swap:                  0 kB
8f00-9f00 r-xp 00000000 fe:00 1      /usr/local/bin/a b
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
9f00-af00 r--p 00000000 fe:00 1      /usr/local/bin/a b
Rss:                   8 kB
Anonymous:             4 kB
Swap:                  0 kB
af00-bf00 r--p 00000000 fe:00 1      /usr/local/bin/a b
Rss:                   0 kB
Anonymous:             0 kB
Swap:                  4 kB
bf00-cf00 rw-p 00000000 fe:00 1      /usr/local/bin/a b
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
cf00-df00 r--p 00000000 fe:00 1      /usr/lib/locale
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
df00-ef00 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
";

    #[test]
    fn only_untouched_read_only_pages_of_the_program_are_dropped() {
        let expected =
            [(0x7f00, 0x8f00, 100), (0x8f00, 0x9f00, 8)].map(|(start, end, kib)| Mapping {
                start,
                end,
                resident: kib * 1024,
            });
        assert_eq!(mappings_of(SMAPS, "/usr/local/bin/a b"), expected);
    }

    #[test]
    fn the_program_runs_on_and_knows_its_constants() {
        let before = format!("{SMAPS:?}");
        assert!(release_start_up_pages().expect("pages") > 0);
        assert_eq!(format!("{SMAPS:?}"), before);
        // Again: what is mapped by now.
        assert!(release_start_up_pages().expect("pages") > 0);
    }
}
