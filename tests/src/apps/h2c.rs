//! The application over HTTP/2 without TLS, and a small gRPC echo on the same port.
//!
//! gRPC: `/lab.Echo/Unary` and `/lab.Echo/Stream` send back each message, `/lab.Echo/Fail` answers
//! PERMISSION_DENIED, `/grpc.health.v1.Health/Check` answers SERVING.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use super::Persona;
use super::http1::{Seen, route};

/// Serves one connection until it ends.
pub async fn serve(stream: TcpStream, peer: SocketAddr, persona: &Persona) -> io::Result<()> {
    let mut connection = h2::server::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        let persona = persona.clone();
        tokio::spawn(async move {
            // A reset stream is the client's business.
            let _ = answer(request, respond, peer, &persona).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: SocketAddr,
    persona: &Persona,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let kind = parts
        .headers
        .get("content-type")
        .map(|v| v.as_bytes().to_vec());
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    if kind.is_some_and(|k| k.starts_with(b"application/grpc")) {
        return grpc(parts.uri.path(), all.freeze(), respond, persona).await;
    }
    let target = parts
        .uri
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let mut headers = vec![(
        ":authority".to_owned(),
        parts
            .uri
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default(),
    )];
    headers.extend(parts.headers.iter().map(|(n, v)| (n.to_string(), text(v))));
    let seen = Seen {
        method: parts.method.to_string(),
        target,
        version: "HTTP/2".to_owned(),
        headers,
        body: all.to_vec(),
    };
    let Some(answer) = route(&seen, persona, peer).await else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    };
    let mut response = Response::builder()
        .status(answer.status)
        .header("content-type", "text/plain")
        .header("x-app", &persona.version);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    let Ok(response) = response.body(()) else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    };
    let mut stream = respond.send_response(response, false)?;
    send(&mut stream, answer.body.into(), true).await
}

async fn send(
    stream: &mut h2::SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(room) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Ok(());
        };
        let part = data.split_to(room?.min(data.len()));
        stream.send_data(part, false)?;
    }
    if end {
        stream.send_data(Bytes::new(), true)
    } else {
        Ok(())
    }
}

async fn grpc(
    path: &str,
    body: Bytes,
    mut respond: SendResponse<Bytes>,
    persona: &Persona,
) -> Result<(), h2::Error> {
    let head = || {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        headers.insert(
            "content-type",
            http::HeaderValue::from_static("application/grpc"),
        );
        if let Ok(version) = http::HeaderValue::from_str(&persona.version) {
            headers.insert("x-app", version);
        }
        response
    };
    let status = |code: &'static str, message: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(code));
        trailers.insert("grpc-message", http::HeaderValue::from_static(message));
        trailers
    };
    let message = match path {
        "/lab.Echo/Unary" | "/lab.Echo/Stream" => body,
        // HealthCheckResponse { status: SERVING }, framed.
        "/grpc.health.v1.Health/Check" => Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]),
        other => {
            let (code, text) = if other == "/lab.Echo/Fail" {
                ("7", "no")
            } else {
                ("12", "unknown method")
            };
            let mut response = head();
            response.headers_mut().extend(status(code, text));
            respond.send_response(response, true)?;
            return Ok(());
        }
    };
    let mut stream = respond.send_response(head(), false)?;
    send(&mut stream, message, false).await?;
    stream.send_trailers(status("0", ""))
}
