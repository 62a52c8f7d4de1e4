//! A small HTTP/1.1 server for the admin address: one request at a time per connection, bounded heads and
//! bodies. It knows nothing of the pages.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::access_log::time::http_date;

/// Longest request head.
const MAX_HEAD: usize = 64 * 1024;
/// Longest request body that is skipped.
const MAX_BODY: u64 = 1024 * 1024;
/// A connection without a request is closed after this time.
const IDLE: Duration = Duration::from_secs(300);
/// Connections served at a time.
const MAX_CONNECTIONS: usize = 256;

/// A request of the admin page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Decoded query parameters in order.
    pub query: Vec<(String, String)>,
}

impl Request {
    /// Builds a request from a method and a target in origin form.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        // Absolute form is what a proxy in front may send.
        let target = target
            .strip_prefix("http://")
            .map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split_once('#').map_or(query, |(q, _)| q);
        let query = query
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                (decode(k), decode(v))
            })
            .collect();
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query,
        }
    }

    /// First value of a query parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// A parameter that is present, whatever its value.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.parameter(name).is_some()
    }
}

/// Percent decoding; malformed escapes stay as they are.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        if bytes[i] == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(i + 1)), hex(bytes.get(i + 2)))
        {
            out.push((high * 16 + low) as u8);
            i += 3;
            continue;
        }
        out.push(bytes[i]);
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// `content-type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Vec<u8>,
    /// The connection is closed after it.
    pub close: bool,
}

/// `content-type` of text pages.
pub const TEXT: &str = "text/plain; charset=UTF-8";
/// `content-type` of JSON pages.
pub const JSON: &str = "application/json";
/// `content-type` of HTML pages.
pub const HTML: &str = "text/html; charset=UTF-8";

impl Response {
    /// 200 with text.
    #[must_use]
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            content_type: TEXT,
            body: body.into(),
            close: false,
        }
    }

    /// 200 with JSON, indented by one space and ended by a line feed.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: 200,
            content_type: JSON,
            body: super::json::pretty(value),
            close: false,
        }
    }

    /// Another status with text.
    #[must_use]
    pub fn error(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
            close: false,
        }
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Payload Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// Serves connections for ever. `handle` answers on this thread; slow pages delay only control work.
pub async fn serve(listener: TcpListener, handle: Rc<dyn Fn(&Request) -> Response>) {
    let places = Rc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed; should it be, serving without a bound is still right.
        let place = Rc::clone(&places).acquire_owned_local().await;
        match listener.accept().await {
            Ok((socket, _)) => {
                let handle = Rc::clone(&handle);
                tokio::task::spawn_local(async move {
                    let _ = socket.set_nodelay(true);
                    connection(socket, &*handle).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(target: "admin", "admin accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A place among the served connections.
struct Place(Rc<tokio::sync::Semaphore>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

trait AcquireLocal {
    async fn acquire_owned_local(self) -> Place;
}

impl AcquireLocal for Rc<tokio::sync::Semaphore> {
    async fn acquire_owned_local(self) -> Place {
        if let Ok(permit) = self.acquire().await {
            permit.forget();
        }
        Place(self)
    }
}

struct Head {
    request: Request,
    length: usize,
    body: Body,
    http11: bool,
    close: bool,
    expect: bool,
}

enum Body {
    Length(u64),
    /// Not skipped: the connection is closed after the answer.
    Chunked,
}

async fn connection(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    handle: &dyn Fn(&Request) -> Response,
) {
    let mut buffer = Vec::new();
    loop {
        let head = match tokio::time::timeout(IDLE, read_head(&mut io, &mut buffer)).await {
            Ok(Ok(Some(head))) => head,
            Ok(Err(status)) => {
                let answer = Response::error(status, reason(status));
                let _ = write(&mut io, &answer, false, true, true).await;
                return;
            }
            Ok(Ok(None)) | Err(_) => return,
        };
        if head.expect
            && io
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .is_err()
        {
            return;
        }
        buffer.drain(..head.length);
        let mut close = head.close;
        match head.body {
            Body::Length(n) if n > MAX_BODY => {
                let _ = write(
                    &mut io,
                    &Response::error(413, reason(413)),
                    false,
                    true,
                    true,
                )
                .await;
                return;
            }
            Body::Length(n) => {
                if skip(&mut io, &mut buffer, n as usize).await.is_err() {
                    return;
                }
            }
            Body::Chunked => close = true,
        }
        let answer = handle(&head.request);
        close |= answer.close;
        let bodyless = head.request.method == "HEAD";
        if write(&mut io, &answer, bodyless, !head.http11, close)
            .await
            .is_err()
            || close
        {
            return;
        }
    }
}

/// `None` when the peer closed between requests; `Err` with the status of the answer to a bad head.
async fn read_head(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<Option<Head>, u16> {
    loop {
        if let Some(head) = parse(buffer)? {
            return Ok(Some(head));
        }
        if buffer.len() > MAX_HEAD {
            return Err(431);
        }
        match io.read_buf(buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

fn parse(buffer: &[u8]) -> Result<Option<Head>, u16> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(buffer) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(400),
    };
    let http11 = request.version == Some(1);
    let mut head = Head {
        request: Request::new(request.method.unwrap_or(""), request.path.unwrap_or("/")),
        length,
        body: Body::Length(0),
        http11,
        close: !http11,
        expect: false,
    };
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value)
            .map_err(|_| 400u16)?
            .trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => head.body = Body::Length(value.parse().map_err(|_| 400u16)?),
            "transfer-encoding" => head.body = Body::Chunked,
            "connection" if value.eq_ignore_ascii_case("close") => head.close = true,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => head.close = false,
            "expect" => head.expect = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    Ok(Some(head))
}

async fn skip(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    length: usize,
) -> std::io::Result<()> {
    while buffer.len() < length {
        if io.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    buffer.drain(..length);
    Ok(())
}

async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    answer: &Response,
    bodyless: bool,
    http10: bool,
    close: bool,
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncache-control: no-cache, max-age=0\r\n\
         x-content-type-options: nosniff\r\ndate: {}\r\nserver: envoy\r\n",
        answer.status,
        reason(answer.status),
        answer.content_type,
        http_date(SystemTime::now()),
    );
    if close {
        head.push_str("connection: close\r\n");
    }
    if http10 || bodyless {
        head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    } else {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
    }
    io.write_all(head.as_bytes()).await?;
    if !bodyless && http10 {
        io.write_all(&answer.body).await?;
    } else if !bodyless {
        if !answer.body.is_empty() {
            io.write_all(format!("{:x}\r\n", answer.body.len()).as_bytes())
                .await?;
            io.write_all(&answer.body).await?;
            io.write_all(b"\r\n").await?;
        }
        io.write_all(b"0\r\n\r\n").await?;
    }
    io.flush().await
}
