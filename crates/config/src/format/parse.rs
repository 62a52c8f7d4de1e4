//! Compiles command-operator strings.

use std::sync::Arc;

use super::{Format, HeaderOperand, JsonFormat, JsonValue, Operator as O, Segment, TimeFormat};

/// Why a format string was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` that starts no command.
    #[error(
        "Incorrect configuration: {format}. Couldn't find valid command at position {position}"
    )]
    NotACommand {
        /// The whole format.
        format: String,
        /// Byte offset of the `%`.
        position: usize,
    },
    /// Neither Envoy nor this proxy knows the operator, or only Envoy does.
    #[error("Not supported field in StreamInfo: {0}")]
    Unknown(String),
    /// The operator needs `(…)`.
    #[error("{0} requires parameters")]
    ParametersRequired(String),
    /// The operator takes neither `(…)` nor `:N`.
    #[error("{0} does not take any parameters or length")]
    CommandOnly(String),
    /// The operator takes no `:N`.
    #[error("{0} does not allow length to be specified.")]
    LengthNotAllowed(String),
    /// `:N` is out of range.
    #[error("Length must be an integer, given: {0}")]
    Length(String),
    /// More than one `?`, or an empty or malformed header name.
    #[error("Invalid header operand: {0}")]
    Header(String),
}

impl Format {
    /// Compiles `text`. `omit_empty` makes missing operands render as nothing instead of `-`.
    ///
    /// # Errors
    /// [`FormatError`], in Envoy's words where it has them.
    pub fn parse(text: &str, omit_empty: bool) -> Result<Self, FormatError> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(rest) = text.get(at..) {
            let Some(c) = rest.chars().next() else { break };
            if c != '%' {
                literal.push(c);
                at += c.len_utf8();
            } else if rest.starts_with("%%") {
                literal.push('%');
                at += 2;
            } else {
                let command = Command::read(rest).ok_or_else(|| FormatError::NotACommand {
                    format: text.to_owned(),
                    position: at,
                })?;
                at += command.len;
                if !literal.is_empty() {
                    segments.push(Segment::Literal(std::mem::take(&mut literal).into()));
                }
                segments.push(Segment::Operator(command.operator()?));
            }
        }
        if !literal.is_empty() {
            segments.push(Segment::Literal(literal.into()));
        }
        Ok(Self {
            segments,
            omit_empty_values: omit_empty,
        })
    }
}

impl JsonFormat {
    /// Compiles every string leaf of `object`. Keys come out sorted at every level.
    ///
    /// # Errors
    /// As [`Format::parse`].
    pub fn parse(
        object: &serde_json::Map<String, serde_json::Value>,
        omit_empty: bool,
    ) -> Result<Self, FormatError> {
        Ok(Self {
            fields: json_fields(object, omit_empty)?,
            omit_empty_values: omit_empty,
        })
    }
}

fn json_fields(
    object: &serde_json::Map<String, serde_json::Value>,
    omit_empty: bool,
) -> Result<Vec<(Arc<str>, JsonValue)>, FormatError> {
    let mut fields = object
        .iter()
        .map(|(k, v)| Ok((k.as_str().into(), json_value(v, omit_empty)?)))
        .collect::<Result<Vec<(Arc<str>, JsonValue)>, FormatError>>()?;
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(fields)
}

fn json_value(value: &serde_json::Value, omit_empty: bool) -> Result<JsonValue, FormatError> {
    use serde_json::Value as J;
    Ok(match value {
        J::String(s) => JsonValue::Format(Format::parse(s, omit_empty)?),
        J::Object(o) => JsonValue::Object(json_fields(o, omit_empty)?),
        J::Array(a) => JsonValue::Array(
            a.iter()
                .map(|v| json_value(v, omit_empty))
                .collect::<Result<_, _>>()?,
        ),
        J::Null | J::Bool(_) | J::Number(_) => JsonValue::Literal(value.to_string().into()),
    })
}

/// `%NAME(parameters):length%`.
struct Command<'a> {
    name: &'a str,
    parameters: Option<&'a str>,
    length: Option<&'a str>,
    /// Bytes from the first to the last `%`.
    len: usize,
}

