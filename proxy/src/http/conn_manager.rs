//! The HTTP connection manager: one instance per filter chain, serving each of its connections.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::HttpConnectionManager as Config;

use crate::control::store::Store;
use crate::io::stream::Stream;
use crate::listener::drain::Drain;
use crate::stream_info::ConnectionInfo;
use crate::worker::Worker;

/// Runtime form of an HttpConnectionManager.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// The validated configuration.
    pub config: Arc<Config>,
}

impl HttpConnectionManager {
    /// Compiles a configuration.
    #[must_use]
    pub fn build(config: Arc<Config>, _store: &Arc<Store>) -> Arc<Self> {
        Arc::new(Self { config })
    }

    /// Serves one connection until it ends. `stream` is past TLS; bytes read by inspectors are replayed by it.
    pub async fn serve(
        self: Arc<Self>,
        _stream: Stream,
        _connection: Rc<ConnectionInfo>,
        _worker: Rc<Worker>,
        _drain: Drain,
    ) {
    }
}
