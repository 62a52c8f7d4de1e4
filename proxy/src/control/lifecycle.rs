//! How far the process has come: what `/ready`, `/server_info` and `server.state` say.

/// `envoy.admin.v3.ServerInfo.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Serving.
    Live,
    /// Asked to leave.
    Draining,
    /// Waiting for clusters.
    #[default]
    PreInitializing,
    /// Waiting for listeners.
    Initializing,
}

impl State {
    /// Name in JSON and on `/ready`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// Value of `server.state`.
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::PreInitializing => 2,
            Self::Initializing => 3,
        }
    }
}
