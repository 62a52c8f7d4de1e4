//! The log flags of the command line, applied to the shared logger. Formats and scopes are not
//! decided here.

use outrigger_base::log::{self, AGENT_SCOPES, Format, LevelError, Levels, Target, Verbosity};

use crate::cli::LogArgs;

/// Flags that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// Not standard output or error.
    #[error("--log_target {0}: only stdout or stderr is supported")]
    Target(String),
    /// A flag that is not implemented.
    #[error("--{0} is not supported")]
    Unsupported(&'static str),
}

/// Sets up logging for the rest of the process. A second call changes nothing.
///
/// # Errors
/// A bad level or target, or a flag that is not implemented.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let (levels, target) = settings(args)?;
    let format = if args.as_json {
        Format::IstioJson
    } else {
        Format::IstioText
    };
    log::init(levels, format, target);
    Ok(())
}

fn settings(args: &LogArgs) -> Result<(Levels, Target), LogError> {
    if !args.caller.is_empty() {
        return Err(LogError::Unsupported("log_caller"));
    }
    if !matches!(args.stacktrace_level.as_str(), "" | "none" | "default:none") {
        return Err(LogError::Unsupported("log_stacktrace_level"));
    }
    let target = match args.targets.as_slice() {
        [] => Target::Stdout,
        [one] if one == "stdout" => Target::Stdout,
        [one] if one == "stderr" => Target::Stderr,
        other => return Err(LogError::Target(other.join(","))),
    };
    let levels = Levels::new(Verbosity::Info, AGENT_SCOPES);
    // Istio's default, `default:info,grpc:none`.
    levels.set("grpc", Verbosity::Off)?;
    levels.apply_istio(&args.output_level)?;
    Ok((levels, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_cannot_be_honoured_are_refused() {
        let base = LogArgs {
            stacktrace_level: "default:none".to_owned(),
            ..LogArgs::default()
        };
        let (levels, _) = settings(&base).expect("defaults");
        assert_eq!(levels.of("default"), Verbosity::Info);
        assert_eq!(levels.of("grpc"), Verbosity::Off);
        for (args, message) in [
            (
                LogArgs {
                    output_level: "default:loud".to_owned(),
                    ..base.clone()
                },
                "unknown log level: loud",
            ),
            (
                LogArgs {
                    targets: vec!["/tmp/x".to_owned()],
                    ..base.clone()
                },
                "--log_target /tmp/x: only stdout or stderr is supported",
            ),
            (
                LogArgs {
                    caller: "default".to_owned(),
                    ..base
                },
                "--log_caller is not supported",
            ),
        ] {
            assert_eq!(settings(&args).expect_err("refused").to_string(), message);
        }
    }
}
