//! Exit codes, one enum per program.

/// Exit codes of `pilot-agent` (spec agent.md 1.1, 10.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AgentExit {
    /// Done.
    Success = 0,
    /// The proxy ended by itself or could not be started: the container is restarted by `restartPolicy: OnFailure`.
    ProxyFailed = 1,
    /// Validation of the redirect rules failed.
    ValidationFailed = 126,
    /// Any returned error: flags, configuration, start-up.
    Error = 255,
}

/// Exit codes of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ProxyExit {
    /// Ended by a signal or `/quitquitquit`.
    Success = 0,
    /// The configuration was refused, or a thread died.
    Failure = 1,
}

impl From<AgentExit> for std::process::ExitCode {
    fn from(code: AgentExit) -> Self {
        Self::from(code as u8)
    }
}

impl From<ProxyExit> for std::process::ExitCode {
    fn from(code: ProxyExit) -> Self {
        Self::from(code as u8)
    }
}
