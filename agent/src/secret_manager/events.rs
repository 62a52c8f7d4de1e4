//! Says when a path may lead to other content: inotify on every directory whose entry decides it,
//! symlinks included. One kernel instance for all paths; made when the first is watched.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::clock::readable;

/// Changes of directory entries. A file counts when its writer closes it.
const ENTRY_EVENTS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);
/// As many symlinks as the kernel follows.
const MAX_LINKS: usize = 40;

/// A directory's entry.
type Entry = (PathBuf, OsString);

/// A watched directory: where it is, and how many watch each of its entries.
struct Directory {
    path: PathBuf,
    entries: HashMap<OsString, usize>,
}

/// Shared by all watched paths.
pub(super) struct FileEvents {
    changes: watch::Sender<()>,
    failures: AtomicU64,
    kernel: OnceLock<Option<Kernel>>,
    directories: Mutex<HashMap<WatchDescriptor, Directory>>,
}

impl std::fmt::Debug for FileEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileEvents").finish_non_exhaustive()
    }
}

struct Kernel {
    inotify: Arc<Inotify>,
    reader: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl FileEvents {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            changes: watch::channel(()).0,
            failures: AtomicU64::new(0),
            kernel: OnceLock::new(),
            directories: Mutex::default(),
        })
    }

    /// `num_file_watcher_failures_total`.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Wakes when anything that is watched may have changed. Subscribe before [`Self::watch`],
    /// and watch before reading, so that no change is missed.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Watches what decides the content of `paths`, as it is now. Must be called on a tokio
    /// runtime. What cannot be watched is counted; the caller's polling covers it.
    pub(super) fn watch(self: &Arc<Self>, paths: &[&Path]) -> Watched {
        let mut watched = Watched {
            events: Arc::clone(self),
            entries: Vec::new(),
        };
        let Some(kernel) = self.kernel.get_or_init(|| self.start()) else {
            return watched;
        };
        for (directory, name) in paths.iter().flat_map(|path| trail(path)) {
            // Under the lock, so that a watch cannot be removed between here and the count.
            let mut directories = self.directories.lock();
            match kernel.inotify.add_watch(&directory, ENTRY_EVENTS) {
                Ok(descriptor) => {
                    let known = directories.entry(descriptor).or_insert_with(|| Directory {
                        path: directory,
                        entries: HashMap::new(),
                    });
                    *known.entries.entry(name.clone()).or_default() += 1;
                    watched.entries.push((descriptor, name));
                }
                // Gone since the trail was walked: its parent's watch has said so.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    let path = directory.display();
                    tracing::debug!(%path, %error, "cannot watch, polling instead");
                }
            }
        }
        watched
    }

    fn start(self: &Arc<Self>) -> Option<Kernel> {
        let open = || {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let readable = readable(inotify.as_fd().try_clone_to_owned()?)?;
            Ok::<_, std::io::Error>((Arc::new(inotify), readable))
        };
        let (inotify, readable) = match open() {
            Ok(opened) => opened,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "no inotify: mounted files are polled");
                return None;
            }
        };
        let events = Arc::downgrade(self);
        let source = Arc::clone(&inotify);
        let reader = tokio::spawn(async move {
            while let Ok(mut ready) = readable.readable().await {
                let read = ready.try_io(|_| Ok(source.read_events()?));
                let Some(events) = events.upgrade() else {
                    return;
                };
                match read {
                    Ok(Ok(list)) if list.iter().any(|event| events.matters(event)) => {
                        events.changes.send_replace(());
                    }
                    // Nothing to read after all, or nothing of interest.
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => {
                        events.failures.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%error, "inotify failed: mounted files are polled");
                        return;
                    }
                }
            }
        });
        Some(Kernel { inotify, reader })
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            return false;
        }
        // An overflow, or the directory itself.
        let Some(name) = &event.name else {
            return true;
        };
        let directories = self.directories.lock();
        let Some(directory) = directories.get(&event.wd) else {
            return false;
        };
        let watched = directory.entries.contains_key(name);
        let written_to = event.mask.contains(AddWatchFlags::IN_CREATE)
            && !event.mask.contains(AddWatchFlags::IN_ISDIR);
        // A new file is looked at when its writer closes it; a new symlink at once.
        watched
            && !(written_to
                && directory
                    .path
                    .join(name)
                    .symlink_metadata()
                    .is_ok_and(|m| m.is_file()))
    }
}

/// Keeps paths watched until dropped.
pub(super) struct Watched {
    events: Arc<FileEvents>,
    entries: Vec<(WatchDescriptor, OsString)>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut directories = self.events.directories.lock();
        for (descriptor, name) in self.entries.drain(..) {
            let Some(directory) = directories.get_mut(&descriptor) else {
                continue;
            };
            if let Some(count) = directory.entries.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    directory.entries.remove(&name);
                }
            }
            if directory.entries.is_empty() {
                directories.remove(&descriptor);
                if let Some(Some(kernel)) = self.events.kernel.get() {
                    // The kernel forgets deleted directories by itself.
                    let _ = kernel.inotify.rm_watch(descriptor);
                }
            }
        }
    }
}

