//! Test applications: HTTP/1.1, h2c and gRPC on one port, TCP echo, server-first TCP.
//!
//! The HTTP/1 side is written by hand on purpose: it must be able to misbehave.

pub mod h2c;
pub mod http1;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What an application does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// HTTP/1.1, or h2c and gRPC after the HTTP/2 preface.
    Http,
    /// Sends back what it gets.
    Tcp,
    /// Greets with `220 welcome`, then sends back what it gets.
    First,
    /// Reads everything, answers nothing.
    Sink,
    /// Reads once and closes with a reset: on accept it would race with the connecting side.
    Reset,
}

/// Who the application says it is.
#[derive(Debug, Clone, Default)]
pub struct Persona {
    /// Printed by `/hello`, sent as `x-app`.
    pub version: String,
}

/// A running application; dropping it closes the listener and all connections.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    task: AbortHandle,
}

impl App {
    /// Starts on an ephemeral loopback port.
    pub async fn loopback(kind: Kind, version: &str) -> io::Result<Self> {
        Self::start(TcpListener::bind("127.0.0.1:0").await?, kind, version)
    }

    /// Starts on a given socket.
    pub fn start(listener: TcpListener, kind: Kind, version: &str) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let persona = Arc::new(Persona {
            version: version.to_owned(),
        });
        let task = tokio::spawn(serve(listener, kind, persona)).abort_handle();
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, kind: Kind, persona: Arc<Persona>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let persona = persona.clone();
        connections.spawn(async move {
            // A peer that goes away is part of many tests.
            let _ = one(stream, peer, kind, &persona).await;
        });
    }
}

async fn one(
    mut stream: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    persona: &Persona,
) -> io::Result<()> {
    match kind {
        Kind::Http => http(stream, peer, persona).await,
        Kind::Tcp => echo(&mut stream).await,
        Kind::First => {
            stream.write_all(b"220 welcome\r\n").await?;
            echo(&mut stream).await
        }
        Kind::Sink => tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .map(drop),
        Kind::Reset => {
            stream.read_u8().await?;
            stream.set_zero_linger()
        }
    }
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn http(stream: TcpStream, peer: SocketAddr, persona: &Persona) -> io::Result<()> {
    let mut first = [0_u8; 4];
    let seen = loop {
        let n = stream.peek(&mut first).await?;
        if n == 0 {
            return Ok(());
        }
        if n == first.len() || !b"PRI ".starts_with(&first[..n]) {
            break n;
        }
        // One to three bytes of what may be the preface: wait for more.
        stream.readable().await?;
        tokio::task::yield_now().await;
    };
    if &first[..seen] == b"PRI " {
        h2c::serve(stream, peer, persona).await
    } else {
        http1::serve(stream, peer, persona).await
    }
}

/// Reads until end of stream, at most `limit` bytes.
pub(crate) async fn drain(stream: &mut TcpStream, limit: usize) -> io::Result<usize> {
    let mut buffer = [0_u8; 4096];
    let mut total = 0;
    while total < limit {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => total += n,
        }
    }
    Ok(total)
}
