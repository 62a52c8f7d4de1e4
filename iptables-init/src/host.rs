//! The real machine behind [`Host`]: interface addresses, resolv.conf, and the passwd and group
//! files read directly, because a static binary has no name service to ask.

use std::fs;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use crate::config::Host;
use crate::values::OwnerId;

/// Upper bound for a file that is parsed here.
const MAX_FILE: u64 = 1 << 20;

/// This machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Host for Machine {
    fn addresses(&self) -> Result<Vec<IpAddr>, io::Error> {
        let list = interface_addresses()?;
        Ok(list.into_iter().map(|(_, address)| address).collect())
    }

    fn resolv_conf(&self) -> Result<String, io::Error> {
        read_bounded("/etc/resolv.conf")
    }

    fn user_id(&self, name: &str) -> Option<u32> {
        let text = read_bounded("/etc/passwd").ok()?;
        lookup_id(&text, name)
    }
}

/// Interfaces with their addresses, in the order of the kernel's dump.
///
/// # Errors
/// The kernel refuses the dump.
pub fn interface_addresses() -> Result<Vec<(String, IpAddr)>, io::Error> {
    let list = getifaddrs().map_err(io::Error::from)?;
    Ok(list
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            Some((entry.interface_name, v4.or_else(v6)?))
        })
        .collect())
}

fn read_bounded(path: &str) -> Result<String, io::Error> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Third field of the passwd or group line with this name.
fn lookup_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

/// A name that no file knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// Unknown user.
    #[error("User does not exist: {0:?} is not in /etc/passwd")]
    User(String),
    /// Unknown group.
    #[error("Group does not exist: {0:?} is not in /etc/group")]
    Group(String),
}

/// The user and group files.
#[derive(Debug, Clone, Default)]
pub struct OwnerNames {
    passwd: String,
    group: String,
}

impl OwnerNames {
    /// Reads `/etc/passwd` and `/etc/group`; a missing file knows nobody.
    #[must_use]
    pub fn read() -> Self {
        Self::from_text(
            read_bounded("/etc/passwd").unwrap_or_default(),
            read_bounded("/etc/group").unwrap_or_default(),
        )
    }

    /// The same from given contents.
    #[must_use]
    pub const fn from_text(passwd: String, group: String) -> Self {
        Self { passwd, group }
    }

    /// Numeric UIDs, both ends included; equal unless a range was given.
    ///
    /// # Errors
    /// Unknown name.
    pub fn user(&self, id: &OwnerId) -> Result<(u32, u32), OwnerError> {
        resolve(id, &self.passwd).map_err(OwnerError::User)
    }

    /// Numeric GIDs, both ends included; equal unless a range was given.
    ///
    /// # Errors
    /// Unknown name.
    pub fn group(&self, id: &OwnerId) -> Result<(u32, u32), OwnerError> {
        resolve(id, &self.group).map_err(OwnerError::Group)
    }
}

/// The ids, or the name that `file` does not have.
fn resolve(id: &OwnerId, file: &str) -> Result<(u32, u32), String> {
    match id {
        OwnerId::Number(n) => Ok((*n, *n)),
        OwnerId::Range(low, high) => Ok((*low, *high)),
        OwnerId::Name(name) => lookup_id(file, name)
            .map(|n| (n, n))
            .ok_or_else(|| name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_files_and_unknown_names_are_errors() {
        let names = OwnerNames::from_text(
            "root:x:0:0::/root:/bin/sh\nistio-proxy:x:1337:1338::/:/bin/sh\nbroken:x\n".into(),
            "ftp:x:14:\njava:x:70000:a,b\n".into(),
        );
        let name = |n: &str| OwnerId::Name(n.to_owned());
        assert_eq!(names.user(&name("istio-proxy")), Ok((1337, 1337)));
        assert_eq!(names.group(&name("java")), Ok((70000, 70000)));
        assert_eq!(
            names.user(&name("broken")),
            Err(OwnerError::User("broken".into()))
        );
        assert_eq!(
            names.group(&name("root")),
            Err(OwnerError::Group("root".into()))
        );
        assert_eq!(names.user(&OwnerId::Range(1, 2)), Ok((1, 2)));
    }
}
