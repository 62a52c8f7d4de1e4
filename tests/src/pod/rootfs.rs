//! The shell script that makes a container's file system and becomes its process.
//!
//! A container sees a root of its own (tmpfs) with the host's `/usr` read through it, so that nothing
//! is ever created on the host outside the pod's own folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What one container needs.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Command with its path inside the container.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// User and group.
    pub user: (u32, u32),
    /// Capabilities kept, lower case (`net_admin`).
    pub capabilities: Vec<String>,
    /// Host folder or file, and where it is mounted.
    pub mounts: Vec<(PathBuf, String)>,
    /// Host binary and its name in `/usr/local/bin`.
    pub binaries: Vec<(PathBuf, String)>,
    /// Whether the root is read-only.
    pub read_only: bool,
}

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Accounts of the container: as the image has them, and the application's.
pub const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\n\
    istio-proxy:x:1337:1337:istio-proxy:/home/istio-proxy:/usr/sbin/nologin\n\
    app:x:1000:1000:app:/:/usr/sbin/nologin\n";
/// Groups of the container.
pub const GROUP: &str = "root:x:0:\nistio-proxy:x:1337:\napp:x:1000:\n";

/// The script. `folder` is the pod's own folder on the host, with `hosts` and `resolv.conf`.
pub fn script(folder: &Path, container: &Container) -> String {
    let root = quote(&folder.join("root").display().to_string());
    let mut s = format!(
        "set -e\nR={root}\nmount --make-rprivate /\nmkdir -p $R\n\
         mount -t tmpfs -o mode=755 tmpfs $R\n\
         mkdir -p $R/usr $R/etc $R/proc $R/dev $R/sys $R/run $R/tmp $R/home/istio-proxy \
         $R/var/run/secrets $R/var/lib/istio/envoy\n\
         for l in bin sbin lib lib32 lib64; do\n\
         if [ -L /$l ]; then cp -P /$l $R/$l\n\
         elif [ -d /$l ]; then mkdir $R/$l; mount --rbind /$l $R/$l; fi; done\n\
         mount --bind /usr $R/usr\nmount -t tmpfs -o mode=755 tmpfs $R/usr/local/bin\n\
         mount -t proc proc $R/proc\nmount --rbind /dev $R/dev\nmount --rbind /sys $R/sys\n\
         for f in ssl ca-certificates alternatives; do\n\
         if [ -d /etc/$f ]; then mkdir $R/etc/$f; mount --bind /etc/$f $R/etc/$f; fi; done\n\
         for f in ld.so.cache protocols services nsswitch.conf; do\n\
         if [ -f /etc/$f ]; then cp /etc/$f $R/etc/$f; fi; done\n\
         printf %s {passwd} > $R/etc/passwd\nprintf %s {group} > $R/etc/group\n",
        passwd = quote(PASSWD),
        group = quote(GROUP),
    );
    for name in ["hosts", "resolv.conf"] {
        let from = quote(&folder.join(name).display().to_string());
        let _ = writeln!(s, "cp {from} $R/etc/{name}");
    }
    for (from, name) in &container.binaries {
        let from = quote(&from.display().to_string());
        let to = format!("$R/usr/local/bin/{}", quote(name));
        let _ = writeln!(s, "touch {to}; mount --bind {from} {to}");
    }
    for (from, to) in &container.mounts {
        let (path, from) = (from.is_file(), quote(&from.display().to_string()));
        let to = format!("$R{}", quote(to));
        let make = if path {
            format!("touch {to}")
        } else {
            format!("mkdir -p {to}")
        };
        let _ = writeln!(s, "{make}; mount --bind {from} {to}");
    }
    if container.read_only {
        s.push_str("mount -o remount,ro $R\n");
    }
    s.push_str(&exec(container));
    s
}

fn exec(container: &Container) -> String {
    let (uid, gid) = container.user;
    let caps: String = container
        .capabilities
        .iter()
        .map(|c| format!(",+{c}"))
        .collect();
    let env: String = container
        .env
        .iter()
        .map(|(k, v)| format!(" {}", quote(&format!("{k}={v}"))))
        .collect();
    let command: String = container
        .command
        .iter()
        .map(|w| format!(" {}", quote(w)))
        .collect();
    format!(
        "exec chroot $R /usr/bin/setpriv --reuid {uid} --regid {gid} --clear-groups \
         --bounding-set -all{caps} --inh-caps -all{caps} --no-new-privs --pdeathsig KILL \
         /usr/bin/env -i{env}{command}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("a'b $(x)"), r"'a'\''b $(x)'");
    }
}