/// The entries that decide what `path` leads to: each symlink on the way, and the file; where the
/// way ends early, the entry that is missing.
fn trail(path: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut directory = PathBuf::from(".");
    let mut ahead: Vec<PathBuf> = Vec::new();
    let mut links = 0;
    let push = |ahead: &mut Vec<PathBuf>, path: &Path| {
        ahead.extend(
            path.components()
                .rev()
                .map(|part| PathBuf::from(part.as_os_str())),
        );
    };
    push(&mut ahead, path);
    while let Some(part) = ahead.pop() {
        let Some(Component::Normal(name)) = part.components().next() else {
            // Root, `.` or `..`.
            directory.push(part);
            continue;
        };
        let here = directory.join(name);
        match here.symlink_metadata() {
            Ok(meta) if meta.is_symlink() && links < MAX_LINKS => {
                links += 1;
                entries.push((directory.clone(), name.to_owned()));
                match std::fs::read_link(&here) {
                    Ok(target) => push(&mut ahead, &target),
                    Err(_) => return entries,
                }
            }
            Ok(meta) if meta.is_dir() && !ahead.is_empty() => directory = here,
            _ => {
                entries.push((directory, name.to_owned()));
                return entries;
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    async fn woken(changes: &mut watch::Receiver<()>) {
        tokio::time::timeout(Duration::from_secs(20), changes.changed())
            .await
            .expect("in time")
            .expect("events live");
    }

    #[test]
    fn trail_holds_every_symlink_and_the_file_or_what_is_missing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let base = dir.path().canonicalize().expect("path");
        std::fs::create_dir(base.join("..1")).expect("directory");
        std::fs::write(base.join("..1/cert"), "x").expect("file");
        symlink("..1", base.join("..data")).expect("link");
        symlink("..data/cert", base.join("cert")).expect("link");
        symlink(base.join("cert"), base.join("absolute")).expect("link");
        symlink("loop", base.join("loop")).expect("link");
        let entries = |path: &str| -> Vec<(PathBuf, String)> {
            let relative = |p: PathBuf| p.strip_prefix(&base).map(PathBuf::from).unwrap_or(p);
            let trail = trail(&base.join(path)).into_iter();
            trail
                .map(|(dir, name)| (relative(dir), name.to_string_lossy().into_owned()))
                .collect()
        };
        let entry = |dir: &str, name: &str| (PathBuf::from(dir), name.to_owned());
        let published = [entry("", "cert"), entry("", "..data"), entry("..1", "cert")];
        assert_eq!(entries("cert"), published);
        assert_eq!(entries("./cert"), published);
        assert_eq!(entries("absolute")[0], entry("", "absolute"));
        assert_eq!(entries("absolute")[1..], published);
        assert_eq!(entries("none/deeper/file"), [entry("", "none")]);
        assert_eq!(
            entries("cert/below"),
            [entry("", "cert"), entry("", "..data"), entry("..1", "cert")]
        );
        assert_eq!(entries("loop").len(), MAX_LINKS + 1);
    }

    #[tokio::test]
    async fn a_file_that_appears_in_a_directory_that_appears_is_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a/b");
        let events = FileEvents::new();
        let mut changes = events.subscribe();
        let _first = events.watch(&[&path]);
        std::fs::create_dir(dir.path().join("a")).expect("directory");
        woken(&mut changes).await;
        let _second = events.watch(&[&path]);
        std::fs::write(&path, "x").expect("file");
        woken(&mut changes).await;
        std::fs::remove_file(&path).expect("remove");
        woken(&mut changes).await;
        assert_eq!(events.failures(), 0);
    }

    #[tokio::test]
    async fn other_entries_do_not_wake_and_watches_go_with_their_holders() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("wanted");
        let events = FileEvents::new();
        let mut changes = events.subscribe();
        let first = events.watch(&[&path]);
        let second = events.watch(&[&path]);
        drop(first);
        std::fs::write(dir.path().join("other"), "x").expect("file");
        std::fs::write(&path, "x").expect("file");
        woken(&mut changes).await;
        assert_eq!(events.directories.lock().len(), 1);
        drop(second);
        assert!(events.directories.lock().is_empty());
        // Events come in order: the one of `other` would have been seen before this one.
        let _third = events.watch(&[&dir.path().join("last")]);
        std::fs::write(&path, "y").expect("file");
        std::fs::write(dir.path().join("last"), "x").expect("file");
        woken(&mut changes).await;
        assert!(!changes.has_changed().expect("events live"));
    }
}
