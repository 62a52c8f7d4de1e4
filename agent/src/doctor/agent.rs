//! The running agent, if any: its arguments, and its environment where that may be read. In a
//! container the environment of `kubectl exec` is the same; on a machine it is not.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::cli::{self, Command, ProxyArgs};
use crate::options::Environment;

pub(super) struct RunningAgent {
    pub(super) args: ProxyArgs,
    /// `None` for a user who may not read it.
    pub(super) environment: Option<Environment>,
}

/// The agent of this container (process 1), or of this machine: the one of this network namespace
/// that was started in this folder, to which the paths of its files are relative.
pub(super) fn find() -> Option<RunningAgent> {
    let link = |process: &Path, name: &str| fs::read_link(process.join(name)).ok();
    let own = Path::new("/proc/self");
    let is_here = |process: &PathBuf| {
        ["ns/net", "cwd"].iter().all(|name| {
            let theirs = link(process, name);
            theirs.is_some() && theirs == link(own, name)
        })
    };
    agent(Path::new("/proc/1")).or_else(|| {
        let mut processes = fs::read_dir("/proc").ok()?.flatten().map(|e| e.path());
        processes.find_map(|process| agent(&process).filter(|_| is_here(&process)))
    })
}

fn agent(process: &Path) -> Option<RunningAgent> {
    let words = words(&fs::read(process.join("cmdline")).ok()?);
    let (program, rest) = words.split_first()?;
    if Path::new(program).file_name()? != "pilot-agent" {
        return None;
    }
    let environment = fs::read(process.join("environ")).ok().map(|bytes| {
        let variables = self::words(&bytes).into_iter();
        variables.filter_map(variable).collect()
    });
    Some(RunningAgent {
        args: proxy_args(rest)?,
        environment,
    })
}

/// The arguments of `proxy`; `None` for another command.
pub(super) fn proxy_args(words: &[OsString]) -> Option<ProxyArgs> {
    match cli::parse(words.iter().cloned()).ok()?.command {
        Command::Proxy(args) => Some(args),
        _ => None,
    }
}

fn words(bytes: &[u8]) -> Vec<OsString> {
    bytes
        .split(|b| *b == 0)
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

fn variable(word: OsString) -> Option<(String, String)> {
    let text = word.into_string().ok()?;
    let (name, value) = text.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}
