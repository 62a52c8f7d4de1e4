//! Accept headers and content types of merged scrapes: only text formats pass, because parts of
//! different formats cannot be joined.

/// Format of an exposition page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 0.0.1.
    OpenMetrics0,
    /// OpenMetrics 1.0.0.
    OpenMetrics1,
}

impl Format {
    /// From the application's `Content-Type`.
    pub(super) fn of_content_type(value: &str) -> Self {
        let mut parts = value.split(';').map(str::trim);
        if parts.next() != Some("application/openmetrics-text") {
            return Self::Text;
        }
        match parts.find_map(|p| p.strip_prefix("version=")) {
            None | Some("0.0.1") => Self::OpenMetrics0,
            Some("1.0.0") => Self::OpenMetrics1,
            Some(_) => Self::Text,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics0 => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Self::OpenMetrics1 => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn is_open_metrics(self) -> bool {
        self != Self::Text
    }
}

const FALLBACK: &str = "text/plain;version=0.0.4";

/// The client's Accept reduced to text formats, in its order, with new weights. Without any
/// usable entry the fallback is text 0.0.4.
pub(super) fn filter(accept: Option<&str>, open_metrics: bool) -> String {
    let mut kept: Vec<String> = Vec::new();
    for entry in accept.unwrap_or_default().split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let params: Vec<&str> = parts.filter(|p| !p.starts_with("q=")).collect();
        let item = match media.as_str() {
            "*/*" | "*" => FALLBACK.to_owned(),
            "application/*" if open_metrics => {
                "application/openmetrics-text;version=0.0.1".to_owned()
            }
            "text/plain" => join(&media, &params),
            "application/openmetrics-text" if open_metrics => join(&media, &params),
            _ => continue,
        };
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    if kept.is_empty() {
        return FALLBACK.to_owned();
    }
    let count = kept.len().min(9);
    let weighted = kept.iter().take(9).enumerate();
    weighted
        .map(|(i, item)| format!("{item};q=0.{}", count - i))
        .collect::<Vec<_>>()
        .join(",")
}

fn join(media: &str, params: &[&str]) -> String {
    let mut out = media.to_owned();
    for param in params {
        out.push(';');
        out.push_str(param);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_keeps_text_formats_only() {
        let prometheus = "application/vnd.google.protobuf;proto=x;q=0.6,\
                          application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2,*/*;q=0.1";
        for (accept, open_metrics, want) in [
            (None, true, "text/plain;version=0.0.4"),
            (Some("application/json"), true, "text/plain;version=0.0.4"),
            (Some("*/*"), true, "text/plain;version=0.0.4;q=0.1"),
            (
                Some("application/*"),
                true,
                "application/openmetrics-text;version=0.0.1;q=0.1",
            ),
            (Some("application/*"), false, "text/plain;version=0.0.4"),
            (
                Some(prometheus),
                true,
                "application/openmetrics-text;version=1.0.0;q=0.3,text/plain;q=0.2,\
                 text/plain;version=0.0.4;q=0.1",
            ),
            (
                Some(prometheus),
                false,
                "text/plain;q=0.2,text/plain;version=0.0.4;q=0.1",
            ),
        ] {
            assert_eq!(filter(accept, open_metrics), want, "{accept:?}");
        }
    }

    #[test]
    fn content_type_decides_the_format() {
        for (value, want) in [
            (
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                Format::OpenMetrics1,
            ),
            (
                "application/openmetrics-text;version=0.0.1",
                Format::OpenMetrics0,
            ),
            ("application/openmetrics-text", Format::OpenMetrics0),
            ("application/openmetrics-text; version=2.0.0", Format::Text),
            ("text/plain; version=0.0.4", Format::Text),
            ("", Format::Text),
        ] {
            assert_eq!(Format::of_content_type(value), want, "{value}");
        }
    }
}
