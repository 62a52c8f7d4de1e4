//! Header changes of routes: removes first, then adds, per level, the most specific level first.

use std::sync::Arc;

use outrigger_config::route::{AppendAction, HeaderAdd, HeaderMutations};

use crate::access_log::{LogContext, Missing, render};
use crate::http::headers::Headers;
use crate::stream_info::StreamInfo;

/// Heads a formatter may read while request headers change.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// Request head as it is before this level.
    pub request: &'a Headers,
    /// Response head, empty while the request is on its way.
    pub response: &'a Headers,
}

fn change(target: &mut Headers, remove: &[Arc<str>], add: &[HeaderAdd], rendered: Vec<Vec<u8>>) {
    for name in remove {
        target.remove(name.as_bytes());
    }
    for (add, value) in add.iter().zip(rendered) {
        if value.is_empty() && !add.keep_empty_value {
            continue;
        }
        let name = add.name.as_bytes();
        match add.action {
            AppendAction::AppendIfExistsOrAdd => target.append(name, &value),
            AppendAction::AddIfAbsent => target.set_if_absent(name, &value),
            AppendAction::OverwriteIfExistsOrAdd => target.set(name, &value),
            AppendAction::OverwriteIfExists => {
                if target.contains(name) {
                    target.set(name, &value);
                }
            }
        }
    }
}

fn values(add: &[HeaderAdd], heads: Heads<'_>) -> Vec<Vec<u8>> {
    let empty = Headers::new();
    let context = LogContext {
        info: heads.info,
        request: heads.request,
        response: heads.response,
        trailers: &empty,
    };
    add.iter()
        .map(|a| {
            let mut out = Vec::new();
            render(&a.value, &context, &mut out, Missing::Empty);
            out
        })
        .collect()
}

/// Changes a request by the levels given, most specific first.
pub fn request(headers: &mut Headers, levels: &[&HeaderMutations], info: &StreamInfo) {
    let empty = Headers::new();
    for level in levels {
        if level.request_add.is_empty() && level.request_remove.is_empty() {
            continue;
        }
        let rendered = values(
            &level.request_add,
            Heads {
                info,
                request: headers,
                response: &empty,
            },
        );
        change(headers, &level.request_remove, &level.request_add, rendered);
    }
}

/// Changes a response by the levels given, most specific first.
pub fn response(
    headers: &mut Headers,
    levels: &[&HeaderMutations],
    info: &StreamInfo,
    request: &Headers,
) {
    for level in levels {
        if level.response_add.is_empty() && level.response_remove.is_empty() {
            continue;
        }
        let rendered = values(
            &level.response_add,
            Heads {
                info,
                request,
                response: headers,
            },
        );
        change(
            headers,
            &level.response_remove,
            &level.response_add,
            rendered,
        );
    }
}
