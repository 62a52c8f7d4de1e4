//! Access loggers, their filters, and substitution format strings.

use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::config::accesslog::v3 as al;
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::access_loggers::file::v3 as file;
use pb::envoy::extensions::access_loggers::stream::v3 as stream;
use pb::google::protobuf as gp;

use super::wkt::{enum_of, extension, ignore_runtime_key, inline_data, non_empty, unregistered};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, matcher};
use crate::access_log::{AccessLog, Comparison, ComparisonOp, Filter, LogFormat, Sink};
use crate::format::{Format, JsonFormat};

/// Envoy's format for loggers that name none.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% \
    %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Every flag that `response_flag_filter` may name.
const RESPONSE_FLAGS: &[&str] = &[
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UPE", "UMSDR", "RFCF", "NFCF", "DT", "NC", "OM", "DF", "DO", "DR",
    "UDO",
];

/// Loggers that export records over the network. They are not run.
const EXPORTING: &[&str] = &[
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
];

/// A list of loggers; those that only export are skipped.
pub(super) fn access_logs(cx: &mut Cx, logs: Vec<al::AccessLog>) -> Result<Vec<AccessLog>> {
    let parsed = cx.each("access_log", logs, access_log)?;
    Ok(parsed.into_iter().flatten().collect())
}

fn access_log(cx: &mut Cx, value: al::AccessLog) -> Result<Option<AccessLog>> {
    let al::AccessLog {
        name,
        filter,
        config_type,
    } = value;
    let any = config_type.map(|al::access_log::ConfigType::TypedConfig(any)| any);
    let ext = cx.field("typed_config", |cx| extension(cx, &name, any))?;
    let filter = cx.opt("filter", filter, log_filter)?;
    let (sink, format) = cx
        .field("typed_config", |cx| match ext.type_name.as_str() {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let message = ext.decode(cx)?;
                file_log(cx, message).map(Some)
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let stream::StdoutAccessLog { access_log_format } = ext.decode(cx)?;
                let format = access_log_format
                    .map(|stream::stdout_access_log::AccessLogFormat::LogFormat(f)| f);
                Ok(Some((Sink::Stdout, stream_format(cx, format)?)))
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let stream::StderrAccessLog { access_log_format } = ext.decode(cx)?;
                let format = access_log_format
                    .map(|stream::stderr_access_log::AccessLogFormat::LogFormat(f)| f);
                Ok(Some((Sink::Stderr, stream_format(cx, format)?)))
            }
            t if EXPORTING.contains(&t) => {
                cx.ignore_here(&name, TELEMETRY);
                Ok(None)
            }
            t => Err(unregistered(cx, &name, t)),
        })?
        .unzip();
    Ok(sink.zip(format).map(|(sink, format)| AccessLog {
        sink,
        format,
        filter,
    }))
}

fn file_log(cx: &mut Cx, value: file::FileAccessLog) -> Result<(Sink, LogFormat)> {
    use file::file_access_log::AccessLogFormat as F;
    let file::FileAccessLog {
        path,
        access_log_format,
    } = value;
    let format = match access_log_format {
        None => text(cx, DEFAULT_FORMAT, false)?,
        Some(F::Format(f)) => cx.field("format", |cx| text(cx, &f, false))?,
        Some(F::JsonFormat(s)) => cx.field("json_format", |cx| json(cx, s, false))?,
        Some(F::TypedJsonFormat(s)) => cx.field("typed_json_format", |cx| json(cx, s, false))?,
        Some(F::LogFormat(f)) => cx.field("log_format", |cx| substitution_format(cx, f))?,
    };
    Ok((Sink::File(non_empty(cx, "path", path)?), format))
}

fn stream_format(cx: &mut Cx, format: Option<core::SubstitutionFormatString>) -> Result<LogFormat> {
    match format {
        None => text(cx, DEFAULT_FORMAT, false),
        Some(f) => cx.field("log_format", |cx| substitution_format(cx, f)),
    }
}

/// `SubstitutionFormatString`.
fn substitution_format(cx: &mut Cx, value: core::SubstitutionFormatString) -> Result<LogFormat> {
    use core::substitution_format_string::Format as F;
    let core::SubstitutionFormatString {
        omit_empty_values,
        content_type,
        formatters,
        json_format_options,
        format,
    } = value;
    // Only local replies have a content type; JSON keys are sorted always.
    let _ = content_type;
    if let Some(core::JsonFormatOptions { sort_properties }) = json_format_options {
        let _ = sort_properties;
    }
    for (i, core::TypedExtensionConfig { name, typed_config }) in formatters.into_iter().enumerate()
    {
        cx.item("formatters", i, |cx| {
            let ext = extension(cx, &name, typed_config)?;
            if ext.type_name != "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery" {
                cx.ignore_here(&name, "operators of this extension are refused where used");
            }
            Ok(())
        })?;
    }
    match format {
        Some(F::TextFormat(t)) => cx.field("text_format", |cx| text(cx, &t, omit_empty_values)),
        Some(F::JsonFormat(s)) => cx.field("json_format", |cx| json(cx, s, omit_empty_values)),
        Some(F::TextFormatSource(source)) => cx.field("text_format_source", |cx| {
            let bytes = inline_data(cx, source)?;
            let t = std::str::from_utf8(&bytes).map_err(|_| cx.err("format is not UTF-8"))?;
            text(cx, t, omit_empty_values)
        }),
        None => Err(cx.err("format: is required")),
    }
}

