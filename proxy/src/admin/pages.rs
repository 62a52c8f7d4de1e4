//! Pages that need no more than a few lines each.

use serde_json::{Map, Value, json};

use super::server::{JSON, Request, Response};
use crate::control::lifecycle::State;
use crate::server::options::LOGGERS;
use crate::server::{Process, VERSION, process as system};

/// `/ready`.
pub(super) fn ready(process: &Process) -> Response {
    let state = process.engine.borrow().state();
    let status = if state == State::Live { 200 } else { 503 };
    Response {
        status,
        ..Response::text(format!("{}\n", state.name()))
    }
}

/// `/memory`.
pub(super) fn memory() -> Response {
    let memory = system::memory();
    let text = |n: u64| Value::from(n.to_string());
    Response::json(&json!({
        "allocated": text(memory.data),
        "heap_size": text(memory.data),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": text(memory.resident),
    }))
}

/// `/logging`.
pub(super) fn logging(process: &Process, request: &Request) -> Response {
    const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
        usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
        usage: /logging?level=<level> (change all levels)\n\
        levels: trace debug info warning error critical off \n";
    let levels = &process.levels;
    let done = match request.query.as_slice() {
        [] => true,
        [(key, value)] => match key.as_str() {
            "level" => value.is_empty() || levels.set_all(value),
            "paths" | "group" => {
                let pairs: Option<Vec<_>> = value.split(',').map(|p| p.split_once(':')).collect();
                pairs.is_some_and(|pairs| {
                    pairs.iter().all(|(logger, _)| LOGGERS.contains(logger))
                        && pairs
                            .iter()
                            .all(|(logger, level)| levels.set(logger, level))
                })
            }
            logger => levels.set(logger, value),
        },
        _ => false,
    };
    if done {
        Response::text(levels.page())
    } else {
        Response::error(400, USAGE)
    }
}

/// `/runtime_modify`.
pub(super) fn runtime_modify(process: &Process, request: &Request) -> Response {
    if request.query.is_empty() {
        let usage = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n\
            use an empty value to remove a previously added override";
        return Response::error(400, usage);
    }
    let mut runtime = process.runtime.borrow_mut();
    for (key, value) in &request.query {
        runtime.modify(key, value);
    }
    Response::text("OK\n")
}

/// `/drain_listeners`.
pub(super) fn drain_listeners(process: &Process, request: &Request) -> Response {
    let (graceful, skip_exit) = (request.has("graceful"), request.has("skip_exit"));
    if skip_exit && !graceful {
        return Response::error(400, "skip_exit requires graceful\n");
    }
    process
        .listeners
        .borrow_mut()
        .drain_all(request.has("inboundonly"), graceful, skip_exit);
    Response::text("OK\n")
}

/// `/healthcheck/fail` and `/healthcheck/ok`.
pub(super) fn healthcheck(process: &Process, fail: bool) -> Response {
    process.engine.borrow_mut().set_draining(fail);
    Response::text("OK\n")
}

/// `/quitquitquit`.
pub(super) fn quit(process: &Process) -> Response {
    process.quit.notify_one();
    Response {
        close: true,
        ..Response::text("OK\n")
    }
}

/// `/init_dump`.
pub(super) fn init_dump(process: &Process) -> Response {
    let unready = process.engine.borrow().unready();
    if unready.is_empty() {
        return Response::json(&json!({}));
    }
    let dumps: Vec<_> = unready
        .into_iter()
        .map(|(name, targets)| json!({"name": name, "target_names": targets}))
        .collect();
    Response::json(&json!({"unready_targets_dumps": dumps}))
}

/// `/outrigger/ignored`.
pub(super) fn ignored(process: &Process) -> Response {
    let engine = process.engine.borrow();
    let mut page = Map::new();
    for (resource, list) in &engine.registry.ignored {
        let entries: Vec<_> = list
            .iter()
            .map(|i| json!({"path": i.path, "name": i.name, "reason": i.reason}))
            .collect();
        page.insert(resource.clone(), Value::Array(entries));
    }
    Response {
        content_type: JSON,
        ..Response::json(&Value::Object(page))
    }
}

