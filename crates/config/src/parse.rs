//! Wire bytes to the model. Every protobuf message is taken apart without `..`, so a field that a newer API
//! adds does not compile until somebody says whether it is supported, ignored or refused.
//! Nothing here does IO, and no input makes it panic.
#![allow(
    deprecated,
    reason = "deprecated fields of the API are part of the inventory: they are read, ignored or refused"
)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use envoy_types::pb;
use prost::Message;

use crate::bootstrap::Bootstrap;
use crate::cluster::{Cluster, LoadAssignment};
use crate::error::{ConfigError, Ignored, Parsed};
use crate::listener::{FilterChainTable, Listener};
use crate::matcher::CompiledRegex;
use crate::route::RouteConfiguration;
use crate::tls::Secret;

mod access_log;
mod bootstrap;
mod cluster;
mod cluster_limits;
mod endpoint;
mod http;
mod http_filter;
mod lb;
mod listener;
mod matcher;
mod network_filter;
mod protocol;
mod retry;
mod route;
mod route_action;
mod tls;
mod upstream_http;
mod wkt;

/// Result of every parse step.
type Result<T> = std::result::Result<T, ConfigError>;

/// Reason of a refusal where Envoy would act upon the field and this proxy does not.
const UNSUPPORTED: &str = "not supported by this proxy";
/// Reason for skipping what only feeds metrics, spans or exported records.
const TELEMETRY: &str = "telemetry only: changes no answer";
/// Reason for skipping metadata.
const METADATA: &str = "metadata is read only by filters that this proxy does not have";

/// Parses `envoy.config.cluster.v3.Cluster`.
///
/// # Errors
/// Bytes that are not the message, values out of range, and fields that cannot be acted upon.
pub fn parse_cluster(bytes: &[u8]) -> Result<Parsed<Cluster>> {
    parse(bytes, |cx, m: pb::envoy::config::cluster::v3::Cluster| {
        cluster::cluster(cx, m)
    })
}

/// Parses `envoy.config.endpoint.v3.ClusterLoadAssignment` of EDS.
///
/// # Errors
/// As [`parse_cluster`]; addresses must be literal.
pub fn parse_load_assignment(bytes: &[u8]) -> Result<Parsed<LoadAssignment>> {
    parse(
        bytes,
        |cx, m: pb::envoy::config::endpoint::v3::ClusterLoadAssignment| {
            endpoint::load_assignment(cx, m, endpoint::Names::Literal)
        },
    )
}

/// Parses `envoy.config.listener.v3.Listener`.
///
/// # Errors
/// As [`parse_cluster`]; every filter must be one that this proxy runs or may skip without changing an answer.
pub fn parse_listener(bytes: &[u8]) -> Result<Parsed<Listener>> {
    parse(bytes, |cx, m: pb::envoy::config::listener::v3::Listener| {
        let value = listener::listener(cx, m)?;
        FilterChainTable::build(&value)?;
        Ok(value)
    })
}

/// Parses `envoy.config.route.v3.RouteConfiguration`.
///
/// # Errors
/// As [`parse_cluster`].
pub fn parse_route_configuration(bytes: &[u8]) -> Result<Parsed<RouteConfiguration>> {
    parse(
        bytes,
        |cx, m: pb::envoy::config::route::v3::RouteConfiguration| route::route_configuration(cx, m),
    )
}

/// Parses `envoy.extensions.transport_sockets.tls.v3.Secret`.
///
/// # Errors
/// As [`parse_cluster`]. The PEM text is not looked at here.
pub fn parse_secret(bytes: &[u8]) -> Result<Parsed<Secret>> {
    parse(
        bytes,
        |cx, m: pb::envoy::extensions::transport_sockets::tls::v3::Secret| tls::secret(cx, m),
    )
}

/// Parses `envoy.config.bootstrap.v3.Bootstrap` from wire bytes.
///
/// # Errors
/// As [`parse_cluster`]; static clusters, listeners and secrets obey the rules of the dynamic ones.
pub fn parse_bootstrap(bytes: &[u8]) -> Result<Parsed<Bootstrap>> {
    parse(
        bytes,
        |cx, m: pb::envoy::config::bootstrap::v3::Bootstrap| {
            cx.in_bootstrap = true;
            bootstrap::bootstrap(cx, m, bytes)
        },
    )
}

/// Decodes `bytes` and runs `f` on the message.
fn parse<M: Message + Default, T>(
    bytes: &[u8],
    f: impl FnOnce(&mut Cx, M) -> Result<T>,
) -> Result<Parsed<T>> {
    let mut cx = Cx::default();
    let message = M::decode(bytes).map_err(|e| cx.err(format!("unable to parse: {e}")))?;
    let value = f(&mut cx, message)?;
    Ok(Parsed {
        value,
        ignored: cx.ignored,
    })
}

