//! The HTTP/1.1 application: useful answers and every bad one a proxy must survive.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Persona, drain};

/// A request as it arrived, header case and order kept.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Request target, query included.
    pub target: String,
    /// Version token of the request line.
    pub version: String,
    /// Headers in order.
    pub headers: Vec<(String, String)>,
    /// Body, de-chunked.
    pub body: Vec<u8>,
}

impl Seen {
    /// First value of a header, any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.as_str())
    }

    /// Path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A query parameter.
    pub fn query(&self, key: &str) -> Option<&str> {
        let query = self.target.split_once('?')?.1;
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
            .map(|p| p.1)
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.query(key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    }

    /// The request as JSON, for `/headers` and `/echo`.
    pub fn describe(&self, persona: &Persona, peer: SocketAddr) -> String {
        let value = json!({
            "method": self.method,
            "path": self.target,
            "version": self.version,
            "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body),
            "app": persona.version,
            "peer": peer.ip().to_canonical().to_string(),
        });
        format!("{value}\n")
    }
}

/// What to write back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Extra headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }
}

/// The well-behaved paths, shared with h2c. `None`: one of the misbehaving paths of HTTP/1.
pub async fn route(seen: &Seen, persona: &Persona, peer: SocketAddr) -> Option<Answer> {
    let path = seen.path().to_owned();
    let hello = || {
        format!(
            "Hello version: {0}, instance: helloworld-{0}\n",
            persona.version
        )
    };
    if let Some(code) = path.strip_prefix("/status/") {
        let code = code
            .split('/')
            .next()
            .and_then(|c| c.parse().ok())
            .unwrap_or(400);
        return Some(Answer::text(code, format!("status {code}\n")));
    }
    if path.starts_with("/misbehave/") {
        return None;
    }
    Some(match path.as_str() {
        "/slow" => {
            let seconds: f64 = seen.query("s").and_then(|v| v.parse().ok()).unwrap_or(1.0);
            tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 60.0))).await;
            Answer::text(200, hello())
        }
        "/big" => {
            let size = usize::try_from(seen.number("n", 1000).min(1 << 28)).unwrap_or(0);
            Answer::text(200, vec![b'x'; size])
        }
        "/len" => Answer::text(200, format!("{}\n", seen.body.len())),
        "/header" => {
            let value = seen.query("v").unwrap_or("value").to_owned();
            let name = match seen.query("n") {
                Some("server") => "server",
                Some("via") => "via",
                Some("overloaded") => "x-envoy-overloaded",
                Some("retry-after") => "retry-after",
                _ => "x-test",
            };
            Answer {
                status: 200,
                headers: vec![(name, value)],
                body: hello().into(),
            }
        }
        "/hello" | "/ready" | "/" => Answer::text(200, hello()),
        _ => Answer::text(200, seen.describe(persona, peer)),
    })
}

/// Serves one connection until it ends.
pub async fn serve(mut stream: TcpStream, peer: SocketAddr, persona: &Persona) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer).await? {
        let Some(answer) = route(&seen, persona, peer).await else {
            return misbehave(stream, &seen).await;
        };
        let close = seen
            .header("connection")
            .is_some_and(|v| v.eq_ignore_ascii_case("close"));
        write_answer(&mut stream, &seen, &answer, persona, close).await?;
        if close {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Odd")
}

async fn write_answer(
    stream: &mut TcpStream,
    seen: &Seen,
    answer: &Answer,
    persona: &Persona,
    close: bool,
) -> io::Result<()> {
    let chunked = seen.query("chunked").is_some();
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    head.push_str("content-type: text/plain\r\n");
    head.push_str(&format!("x-app: {}\r\n", persona.version));
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if close {
        head.push_str("connection: close\r\n");
    }
    let bodiless = seen.method == "HEAD" || matches!(answer.status, 100..=199 | 204 | 304);
    if chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !matches!(answer.status, 100..=199 | 204) {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    if bodiless {
        return Ok(());
    }
    if !chunked {
        return stream.write_all(&answer.body).await;
    }
    for part in answer.body.chunks(1024) {
        stream
            .write_all(format!("{:x}\r\n", part.len()).as_bytes())
            .await?;
        stream.write_all(part).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

/// `/misbehave/<how>`: what a broken server does.
async fn misbehave(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let how = seen.path().trim_start_matches("/misbehave/");
    match how {
        "close" => stream.shutdown().await,
        "reset" => stream.set_zero_linger(),
        "garbage" => stream.write_all(b"this is not HTTP\r\n\r\n").await,
        "partial" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
                .await?;
            stream.shutdown().await
        }
        "partial-reset" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
                .await?;
            stream.flush().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.set_zero_linger()
        }
        "bad-chunk" => {
            let bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n";
            stream.write_all(bytes).await?;
            drain(&mut stream, 1 << 20).await.map(drop)
        }
        "until-close" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil close")
                .await?;
            stream.shutdown().await
        }
        "two-lengths" => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd";
            stream.write_all(head).await
        }
        "hundred" => {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
            drain(&mut stream, 1 << 20).await.map(drop)
        }
        "odd-reason" => {
            stream
                .write_all(b"HTTP/1.1 555 Whatever\r\ncontent-length: 0\r\n\r\n")
                .await?;
            drain(&mut stream, 1 << 20).await.map(drop)
        }
        "http10" => {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nold").await?;
            stream.shutdown().await
        }
        "switch" => {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(head).await?;
            super::echo(&mut stream).await
        }
        "hang" => drain(&mut stream, usize::MAX).await.map(drop),
        _ => {
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                .await?;
            stream.shutdown().await
        }
    }
}

/// The next request; `None` at a clean end.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() {
                Ok(None)
            } else {
                Err(bad("cut request head"))
            };
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let mut word = || line.next().unwrap_or_default().to_owned();
    let mut seen = Seen {
        method: word(),
        target: word(),
        version: word(),
        ..Seen::default()
    };
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| bad("header without colon"))?;
        seen.headers
            .push((name.to_owned(), value.trim().to_owned()));
    }
    if seen
        .header("expect")
        .is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
    {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    if seen
        .header("transfer-encoding")
        .is_some_and(|v| v.contains("chunked"))
    {
        seen.body = read_chunks(stream, buffer).await?;
    } else if let Some(length) = seen.header("content-length") {
        let length = length.parse().map_err(|_| bad("content-length"))?;
        while buffer.len() < length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(bad("cut body"));
            }
        }
        seen.body = buffer.drain(..length).collect();
    }
    Ok(Some(seen))
}

async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line: Vec<u8> = buffer.drain(..at + 2).take(at).collect();
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, buffer).await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "chunk size"))?;
        if size == 0 {
            // Trailers, then an empty line.
            while !read_line(stream, buffer).await?.is_empty() {}
            return Ok(body);
        }
        while buffer.len() < size {
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        body.extend(buffer.drain(..size));
        read_line(stream, buffer).await?;
    }
}