fn text(cx: &Cx, format: &str, omit_empty: bool) -> Result<LogFormat> {
    Format::parse(format, omit_empty)
        .map(|f| LogFormat::Text(Arc::new(f)))
        .map_err(|e| cx.err(e.to_string()))
}

fn json(cx: &Cx, format: gp::Struct, omit_empty: bool) -> Result<LogFormat> {
    let object = super::wkt::json_object(format);
    JsonFormat::parse(&object, omit_empty)
        .map(|f| LogFormat::Json(Arc::new(f)))
        .map_err(|e| cx.err(e.to_string()))
}

/// `AccessLogFilter`. A filter that cannot be run refuses the resource: lines that the operator did not ask for
/// may hold what must not be logged.
fn log_filter(cx: &mut Cx, value: al::AccessLogFilter) -> Result<Filter> {
    use al::access_log_filter::FilterSpecifier as F;
    let al::AccessLogFilter { filter_specifier } = value;
    Ok(match filter_specifier {
        Some(F::StatusCodeFilter(al::StatusCodeFilter { comparison: c })) => {
            Filter::StatusCode(cx.field("status_code_filter", |cx| {
                cx.required("comparison", c, comparison)
            })?)
        }
        Some(F::DurationFilter(al::DurationFilter { comparison: c })) => {
            Filter::Duration(cx.field("duration_filter", |cx| {
                cx.required("comparison", c, comparison)
            })?)
        }
        Some(F::NotHealthCheckFilter(al::NotHealthCheckFilter {})) => Filter::NotHealthCheck,
        Some(F::AndFilter(al::AndFilter { filters })) => {
            Filter::And(cx.field("and_filter", |cx| branches(cx, filters))?)
        }
        Some(F::OrFilter(al::OrFilter { filters })) => {
            Filter::Or(cx.field("or_filter", |cx| branches(cx, filters))?)
        }
        Some(F::HeaderFilter(al::HeaderFilter { header })) => {
            Filter::Header(cx.field("header_filter", |cx| {
                cx.required("header", header, matcher::header)
            })?)
        }
        Some(F::ResponseFlagFilter(al::ResponseFlagFilter { flags })) => {
            Filter::ResponseFlag(cx.field("response_flag_filter", |cx| response_flags(cx, flags))?)
        }
        Some(F::TraceableFilter(_)) => return Err(cx.err_at("traceable_filter", UNSUPPORTED)),
        Some(F::RuntimeFilter(_)) => return Err(cx.err_at("runtime_filter", UNSUPPORTED)),
        Some(F::GrpcStatusFilter(_)) => return Err(cx.err_at("grpc_status_filter", UNSUPPORTED)),
        Some(F::ExtensionFilter(al::ExtensionFilter { name, config_type })) => {
            let any = config_type.map(|al::extension_filter::ConfigType::TypedConfig(any)| any);
            return Err(
                cx.field("extension_filter", |cx| match extension(cx, &name, any) {
                    Ok(ext) => unregistered(cx, &name, &ext.type_name),
                    Err(e) => e,
                }),
            );
        }
        Some(F::MetadataFilter(_)) => return Err(cx.err_at("metadata_filter", UNSUPPORTED)),
        Some(F::LogTypeFilter(_)) => return Err(cx.err_at("log_type_filter", UNSUPPORTED)),
        None => return Err(cx.err("filter_specifier: is required")),
    })
}

fn branches(cx: &mut Cx, filters: Vec<al::AccessLogFilter>) -> Result<Vec<Filter>> {
    if filters.len() < 2 {
        return Err(cx.err_at("filters", "value must contain at least 2 item(s)"));
    }
    cx.each("filters", filters, log_filter)
}

fn response_flags(cx: &Cx, flags: Vec<String>) -> Result<Vec<Arc<str>>> {
    flags
        .into_iter()
        .map(|f| {
            if RESPONSE_FLAGS.contains(&f.as_str()) {
                Ok(f.into())
            } else {
                Err(cx.err_at("flags", format!("unknown response flag '{f}'")))
            }
        })
        .collect()
}

fn comparison(cx: &mut Cx, value: al::ComparisonFilter) -> Result<Comparison> {
    use al::comparison_filter::Op;
    let al::ComparisonFilter { op, value } = value;
    let op = match enum_of::<Op>(cx, "op", op)? {
        Op::Eq => ComparisonOp::Eq,
        Op::Ge => ComparisonOp::Ge,
        Op::Le => ComparisonOp::Le,
        Op::Ne => ComparisonOp::Ne,
    };
    let value = cx.required("value", value, |cx, v| {
        let core::RuntimeUInt32 {
            default_value,
            runtime_key,
        } = v;
        ignore_runtime_key(cx, &runtime_key);
        Ok(default_value)
    })?;
    Ok(Comparison { op, value })
}
