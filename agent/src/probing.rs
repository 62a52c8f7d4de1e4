//! What the two probers share, that of the status port and that of workload health: an HTTP/1.1
//! connection, and the question of `grpc.health.v1`.

use http::HeaderMap;
use hyper::body::Body;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use outrigger_xds::grpc::{ClientOptions, Connection};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;
/// The answer is an enumeration in a message.
const MAX_ANSWER: usize = 64 * 1024;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An HTTP/1.1 connection over `stream`, which ends with the returned half.
///
/// # Errors
/// The transport fails.
pub(crate) async fn http1<S, B>(stream: S) -> Result<SendRequest<B>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Names are written as Go's and kubelet's clients write them: some applications compare case.
    let (sender, connection) = Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await?;
    // A failure of the connection is seen on the response.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

/// Asks the health service behind `stream` for `service` (empty: the server as a whole). An empty
/// `user_agent` is not sent.
///
/// # Errors
/// Why the service is not healthy, in words.
pub(crate) async fn grpc_health<S>(
    stream: S,
    authority: String,
    user_agent: String,
    service: &str,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = ClientOptions {
        authority,
        keepalive: None,
        max_message: MAX_ANSWER,
        user_agent,
        ..ClientOptions::default()
    };
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let connection = Connection::handshake(stream, options).await;
    let mut connection = connection.map_err(|e| e.to_string())?;
    let body = request.encode_to_vec().into();
    let answer = connection.unary(CHECK, &HeaderMap::new(), body).await;
    let answer = answer.map_err(|e| e.to_string())?;
    match HealthCheckResponse::decode(answer).map_err(|e| e.to_string())? {
        HealthCheckResponse { status: SERVING } => Ok(()),
        HealthCheckResponse { status } => Err(format!("health status {status}, not SERVING")),
    }
}