/// `/server_info`.
pub(super) fn server_info(process: &Process) -> Response {
    let uptime = format!("{}s", process.started.elapsed().as_secs());
    let mut info = Map::new();
    info.insert("version".into(), VERSION.into());
    info.insert(
        "state".into(),
        process.engine.borrow().state().name().into(),
    );
    info.insert("uptime_current_epoch".into(), uptime.clone().into());
    info.insert("uptime_all_epochs".into(), uptime.into());
    info.insert("hot_restart_version".into(), "disabled".into());
    info.insert("command_line_options".into(), command_line(process));
    info.insert("node".into(), super::config_dump::node(process));
    Response::json(&Value::Object(info))
}

fn command_line(process: &Process) -> Value {
    let o = &process.options;
    let path = o
        .config_path
        .as_ref()
        .map_or_else(String::new, |p| p.display().to_string());
    let components: Vec<_> = o
        .component_log_level
        .iter()
        .map(|(logger, level)| format!("{logger}:{level}"))
        .collect();
    let number = |name: &str, default: &str| o.last(name, default).parse::<u64>().unwrap_or(0);
    let shutdown = number("parent-shutdown-time-s", "900");
    json!({
        "base_id": o.last("base-id", "0"),
        "concurrency": process.concurrency,
        "config_path": path,
        "config_yaml": o.config_yaml.as_deref().unwrap_or(""),
        "allow_unknown_static_fields": o.allow_unknown_static_fields,
        "admin_address_path": o.last("admin-address-path", ""),
        "local_address_ip_version": if o.local_address_v6 { "v6" } else { "v4" },
        "log_level": o.log_level,
        "component_log_level": components.join(","),
        "log_format": o.last("log-format", crate::server::log::DEFAULT_FORMAT),
        "log_path": o.last("log-path", ""),
        "service_cluster": o.service_cluster,
        "service_node": o.service_node,
        "service_zone": o.service_zone,
        "file_flush_interval": seconds(o.file_flush_interval),
        "drain_time": seconds(o.drain_time),
        "parent_shutdown_time": format!("{shutdown}s"),
        "mode": "Serve",
        "disable_hot_restart": o.has("disable-hot-restart"),
        "enable_mutex_tracing": o.has("enable-mutex-tracing"),
        "restart_epoch": number("restart-epoch", "0"),
        "cpuset_threads": o.has("cpuset-threads"),
        "reject_unknown_dynamic_fields": o.reject_unknown_dynamic_fields,
        "log_format_escaped": o.has("log-format-escaped"),
        "disabled_extensions": [],
        "ignore_unknown_dynamic_fields": o.has("ignore-unknown-dynamic-fields"),
        "use_dynamic_base_id": o.has("use-dynamic-base-id"),
        "base_id_path": o.last("base-id-path", ""),
        "drain_strategy": if o.drain_immediate { "Immediate" } else { "Gradual" },
        "enable_fine_grain_logging": o.has("enable-fine-grain-logging"),
        "socket_path": o.last("socket-path", "@envoy_domain_socket"),
        "socket_mode": number("socket-mode", "0"),
        "enable_core_dump": o.enable_core_dump,
        "stats_tag": [],
        "skip_hot_restart_on_no_parent": o.has("skip-hot-restart-on-no-parent"),
        "skip_hot_restart_parent_stats": o.has("skip-hot-restart-parent-stats"),
        "skip_deprecated_logs": o.has("skip-deprecated-logs"),
        "file_flush_min_size": number("file-flush-min-size-kb", "0"),
        "log_stacktrace_single_entry": o.has("log-stacktrace-single-entry"),
    })
}

/// A duration as protobuf JSON has it.
fn seconds(d: std::time::Duration) -> String {
    match d.subsec_millis() {
        0 => format!("{}s", d.as_secs()),
        ms => format!("{}.{ms:03}s", d.as_secs()),
    }
}
