//! Response flags: Envoy's names, in the order in which they are set.

use smallvec::SmallVec;

/// A response flag of Envoy's access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// No healthy upstream.
    NoHealthyUpstream,
    /// Upstream request timeout.
    UpstreamRequestTimeout,
    /// Local reset towards the upstream.
    LocalReset,
    /// Upstream remote reset.
    UpstreamRemoteReset,
    /// Upstream connection failure.
    UpstreamConnectionFailure,
    /// Upstream connection termination.
    UpstreamConnectionTermination,
    /// Circuit breaker overflow.
    UpstreamOverflow,
    /// No route or no filter chain.
    NoRouteFound,
    /// Delay injected.
    DelayInjected,
    /// Abort injected.
    FaultInjected,
    /// Downstream connection termination.
    DownstreamConnectionTermination,
    /// Retries or connect attempts exhausted.
    UpstreamRetryLimitExceeded,
    /// Stream idle timeout.
    StreamIdleTimeout,
    /// Downstream protocol error.
    DownstreamProtocolError,
    /// Upstream protocol error.
    UpstreamProtocolError,
    /// Upstream max stream duration reached.
    UpstreamMaxStreamDurationReached,
    /// Connection duration timeout.
    DurationTimeout,
    /// Cluster not found.
    NoClusterFound,
    /// Overload manager.
    OverloadManager,
    /// DNS resolution failed.
    DnsResolutionFailed,
    /// EDS drop_overload.
    DropOverload,
    /// Downstream remote reset.
    DownstreamRemoteReset,
}

impl Flag {
    /// Envoy's short name, as in `%RESPONSE_FLAGS%`.
    #[must_use]
    pub const fn short(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamRequestTimeout => "UT",
            Self::LocalReset => "LR",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::NoRouteFound => "NR",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::DownstreamConnectionTermination => "DC",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::StreamIdleTimeout => "SI",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamMaxStreamDurationReached => "UMSDR",
            Self::DurationTimeout => "DT",
            Self::NoClusterFound => "NC",
            Self::OverloadManager => "OM",
            Self::DnsResolutionFailed => "DF",
            Self::DropOverload => "DO",
            Self::DownstreamRemoteReset => "DR",
        }
    }

    /// Envoy's long name, as in `%RESPONSE_FLAGS_LONG%`.
    #[must_use]
    pub const fn long(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "NoHealthyUpstream",
            Self::UpstreamRequestTimeout => "UpstreamRequestTimeout",
            Self::LocalReset => "LocalReset",
            Self::UpstreamRemoteReset => "UpstreamRemoteReset",
            Self::UpstreamConnectionFailure => "UpstreamConnectionFailure",
            Self::UpstreamConnectionTermination => "UpstreamConnectionTermination",
            Self::UpstreamOverflow => "UpstreamOverflow",
            Self::NoRouteFound => "NoRouteFound",
            Self::DelayInjected => "DelayInjected",
            Self::FaultInjected => "FaultInjected",
            Self::DownstreamConnectionTermination => "DownstreamConnectionTermination",
            Self::UpstreamRetryLimitExceeded => "UpstreamRetryLimitExceeded",
            Self::StreamIdleTimeout => "StreamIdleTimeout",
            Self::DownstreamProtocolError => "DownstreamProtocolError",
            Self::UpstreamProtocolError => "UpstreamProtocolError",
            Self::UpstreamMaxStreamDurationReached => "UpstreamMaxStreamDurationReached",
            Self::DurationTimeout => "DurationTimeout",
            Self::NoClusterFound => "NoClusterFound",
            Self::OverloadManager => "OverloadManagerTerminated",
            Self::DnsResolutionFailed => "DnsResolutionFailed",
            Self::DropOverload => "DropOverLoad",
            Self::DownstreamRemoteReset => "DownstreamRemoteReset",
        }
    }
}

/// Flags of one stream or connection, in the order in which they were set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags(SmallVec<[Flag; 4]>);

impl Flags {
    /// Adds a flag once.
    pub fn set(&mut self, flag: Flag) {
        if !self.0.contains(&flag) {
            self.0.push(flag);
        }
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn contains(&self, flag: Flag) -> bool {
        self.0.contains(&flag)
    }

    /// In the order set.
    pub fn iter(&self) -> impl Iterator<Item = Flag> + '_ {
        self.0.iter().copied()
    }

    /// No flag is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