impl<'a> Command<'a> {
    /// Reads the command at the start of `text`, which begins with `%`.
    fn read(text: &'a str) -> Option<Self> {
        let body = text.get(1..)?;
        let name_len = body
            .bytes()
            .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
            .count();
        let (name, rest) = body.split_at_checked(name_len)?;
        if name.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('(') {
            // The shortest parameters after which the command is complete.
            for (close, _) in inner.match_indices(')') {
                let after = inner.get(close + 1..)?;
                if let Some((length, tail)) = Self::tail(after) {
                    return Some(Self {
                        name,
                        parameters: inner.get(..close),
                        length,
                        len: 1 + name_len + 1 + close + 1 + tail,
                    });
                }
            }
        }
        let (length, tail) = Self::tail(rest)?;
        Some(Self {
            name,
            parameters: None,
            length,
            len: 1 + name_len + tail,
        })
    }

    /// Reads `[:digits]%`: the digits, and how many bytes it is.
    fn tail(text: &str) -> Option<(Option<&str>, usize)> {
        if text.starts_with('%') {
            return Some((None, 1));
        }
        let body = text.strip_prefix(':')?;
        let digits = body.bytes().take_while(u8::is_ascii_digit).count();
        let ends = body.as_bytes().get(digits) == Some(&b'%');
        (digits > 0 && ends).then(|| (body.get(..digits), digits + 2))
    }

    fn operator(&self) -> Result<O, FormatError> {
        if let Some(operator) = self.with_parameters()? {
            return Ok(operator);
        }
        let operator =
            plain(self.name).ok_or_else(|| FormatError::Unknown(self.name.to_owned()))?;
        if self.parameters.is_some() || self.length.is_some() {
            return Err(FormatError::CommandOnly(self.name.to_owned()));
        }
        Ok(operator)
    }

    /// The operators that take parameters.
    fn with_parameters(&self) -> Result<Option<O>, FormatError> {
        let operator = match self.name {
            "REQ" => O::Req(self.header()?),
            "RESP" => O::Resp(self.header()?),
            "TRAILER" => O::Trailer(self.header()?),
            "REQ_WITHOUT_QUERY" => O::ReqWithoutQuery(self.header()?),
            "START_TIME" => O::StartTime(self.time()?),
            "EMIT_TIME" => O::EmitTime(self.time()?),
            "ENVIRONMENT" => O::Environment(self.environment()?),
            "GRPC_STATUS" => match self.parameters.unwrap_or_default() {
                "" | "CAMEL_STRING" => O::GrpcStatus,
                "NUMBER" => O::GrpcStatusNumber,
                other => return Err(FormatError::Unknown(format!("GRPC_STATUS({other})"))),
            },
            _ => return Ok(None),
        };
        Ok(Some(operator))
    }

    fn max_length(&self) -> Result<Option<usize>, FormatError> {
        self.length
            .map(|l| l.parse().map_err(|_| FormatError::Length(l.to_owned())))
            .transpose()
    }

    fn header(&self) -> Result<HeaderOperand, FormatError> {
        let operand = self
            .parameters
            .ok_or_else(|| FormatError::ParametersRequired(self.name.to_owned()))?;
        let mut names = operand.split('?');
        let (Some(name), alternative, None) = (names.next(), names.next(), names.next()) else {
            return Err(FormatError::Header(operand.to_owned()));
        };
        let valid = |n: &str| n.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || !valid(name) || !alternative.is_none_or(valid) {
            return Err(FormatError::Header(operand.to_owned()));
        }
        Ok(HeaderOperand {
            name: name.to_ascii_lowercase().into(),
            alternative: alternative
                .filter(|a| !a.is_empty())
                .map(|a| a.to_ascii_lowercase().into()),
            max_length: self.max_length()?,
        })
    }

    fn time(&self) -> Result<TimeFormat, FormatError> {
        if self.length.is_some() {
            return Err(FormatError::LengthNotAllowed(self.name.to_owned()));
        }
        Ok(match self.parameters {
            None | Some("") => TimeFormat::Default,
            Some(f) => TimeFormat::Strftime(f.into()),
        })
    }

    fn environment(&self) -> Result<Option<Arc<str>>, FormatError> {
        let name = self
            .parameters
            .ok_or_else(|| FormatError::ParametersRequired(self.name.to_owned()))?;
        let max = self.max_length()?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Ok(None);
        }
        Ok(std::env::var(name).ok().map(|mut v| {
            if let Some(max) = max {
                let cut = (0..=max.min(v.len()))
                    .rev()
                    .find(|i| v.is_char_boundary(*i))
                    .unwrap_or(0);
                v.truncate(cut);
            }
            v.into()
        }))
    }
}

