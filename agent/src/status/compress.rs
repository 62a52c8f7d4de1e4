//! gzip for clients that take it. Bodies stay streams: one frame is compressed at a time.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;

use super::{Body, BodyError};

/// A shorter page would not get shorter.
const MIN_SIZE: u64 = 1024;

/// Whether the client takes gzip.
pub(super) fn accepted(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter();
    let entries = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    // The name itself counts before `*`.
    let mut any = false;
    for entry in entries {
        let mut parts = entry.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q=")));
        let wanted = weight.is_none_or(|q| q.parse::<f32>().is_ok_and(|q| q > 0.0));
        match coding.as_str() {
            "gzip" | "x-gzip" => return wanted,
            "*" => any = wanted,
            _ => {}
        }
    }
    any
}

/// Compresses a page that is worth it.
pub(super) fn apply(response: Response<Body>) -> Response<Body> {
    let small = response
        .body()
        .size_hint()
        .upper()
        .is_some_and(|n| n < MIN_SIZE);
    let encoded = response.headers().contains_key(CONTENT_ENCODING);
    let (mut parts, body) = response.into_parts();
    if small || encoded {
        return Response::from_parts(parts, body);
    }
    parts.headers.remove(CONTENT_LENGTH);
    let gzip = HeaderValue::from_static("gzip");
    parts.headers.insert(CONTENT_ENCODING, gzip);
    let body = Gzip {
        inner: body,
        encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())),
    };
    Response::from_parts(parts, body.boxed_unsync())
}

struct Gzip {
    inner: Body,
    /// `None` once the end has been written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.encoder.is_none() {
                return Poll::Ready(None);
            }
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    let last = self.encoder.take().map(GzEncoder::finish);
                    let last = last.unwrap_or_else(|| Ok(Vec::new()));
                    let frame = last.map(|bytes| Frame::data(Bytes::from(bytes)));
                    return Poll::Ready(Some(frame.map_err(Into::into)));
                }
                Some(Ok(frame)) => frame,
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
            };
            // Pages have no trailers.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let Some(encoder) = &mut self.encoder else {
                continue;
            };
            if let Err(e) = encoder.write_all(&data) {
                return Poll::Ready(Some(Err(e.into())));
            }
            let out = std::mem::take(encoder.get_mut());
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http_body_util::StreamBody;

    use super::super::{full, text};
    use super::*;

    #[test]
    fn weights_decide() {
        for (lines, want) in [
            (&[][..], false),
            (&["gzip"], true),
            (&["deflate, GZIP;q=0.5"], true),
            (&["gzip;q=0"], false),
            (&["*;q=0.1"], true),
            (&["*", "gzip;q=0"], false),
            (&["identity"], false),
            (&["br, zstd", "x-gzip"], true),
            (&["gzip;q=much"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(line));
            }
            assert_eq!(accepted(&headers), want, "{lines:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_comes_out_whole_and_a_small_page_as_it_is() {
        let frames: Vec<Result<Frame<Bytes>, BodyError>> = (0..500)
            .map(|n| Ok(Frame::data(Bytes::from(format!("metric_{n} {n}\n")))))
            .collect();
        let stream = StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
        let response = apply(Response::new(stream));
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes();
        let mut page = String::new();
        let read = GzDecoder::new(&*bytes).read_to_string(&mut page);
        read.expect("gzip");
        assert_eq!(page.lines().count(), 500);
        assert!(page.ends_with("metric_499 499\n"));
        assert!(bytes.len() < page.len() / 2);

        let small = apply(text(http::StatusCode::OK, "OK"));
        assert!(!small.headers().contains_key(CONTENT_ENCODING));
        let large = apply(Response::new(full(vec![b'x'; 4096])));
        assert!(large.headers().contains_key(CONTENT_ENCODING));
    }
}
