//! Looks at the legacy (x_tables) kernel tables without any program and without creating them:
//! whether they hold rules, and whether chains of ours are among them. Tables are asked for only
//! after proc has said that they exist.

use std::fs;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::rules::Family;

/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const GET_INFO: libc::c_int = 64;
/// IPT_SO_GET_ENTRIES and IP6T_SO_GET_ENTRIES.
const GET_ENTRIES: libc::c_int = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
const INFO: usize = NAME + 13 * 4;
/// struct ipt_get_entries without its entries: name, size, alignment to eight bytes.
const ENTRIES: usize = NAME + 8;
/// Bound for one table; the kernel's own is the size of its allocation.
const MAX_TABLE: usize = 256 << 20;

/// What the legacy tables of a family hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LegacyState {
    /// No table, or only such that were created by looking at them. Also where this process may
    /// not look: legacy iptables needs root anyway.
    Empty,
    /// Rules of somebody.
    Rules,
    /// `ISTIO_*` chains.
    Own,
}

/// Reads the state of a family. Creates nothing.
///
/// # Errors
/// A table exists but cannot be read.
pub fn read(family: Family) -> Result<LegacyState, Errno> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = fs::read_to_string(path).unwrap_or_default();
    let mut state = LegacyState::Empty;
    for name in names.lines().filter(|n| !n.is_empty() && n.len() < NAME) {
        state = state.max(read_table(family, name)?);
    }
    Ok(state)
}

fn read_table(family: Family, name: &str) -> Result<LegacyState, Errno> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        Family::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    // Any socket of the family reaches the tables; a raw one would need NET_RAW.
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let fd = socket.as_raw_fd();
    let mut info = vec![0; INFO];
    info[..name.len()].copy_from_slice(name.as_bytes());
    get_option(fd, level, GET_INFO, &mut info)?;
    let number = |index: usize| {
        let at = NAME + index * 4;
        u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
    };
    let (hooks, count, size) = (number(0).count_ones(), number(11), number(12));
    // One policy per hook and the end mark are there without any rule or chain.
    if count <= hooks + 1 {
        return Ok(LegacyState::Empty);
    }
    let size_of_entries = usize::try_from(size).unwrap_or(usize::MAX);
    if size_of_entries > MAX_TABLE {
        return Err(Errno::EFBIG);
    }
    let mut entries = vec![0; ENTRIES + size_of_entries];
    entries[..name.len()].copy_from_slice(name.as_bytes());
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    match get_option(fd, level, GET_ENTRIES, &mut entries) {
        Ok(()) => {}
        // The table changed between the two calls; the next run sees what it is now.
        Err(Errno::EAGAIN) => return Ok(LegacyState::Rules),
        Err(errno) => return Err(errno),
    }
    // A chain's name is stored as the text of an entry, so a search finds it.
    let own = entries[ENTRIES..].windows(6).any(|w| w == b"ISTIO_");
    Ok(if own {
        LegacyState::Own
    } else {
        LegacyState::Rules
    })
}

/// getsockopt with a buffer that is both question and answer.
#[allow(unsafe_code, reason = "no safe wrapper has these socket options")]
fn get_option(
    fd: libc::c_int,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> Result<(), Errno> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EFBIG)?;
    // SAFETY: pointer and length describe `buffer`, which outlives the call; the kernel writes at
    // most `length` bytes into it, and any bytes are valid for it.
    let result = unsafe {
        libc::getsockopt(
            fd,
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(drop)
}
