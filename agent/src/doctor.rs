//! The `doctor` command: looks at what a pod or VM of the mesh needs, from the kernel to istiod, and
//! says what to do about each failure. Reads and connects; changes nothing. Prints no secret.

mod agent;
mod capture;
mod cgroup;
mod clock;
mod istiod;
mod kernel;
mod proxy;
mod token;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::options::{Environment, Options};

pub use kernel::probe_rules;

/// Everything is as it should be, or only noted.
pub const EXIT_HEALTHY: u8 = 0;
/// At least one check failed.
pub const EXIT_UNHEALTHY: u8 = 1;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// Does not work.
    Failure,
    /// Could not be checked, or does not apply.
    Skipped,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Failure => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do; only with a warning or failure.
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            detail: detail.into(),
            fix: None,
        }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, detail)
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, detail)
    }

    fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, Verdict::Warning, detail)
        }
    }

    fn failure(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, Verdict::Failure, detail)
        }
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{:<4}  {:<8}  {}",
            self.verdict.name(),
            self.name,
            self.detail
        );
        if let Some(fix) = &self.fix {
            out.push_str(&format!("\n      fix: {fix}"));
        }
        out
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "verdict": self.verdict.name().to_ascii_lowercase(),
            "detail": self.detail,
            "fix": self.fix,
        })
    }
}

/// Runs all checks; returns the report for standard output and the exit code.
pub async fn run(args: &DoctorArgs) -> (String, u8) {
    let limit = Duration::from_secs(args.timeout_seconds.max(1));
    let checks = checks(limit).await;
    let failed = checks.iter().any(|c| c.verdict == Verdict::Failure);
    let code = if failed { EXIT_UNHEALTHY } else { EXIT_HEALTHY };
    if args.json {
        let checks: Vec<Value> = checks.iter().map(Check::json).collect();
        let report = json!({ "healthy": !failed, "checks": checks });
        return (format!("{report:#}\n"), code);
    }
    let report = checks.iter().map(|check| check.text() + "\n").collect();
    (report, code)
}

async fn checks(limit: Duration) -> Vec<Check> {
    let running = agent::find();
    let (args, environment) = running.map_or((None, None), |r| (Some(r.args), r.environment));
    let environment = environment.unwrap_or_else(Environment::of_process);
    let args = args.or_else(|| agent::proxy_args(&["proxy".into()]));
    let args = args.expect("a command line without flags parses");
    let tproxy = environment.text("ISTIO_META_INTERCEPTION_MODE") == "TPROXY";
    let mut checks = vec![
        kernel::check(tproxy, limit).await,
        cgroup::check(Path::new("/sys/fs/cgroup")),
    ];
    let options = match Options::load(args, false, environment.clone()).await {
        Ok(options) => options,
        Err(e) => {
            let fix = "change the setting that the message names; the agent does not start with it";
            checks.push(Check::failure("options", e.to_string(), fix));
            return checks;
        }
    };
    checks.push(capture::check(&options, limit).await);
    let token = token::read(&options);
    checks.push(clock::check(&options, token.as_ref().ok()));
    checks.push(token::check(&options, &token));
    checks.extend(istiod::checks(&options, limit).await);
    checks.extend(proxy::checks(&options, limit).await);
    checks
}

/// `12 s`, `20 min`, `3 h`.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests;
