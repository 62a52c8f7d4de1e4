//! Listening unix sockets as the agent makes them: stale file removed, mode 0666, own directory.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("unix socket {}: {step}: {source}", path.display())]
pub struct UdsError {
    /// The socket's path.
    pub path: PathBuf,
    /// What failed.
    pub step: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Binds `path`: creates the parent directory (0750) if missing, removes a stale file, sets mode
/// 0666. Must be called on a tokio runtime.
///
/// # Errors
/// If any of these steps fails.
pub fn bind(path: &Path) -> Result<UnixListener, UdsError> {
    let fail = |step| {
        let path = path.to_owned();
        move |source| UdsError { path, step, source }
    };
    if let Some(parent) = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty() && !p.exists())
    {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)
            .map_err(fail("create directory"))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(fail("remove stale file")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .map_err(fail("set mode"))?;
    Ok(listener)
}

/// Unlinks a socket when dropped.
#[derive(Debug)]
pub struct SocketFile(pub PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it; nothing is lost then.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaces_a_stale_socket_and_opens_it_to_everybody() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("deep/er/socket");
        drop(bind(&path).expect("first bind"));
        assert!(path.exists(), "tokio leaves the file behind");
        let _listener = bind(&path).expect("second bind");
        let mode = |p: &Path| {
            std::fs::metadata(p)
                .map(|m| m.permissions().mode() & 0o777)
                .expect("metadata")
        };
        assert_eq!(mode(&path), 0o666);
        assert_eq!(mode(&dir.path().join("deep")), 0o750);
    }
}
