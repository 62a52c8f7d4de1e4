//! Applications that probes ask: `grpc.health.v1.Health`, and HTTPS with a certificate that nobody
//! trusts. Each runs on a thread of its own until the test ends.

use std::convert::Infallible;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

/// What was asked: method, path and headers.
pub(crate) type Seen = mpsc::Receiver<String>;
type Body = BoxBody<Bytes, Infallible>;

/// Runs `serve` with a bound listener; returns its port.
fn on_thread<F>(serve: impl FnOnce(TcpListener) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()>,
{
    let (sender, port) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = listener.local_addr().expect("address");
            sender.send(address.port()).expect("test waits");
            serve(listener).await;
        });
    });
    port.recv().expect("a port")
}

fn describe<B>(request: &Request<B>) -> String {
    let agent = request.headers().get("user-agent");
    let agent = agent.and_then(|a| a.to_str().ok()).unwrap_or_default();
    format!(
        "{} {} {agent} {:?}",
        request.method(),
        request.uri(),
        request.version()
    )
}

/// Answers by service name: `up` SERVING, `down` NOT_SERVING, anything else NOT_FOUND.
pub(crate) fn grpc() -> (u16, Seen) {
    let (sender, seen) = mpsc::channel();
    let port = on_thread(move |listener| async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let said = sender.send(describe(&request));
                async move {
                    said.ok();
                    let body = request.into_body().collect().await.map(|b| b.to_bytes());
                    Ok::<_, Infallible>(health(&body.unwrap_or_default()))
                }
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                // The prober hangs up when it knows enough.
                server
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    });
    (port, seen)
}

fn health(request: &[u8]) -> Response<Body> {
    // Prefix of five bytes, then field 1 as a string.
    let service = request.get(7..).unwrap_or_default();
    let (message, status): (&[u8], _) = match service {
        b"up" => (&[0, 0, 0, 0, 2, 8, 1], "0"),
        b"down" => (&[0, 0, 0, 0, 2, 8, 2], "0"),
        _ => (&[], "5"),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().expect("value"));
    let data = Frame::data(Bytes::copy_from_slice(message));
    let frames = [Ok(data), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(tokio_stream::iter(frames));
    let mut response = Response::new(BodyExt::boxed(body));
    let kind = "application/grpc".parse().expect("value");
    response.headers_mut().insert("content-type", kind);
    response
}

/// Answers 200 over TLS, in HTTP/2 where the client offers it.
pub(crate) fn https() -> (u16, Seen) {
    let (sender, seen) = mpsc::channel();
    let names = vec!["app.example".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("server certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let port = on_thread(move |listener| async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(stream).await else {
                continue;
            };
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let said = sender.send(describe(&request));
                async move {
                    said.ok();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("fine"))))
                }
            });
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            tokio::spawn(async move {
                let io = TokioIo::new(tls);
                if http2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(io, service).await.ok();
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    server.serve_connection(io, service).await.ok();
                }
            });
        }
    });
    (port, seen)
}
