//! Supervisor of the proxy: xDS proxy, SDS, CA client, status.
