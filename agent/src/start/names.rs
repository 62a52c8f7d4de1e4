//! The DNS server from the agent's settings, and the name tables it is given.

use std::sync::Arc;

use bootstrap_templates::NodeInputs;
use tokio::sync::watch;

use super::StartError;
use crate::dns::{self, DnsConfig, DnsServer, Scope, Table, UpstreamConfig};
use crate::metrics::Metrics;
use crate::options::DnsOptions;
use crate::resolver::ResolvConf;
use crate::xds_proxy::NameTable;

/// A running DNS server without a table yet.
pub(super) struct Names {
    server: DnsServer,
    scope: Scope,
}

impl Names {
    /// Reads resolv.conf, binds and starts.
    pub(super) async fn start(
        options: &DnsOptions,
        node: &NodeInputs,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let path = &options.resolv_conf;
        let text = std::fs::read_to_string(path).map_err(|source| StartError::ResolvConf {
            path: path.display().to_string(),
            source,
        })?;
        let ResolvConf {
            servers, search, ..
        } = ResolvConf::parse(&text);
        if servers.is_empty() {
            tracing::warn!(target: "dns", "{} names no server", path.display());
        }
        let search = search.first().map(String::as_str);
        let scope = Scope::new(&node.namespace, &node.domain, search);
        let server = DnsServer::start(DnsConfig {
            addresses: dns::addresses(&options.address, &servers).await?,
            upstream: UpstreamConfig {
                servers,
                parallel: options.parallel,
                timeout: options.timeout,
            },
            forward_before_sync: options.forward_before_sync,
        })?;
        let counters = server.metrics();
        metrics.add_source(move |page| counters.render(page));
        Ok(Self { server, scope })
    }

    /// Gives every table to the server. One that cannot be used leaves the last one in force, and
    /// so does an istiod that is gone. Never ends: the server runs as long as the services.
    pub(super) async fn follow(self, mut tables: watch::Receiver<Option<Arc<NameTable>>>) {
        loop {
            let names = tables.borrow_and_update().clone();
            if let Some(names) = names {
                let scope = self.scope.clone();
                // A large table takes a while; the agent's other work goes on.
                let built = tokio::task::spawn_blocking(move || Table::build(&names, &scope)).await;
                match built {
                    Ok(Ok(table)) => {
                        tracing::debug!(target: "dns", "{} names", table.len());
                        self.server.publish(table);
                    }
                    Ok(Err(e)) => tracing::error!(target: "dns", "{e}; the last one is kept"),
                    Err(e) => tracing::error!(target: "dns", "name table not built: {e}"),
                }
            }
            if tables.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
