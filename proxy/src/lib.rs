//! The data plane: an L4/L7 proxy driven by xDS, with Envoy's command line, logs, stats and admin page.
//!
//! Map: `server` starts everything; `control` turns xDS into runtime objects; `listener` accepts and picks
//! filter chains; `http` and `tcp_proxy` serve connections; `upstream` balances, pools and connects; `tls`,
//! `io`, `memory`, `text`, `stats`, `access_log`, `admin` are what their names say.

pub mod access_log;
pub mod admin;
pub mod control;
pub mod error;
pub mod http;
pub mod io;
pub mod listener;
pub mod memory;
pub mod server;
pub mod stats;
pub mod stream_info;
pub mod tcp_proxy;
pub mod text;
pub mod tls;
pub mod upstream;
pub mod worker;