/// The operators without parameters.
fn plain(name: &str) -> Option<O> {
    Some(match name {
        "PROTOCOL" => O::Protocol,
        "UPSTREAM_PROTOCOL" => O::UpstreamProtocol,
        "RESPONSE_CODE" => O::ResponseCode,
        "RESPONSE_CODE_DETAILS" => O::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => O::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => O::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => O::ResponseFlagsLong,
        "BYTES_RECEIVED" => O::BytesReceived,
        "BYTES_SENT" => O::BytesSent,
        "DURATION" => O::Duration,
        "REQUEST_DURATION" => O::RequestDuration,
        "REQUEST_TX_DURATION" => O::RequestTxDuration,
        "RESPONSE_DURATION" => O::ResponseDuration,
        "RESPONSE_TX_DURATION" => O::ResponseTxDuration,
        "CONNECTION_ID" => O::ConnectionId,
        "REQUESTED_SERVER_NAME" => O::RequestedServerName,
        "ROUTE_NAME" => O::RouteName,
        "FILTER_CHAIN_NAME" => O::FilterChainName,
        "HOSTNAME" => O::Hostname,
        "GRPC_STATUS_NUMBER" => O::GrpcStatusNumber,
        "STREAM_ID" => O::StreamId,
        _ => return upstream(name).or_else(|| downstream(name)),
    })
}

fn upstream(name: &str) -> Option<O> {
    Some(match name {
        "UPSTREAM_HOST" => O::UpstreamHost,
        "UPSTREAM_CLUSTER" => O::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => O::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => O::UpstreamLocalAddress,
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => O::UpstreamLocalAddressWithoutPort,
        "UPSTREAM_LOCAL_PORT" => O::UpstreamLocalPort,
        "UPSTREAM_REMOTE_ADDRESS" => O::UpstreamRemoteAddress,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => O::UpstreamRemoteAddressWithoutPort,
        "UPSTREAM_REMOTE_PORT" => O::UpstreamRemotePort,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => O::UpstreamRequestAttemptCount,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => O::UpstreamTransportFailureReason,
        "UPSTREAM_PEER_URI_SAN" => O::UpstreamPeerUriSan,
        "UPSTREAM_LOCAL_URI_SAN" => O::UpstreamLocalUriSan,
        "UPSTREAM_TLS_VERSION" => O::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => O::UpstreamTlsCipher,
        _ => return None,
    })
}

fn downstream(name: &str) -> Option<O> {
    Some(match name {
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => O::DownstreamTransportFailureReason,
        "DOWNSTREAM_REMOTE_ADDRESS" => O::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => O::DownstreamRemoteAddressWithoutPort,
        "DOWNSTREAM_REMOTE_PORT" => O::DownstreamRemotePort,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => O::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            O::DownstreamDirectRemoteAddressWithoutPort
        }
        "DOWNSTREAM_LOCAL_ADDRESS" => O::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => O::DownstreamLocalAddressWithoutPort,
        "DOWNSTREAM_LOCAL_PORT" => O::DownstreamLocalPort,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => O::DownstreamDirectLocalAddress,
        "DOWNSTREAM_PEER_URI_SAN" => O::DownstreamPeerUriSan,
        "DOWNSTREAM_PEER_DNS_SAN" => O::DownstreamPeerDnsSan,
        "DOWNSTREAM_PEER_SUBJECT" => O::DownstreamPeerSubject,
        "DOWNSTREAM_PEER_ISSUER" => O::DownstreamPeerIssuer,
        "DOWNSTREAM_PEER_SERIAL" => O::DownstreamPeerSerial,
        "DOWNSTREAM_PEER_FINGERPRINT_256" => O::DownstreamPeerFingerprint256,
        "DOWNSTREAM_LOCAL_URI_SAN" => O::DownstreamLocalUriSan,
        "DOWNSTREAM_LOCAL_SUBJECT" => O::DownstreamLocalSubject,
        "DOWNSTREAM_TLS_VERSION" => O::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => O::DownstreamTlsCipher,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
