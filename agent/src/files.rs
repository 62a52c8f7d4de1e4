//! Files that others read while they are replaced.

use std::fs::{File, OpenOptions, remove_file};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// An empty file of our own at `path`, to be filled and then renamed to where it is read. `mode` is cut by the umask.
///
/// # Errors
/// A left-over that cannot be removed, or a file that cannot be made.
pub(crate) fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    // A left-over of a killed process would keep its own mode.
    match remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode).open(path)
}