/// Where the parser is, and what it skipped so far.
#[derive(Default)]
struct Cx {
    path: String,
    ignored: Vec<Ignored>,
    regexes: HashMap<String, Arc<CompiledRegex>>,
    /// Static resources may carry compressors: the agent's template puts them on its own stats page.
    in_bootstrap: bool,
    /// `max_direct_response_body_size_bytes` of the route configuration being read.
    direct_response_limit: usize,
}

impl Cx {
    /// Runs `f` one field deeper.
    fn field<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let out = f(self);
        self.path.truncate(len);
        out
    }

    /// Runs `f` inside element `index` of a repeated field.
    fn item<R>(&mut self, name: &str, index: usize, f: impl FnOnce(&mut Self) -> R) -> R {
        self.indexed(name, &index, f)
    }

    /// Runs `f` inside an entry of a map field.
    fn entry<R>(&mut self, name: &str, key: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        self.indexed(name, &format_args!("{key:?}"), f)
    }

    fn indexed<R>(
        &mut self,
        name: &str,
        index: &dyn std::fmt::Display,
        f: impl FnOnce(&mut Self) -> R,
    ) -> R {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        // Writing to a String cannot fail.
        let _ = write!(self.path, "{name}[{index}]");
        let out = f(self);
        self.path.truncate(len);
        out
    }

    /// Parses every element of a repeated field. Not by `collect`: it would keep the model's values in the
    /// allocation of the far larger messages.
    fn each<T, R>(
        &mut self,
        name: &str,
        items: Vec<T>,
        mut f: impl FnMut(&mut Self, T) -> Result<R>,
    ) -> Result<Vec<R>> {
        let mut parsed = Vec::with_capacity(items.len());
        for (i, item) in items.into_iter().enumerate() {
            parsed.push(self.item(name, i, |cx| f(cx, item))?);
        }
        Ok(parsed)
    }

    /// Parses an optional message.
    fn opt<T, R>(
        &mut self,
        name: &str,
        value: Option<T>,
        f: impl FnOnce(&mut Self, T) -> Result<R>,
    ) -> Result<Option<R>> {
        value.map(|v| self.field(name, |cx| f(cx, v))).transpose()
    }

    /// Parses a message that must be there.
    fn required<T, R>(
        &mut self,
        name: &str,
        value: Option<T>,
        f: impl FnOnce(&mut Self, T) -> Result<R>,
    ) -> Result<R> {
        match value {
            Some(v) => self.field(name, |cx| f(cx, v)),
            None => Err(self.err_at(name, "value is required")),
        }
    }

    fn err(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn err_at(&self, field: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError {
            path: self.path_to(field),
            reason: reason.into(),
        }
    }

    fn path_to(&self, field: &str) -> String {
        if field.is_empty() {
            self.path.clone()
        } else if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    /// Refuses `field` when it carries something.
    fn refuse_if(&self, set: bool, field: &str) -> Result<()> {
        if set {
            Err(self.err_at(field, UNSUPPORTED))
        } else {
            Ok(())
        }
    }

    /// Notes that `field` is skipped. One entry per name and reason and resource: the first place stands for
    /// all, so that ten thousand routes do not make ten thousand entries.
    fn ignore(&mut self, field: &str, name: &str, reason: &'static str) {
        if !self
            .ignored
            .iter()
            .any(|i| i.name == name && i.reason == reason)
        {
            let path = self.path_to(field);
            self.ignored.push(Ignored {
                path,
                name: name.to_owned(),
                reason,
            });
        }
    }

    /// Notes that the current message is skipped.
    fn ignore_here(&mut self, name: &str, reason: &'static str) {
        if !self
            .ignored
            .iter()
            .any(|i| i.name == name && i.reason == reason)
        {
            self.ignored.push(Ignored {
                path: self.path.clone(),
                name: name.to_owned(),
                reason,
            });
        }
    }
}

/// Whether a protobuf field carries more than its default.
trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u64 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

/// Refuses each named local when it is set.
macro_rules! refuse_set {
    ($cx:expr; $($field:ident),+ $(,)?) => {
        $($cx.refuse_if($crate::parse::IsSet::is_set(&$field), stringify!($field))?;)+
    };
}

/// Notes each named local as skipped when it is set.
macro_rules! ignore_set {
    ($cx:expr, $reason:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::parse::IsSet::is_set(&$field) {
            $cx.ignore(stringify!($field), stringify!($field), $reason);
        })+
    };
}

use {ignore_set, refuse_set};
