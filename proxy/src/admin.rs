//! Admin interface: the pages of Envoy's admin port that istioctl, pilot-agent, dashboards and people read.
//! Runs on the control thread. Private keys never get here.

use std::rc::Rc;

use tokio::net::TcpListener;

use crate::server::Process;
use crate::stats::page::Query;

pub mod certs;
pub mod clusters;
pub mod config_dump;
pub mod help;
pub mod json;
pub mod listeners;
pub mod pages;
pub mod redact;
pub mod server;

use server::{Request, Response};

/// Binds the bootstrap's admin address and serves it. Nothing happens without an address.
///
/// # Errors
/// When the address cannot be bound or `--admin-address-path` cannot be written.
pub async fn start(process: &Rc<Process>) -> Result<(), String> {
    let Some(address) = process.bootstrap.admin else {
        return Ok(());
    };
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| format!("admin.address: cannot bind '{address}': {e}"))?;
    if let Some(path) = &process.options.admin_address_path {
        let bound = listener.local_addr().map_err(|e| e.to_string())?;
        std::fs::write(path, bound.to_string())
            .map_err(|e| format!("cannot write admin address to {}: {e}", path.display()))?;
    }
    let weak = Rc::downgrade(process);
    let handle = move |request: &Request| match weak.upgrade() {
        Some(process) => handle(&process, request),
        None => Response::error(503, "shutting down"),
    };
    tokio::task::spawn_local(server::serve(listener, Rc::new(handle)));
    Ok(())
}

/// Answers one request.
#[must_use]
pub fn handle(process: &Process, request: &Request) -> Response {
    let path = request.path.as_str();
    let Some(command) = help::COMMANDS.iter().find(|c| c.path == path) else {
        let body = format!("invalid path. {}", help::text());
        return Response::error(404, body);
    };
    if command.mutates && request.method != "POST" {
        let body = format!("Method {} not allowed, POST required.", request.method);
        return Response::error(405, body);
    }
    match path {
        "/" => help::home(),
        "/help" => Response::text(help::text()),
        "/ready" => pages::ready(process),
        "/server_info" => pages::server_info(process),
        "/config_dump" => config_dump::page(process, request),
        "/clusters" => clusters::page(process, request),
        "/listeners" => listeners::page(process, request),
        "/certs" => certs::page(process),
        "/logging" => pages::logging(process, request),
        "/stats" => stats(process, request),
        "/stats/prometheus" => prometheus(process, request),
        "/memory" => pages::memory(),
        "/runtime" => Response::json(&process.runtime.borrow().page()),
        "/runtime_modify" => pages::runtime_modify(process, request),
        "/drain_listeners" => pages::drain_listeners(process, request),
        "/healthcheck/fail" => pages::healthcheck(process, true),
        "/healthcheck/ok" => pages::healthcheck(process, false),
        "/quitquitquit" => pages::quit(process),
        "/reset_counters" => {
            process.store.stats.reset_counters();
            Response::text("OK\n")
        }
        "/reopen_logs" => {
            process.store.logs.reopen();
            Response::text("OK\n")
        }
        "/init_dump" => pages::init_dump(process),
        "/hot_restart_version" => Response::text("disabled"),
        "/contention" => Response::text(
            "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.",
        ),
        "/stats/recentlookups" => Response::text("Lookup tracking is not enabled.\n\ntotal: 0\n"),
        "/outrigger/ignored" => pages::ignored(process),
        _ => Response::error(501, "not supported by this proxy\n"),
    }
}

fn stats(process: &Process, request: &Request) -> Response {
    if request.parameter("format") == Some("prometheus") {
        return prometheus(process, request);
    }
    match Query::parse(&request.query) {
        Err(text) => Response::error(400, text),
        Ok(query) if query.json => Response {
            content_type: server::JSON,
            ..Response::text(crate::stats::page::json(&process.store.stats, &query))
        },
        Ok(query) => Response::text(crate::stats::page::text(&process.store.stats, &query)),
    }
}

fn prometheus(process: &Process, request: &Request) -> Response {
    match Query::parse(&request.query) {
        Err(text) => Response::error(400, text),
        Ok(query) => Response::text(crate::stats::prometheus::render(
            &process.store.stats,
            &query,
        )),
    }
}
