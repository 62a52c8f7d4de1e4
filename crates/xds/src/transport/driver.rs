//! The loop behind `AdsClient`: one connection and one stream at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use prost::Message;
use tokio::sync::mpsc;

use super::{Backoff, ClientConfig, Command, Connector, DisconnectReason, Event, encode_request};
use crate::grpc::{Connection, MessageSender};
use crate::session::{Protocol, Session, SessionError, Update};

/// Why the driver stops for good.
enum Stop {
    /// All handles or the event receiver are gone.
    Abandoned,
    /// The stream is over; try again.
    Reconnect(DisconnectReason),
}

struct Driver {
    session: Session,
    config: ClientConfig,
    backoff: Backoff,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    waiting: VecDeque<Event>,
}

pub(super) async fn run<C: Connector>(
    connector: C,
    session: Session,
    config: ClientConfig,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
) {
    let backoff = config.backoff.clone();
    let mut driver = Driver {
        session,
        config,
        backoff,
        commands,
        events,
        waiting: VecDeque::new(),
    };
    loop {
        let stop = driver.stream(&connector).await;
        driver.session.on_stream_closed();
        let Stop::Reconnect(reason) = stop else {
            return;
        };
        tracing::debug!(%reason, "xDS stream is down");
        driver.waiting.push_back(Event::Disconnected(reason));
        let wait = driver.backoff.next_wait();
        if driver.serve_until(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

impl Driver {
    /// Connects and serves one stream to its end.
    async fn stream<C: Connector>(&mut self, connector: &C) -> Stop {
        let options = self.config.options.clone();
        let connect = async {
            let io = connector
                .connect()
                .await
                .map_err(|error| DisconnectReason::Connect(error.to_string()))?;
            Connection::handshake(io, options)
                .await
                .map_err(|error| DisconnectReason::Connect(error.to_string()))
        };
        let mut connection = match self.serve_until(connect).await {
            None => return Stop::Abandoned,
            Some(Err(reason)) => return Stop::Reconnect(reason),
            Some(Ok(connection)) => connection,
        };
        let path = self.config.service.path(self.session.protocol());
        let (sender, mut stream) = match connection.call(path, &self.config.metadata).await {
            Ok(call) => call,
            Err(error) => return Stop::Reconnect(DisconnectReason::Stream(error.to_string())),
        };
        self.session.on_stream_open();
        self.waiting.push_back(Event::Connected);
        let events = self.events.clone();
        loop {
            self.flush(&sender);
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.apply(command),
                    None => return Stop::Abandoned,
                },
                permit = events.reserve(), if !self.waiting.is_empty() => {
                    let Ok(permit) = permit else { return Stop::Abandoned };
                    if let Some(event) = self.waiting.pop_front() {
                        permit.send(event);
                    }
                }
                message = stream.message(), if self.waiting.is_empty() => match message {
                    Ok(Some(bytes)) => match self.receive(bytes) {
                        // Only a server that makes sense is asked again soon.
                        Ok(()) => self.backoff.reset(),
                        Err(error) => {
                            return Stop::Reconnect(DisconnectReason::Decode(error));
                        }
                    },
                    Ok(None) => return Stop::Reconnect(DisconnectReason::Ended),
                    Err(error) => {
                        return Stop::Reconnect(DisconnectReason::Stream(error.to_string()));
                    }
                },
            }
        }
    }

    /// Waits for `future`, taking commands and delivering events meanwhile. `None` = abandoned.
    async fn serve_until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        tokio::pin!(future);
        let events = self.events.clone();
        loop {
            tokio::select! {
                output = &mut future => return Some(output),
                command = self.commands.recv() => self.apply(command?),
                permit = events.reserve(), if !self.waiting.is_empty() => {
                    let permit = permit.ok()?;
                    if let Some(event) = self.waiting.pop_front() {
                        permit.send(event);
                    }
                }
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Wildcard(type_url) => self.session.subscribe_wildcard(&type_url),
            Command::Subscribe(type_url, names) => self.session.subscribe(&type_url, &names),
            Command::Unsubscribe(type_url, names) => self.session.unsubscribe(&type_url, &names),
            Command::Ack(id) => self.session.ack(&id),
            Command::Nack(id, message) => self.session.nack(&id, message),
        }
    }

    fn flush(&mut self, sender: &MessageSender) {
        while let Some(request) = self.session.next_request() {
            // The call being over is seen by the receiving side.
            let _ = sender.send(encode_request(&request, &self.config.node));
        }
    }

    fn receive(&mut self, bytes: Bytes) -> Result<(), prost::DecodeError> {
        match self.decode(bytes)? {
            Ok(update) => self.waiting.push_back(Event::Update(update)),
            Err(error) => tracing::warn!(%error, "xDS response not delivered"),
        }
        Ok(())
    }

    fn decode(&mut self, bytes: Bytes) -> Result<Result<Update, SessionError>, prost::DecodeError> {
        Ok(match self.session.protocol() {
            Protocol::Delta => {
                let response = discovery::DeltaDiscoveryResponse::decode(bytes)?;
                self.session.on_delta_response(response)
            }
            Protocol::Sotw => {
                let response = discovery::DiscoveryResponse::decode(bytes)?;
                self.session.on_sotw_response(response)
            }
        })
    }
}
