//! The agent's log: the flags of the command line (here), scopes and their levels, lines in Istio's formats.

mod levels;
mod lines;

use std::collections::BTreeSet;

use tracing_subscriber::layer::SubscriberExt as _;

use self::levels::{Levels, SCOPES, Verbosity};
use self::lines::{Details, Format, Lines, Target};
use crate::cli::LogArgs;

pub use levels::LevelError;

/// Flags that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// A file that cannot be written.
    #[error("--log_target {path}: {source}")]
    Target {
        /// File.
        path: String,
        /// System error.
        source: std::io::Error,
    },
}

/// Sets up logging for the rest of the process. A second call changes nothing.
///
/// # Errors
/// A bad level or a target that cannot be opened.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let Settings {
        levels,
        targets,
        details,
    } = settings(args)?;
    let format = if args.as_json {
        Format::Json
    } else {
        Format::Text
    };
    let lines = Lines {
        levels,
        format,
        targets,
        details,
    };
    // Only a second call fails, and then the first subscriber stays.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    Ok(())
}

struct Settings {
    levels: Levels,
    targets: Vec<Target>,
    details: Details,
}

fn settings(args: &LogArgs) -> Result<Settings, LogError> {
    let mut levels = Levels::new(Verbosity::Info);
    // Istio's default, `default:info,grpc:none`.
    levels.set("grpc", Verbosity::Off);
    levels.apply(&args.output_level)?;
    let mut stacks = Levels::new(Verbosity::Off);
    stacks.apply(&args.stacktrace_level)?;
    let targets: Result<Vec<_>, _> = args.targets.iter().map(|t| target(t)).collect();
    let mut targets = targets?;
    if targets.is_empty() {
        targets.push(Target::Stdout);
    }
    Ok(Settings {
        levels,
        targets,
        details: Details {
            callers: callers(&args.caller),
            stacks: (!stacks.are_off()).then_some(stacks),
        },
    })
}

/// A comma list of scopes; `all` is every one, unknown ones are ignored as in the reference.
fn callers(list: &str) -> BTreeSet<String> {
    let named: Vec<&str> = list.split(',').map(str::trim).collect();
    let all = named.contains(&"all");
    let wanted = SCOPES.iter().filter(|scope| all || named.contains(scope));
    wanted.map(ToString::to_string).collect()
}

fn target(text: &str) -> Result<Target, LogError> {
    match text {
        "stdout" => Ok(Target::Stdout),
        "stderr" => Ok(Target::Stderr),
        path => {
            let file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(path);
            file.map(Target::File).map_err(|source| LogError::Target {
                path: path.to_owned(),
                source,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> LogArgs {
        LogArgs {
            stacktrace_level: "default:none".to_owned(),
            ..LogArgs::default()
        }
    }

    #[test]
    fn defaults_are_those_of_istio() {
        let settings = settings(&args()).expect("defaults");
        assert_eq!(settings.levels.of("default"), Verbosity::Info);
        assert_eq!(settings.levels.of("grpc"), Verbosity::Off);
        assert!(matches!(settings.targets[..], [Target::Stdout]));
        assert!(settings.details.stacks.is_none() && settings.details.callers.is_empty());
    }

    #[test]
    fn callers_stacks_and_files_are_honoured() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("agent.log").display().to_string();
        let settings = settings(&LogArgs {
            targets: vec!["stderr".to_owned(), file],
            caller: "dns, nobody".to_owned(),
            stacktrace_level: "dns:error".to_owned(),
            ..args()
        })
        .expect("accepted");
        assert!(matches!(
            settings.targets[..],
            [Target::Stderr, Target::File(_)]
        ));
        assert_eq!(settings.details.callers, BTreeSet::from(["dns".to_owned()]));
        let stacks = settings.details.stacks.expect("stacks");
        assert_eq!(stacks.of("dns"), Verbosity::Error);
        assert_eq!(stacks.of("ca"), Verbosity::Off);
        assert_eq!(callers("all").len(), SCOPES.len());
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (args, message) in [
            (
                LogArgs {
                    output_level: "default:loud".to_owned(),
                    ..args()
                },
                "unknown log level: loud",
            ),
            (
                LogArgs {
                    stacktrace_level: "x".to_owned(),
                    ..args()
                },
                "unknown log level: x",
            ),
            (
                LogArgs {
                    targets: vec!["/nonexistent/x".to_owned()],
                    ..args()
                },
                "--log_target /nonexistent/x: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(settings(&args).err().expect("refused").to_string(), message);
        }
    }
}
