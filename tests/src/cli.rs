//! The command line of `outrigger-lab`.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::apps::{self, Kind, Persona};
use crate::{demo, startup};

/// Test applications and the demo.
#[derive(Debug, Parser)]
#[command(name = "outrigger-lab", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run test applications in one process until killed.
    App {
        /// Version text that the applications answer with.
        #[arg(long, default_value = "v1")]
        version: String,
        /// `KIND:PORT` or `KIND:ADDRESS:PORT`; kinds: http, tcp, first, sink, reset.
        #[arg(required = true)]
        listen: Vec<String>,
    },
    /// Run pods with sidecars, send traffic, show what happened.
    Demo(demo::Options),
    /// Measure start-up and the agent's memory (root; needs the recorded fixtures).
    Startup(startup::Options),
}

/// Why the lab stopped.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An application's argument.
    #[error("{0:?} is not KIND:PORT or KIND:ADDRESS:PORT")]
    Listen(String),
    /// An application's socket.
    #[error("listening: {0}")]
    Io(#[from] std::io::Error),
    /// A step of the demo failed.
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    /// A measurement could not be made.
    #[error(transparent)]
    Startup(#[from] startup::StartupError),
}

fn parse(text: &str) -> Option<(Kind, SocketAddr)> {
    let (kind, address) = text.split_once(':')?;
    let kind = <Kind as clap::ValueEnum>::from_str(kind, true).ok()?;
    let address = match address.parse::<u16>() {
        Ok(port) => SocketAddr::from(([0, 0, 0, 0], port)),
        Err(_) => address.parse().ok()?,
    };
    Some((kind, address))
}

/// Runs the command.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::App { version, listen } => {
            let persona = Arc::new(Persona { version });
            let mut tasks = tokio::task::JoinSet::new();
            for text in listen {
                let (kind, address) = parse(&text).ok_or(CliError::Listen(text))?;
                let listener = tokio::net::TcpListener::bind(address).await?;
                tasks.spawn(apps::serve(listener, kind, persona.clone()));
            }
            while tasks.join_next().await.is_some() {}
            Ok(())
        }
        Command::Demo(options) => Ok(demo::run(options).await?),
        Command::Startup(options) => Ok(startup::run(options).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_named_by_kind_and_port() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(parse("http:5000"), Some((Kind::Http, at("0.0.0.0:5000"))));
        assert_eq!(
            parse("tcp:127.0.0.1:7"),
            Some((Kind::Tcp, at("127.0.0.1:7")))
        );
        assert_eq!(parse("udp:1"), None);
        assert_eq!(parse("http"), None);
    }
}
