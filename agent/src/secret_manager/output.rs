//! `OUTPUT_CERTS`: the workload's secrets as files for others.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::SecretValue;
use crate::files::create_anew;

/// Where and how secrets are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputCerts {
    /// Directory; must exist.
    pub dir: PathBuf,
    /// Mode of the files: 0600, in Kubernetes 0644.
    pub mode: u32,
}

impl OutputCerts {
    /// Writes what `value` holds: key before chain, each by rename and only if it changed.
    pub(super) fn write(&self, value: &SecretValue) -> io::Result<()> {
        match value {
            SecretValue::Certificate { chain, key, .. } => {
                self.write_file("key.pem", key)?;
                self.write_file("cert-chain.pem", chain)
            }
            SecretValue::Roots(pem) => self.write_file("root-cert.pem", pem),
        }
    }

    fn write_file(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        if content.is_empty() || std::fs::read(&path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        let temporary = self.dir.join(format!(".{name}.tmp"));
        let mut file = create_anew(&temporary, 0o600)?;
        file.write_all(content)?;
        // Not by `open`, whose mode the umask would cut.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        std::fs::rename(&temporary, &path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bytes::Bytes;
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn files_have_the_mode_and_are_left_alone_when_unchanged() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let output = OutputCerts {
            dir: dir.path().to_owned(),
            mode: 0o600,
        };
        let value = SecretValue::Certificate {
            chain: Bytes::from_static(b"chain"),
            key: Zeroizing::new(b"key".to_vec()),
            not_after: None,
        };
        output.write(&value).expect("write");
        let inode = |name: &str| {
            std::fs::metadata(dir.path().join(name))
                .expect("file")
                .ino()
        };
        let before = (inode("key.pem"), inode("cert-chain.pem"));
        output.write(&value).expect("write again");
        assert_eq!(before, (inode("key.pem"), inode("cert-chain.pem")));
        let mode = std::fs::metadata(dir.path().join("key.pem"))
            .expect("file")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert!(!dir.path().join("root-cert.pem").exists());
    }
}
