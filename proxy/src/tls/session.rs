//! Client sessions: several TLS 1.3 tickets per server name and endpoint, shared by all workers. Belongs to
//! one built context and dies with it, so a ticket never outlives the identities it was made with.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Tickets kept per server name and endpoint: they are single-use, and a burst of connections takes many.
const TICKETS: usize = 16;
/// Names and endpoints remembered per context.
const PLACES: usize = 1024;

type Place = (ServerName<'static>, SocketAddr);

#[derive(Debug, Default)]
struct Sessions {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

#[derive(Debug, Default)]
struct Places {
    sessions: HashMap<Place, Sessions>,
    order: VecDeque<Place>,
}

/// Sessions of one context.
#[derive(Debug, Default)]
pub struct SessionCache {
    places: Mutex<Places>,
}

impl SessionCache {
    fn with<T>(&self, place: Place, change: impl FnOnce(&mut Sessions) -> T) -> T {
        let mut places = self.places.lock();
        let places = &mut *places;
        if !places.sessions.contains_key(&place) {
            if places.order.len() >= PLACES
                && let Some(oldest) = places.order.pop_front()
            {
                places.sessions.remove(&oldest);
            }
            places.order.push_back(place.clone());
        }
        change(places.sessions.entry(place).or_default())
    }

    fn peek<T>(&self, place: &Place, read: impl FnOnce(&mut Sessions) -> Option<T>) -> Option<T> {
        self.places.lock().sessions.get_mut(place).and_then(read)
    }
}

/// The view of one connection: the cache with its endpoint.
#[derive(Debug)]
pub struct EndpointSessions {
    /// The context's cache.
    pub cache: Arc<SessionCache>,
    /// Where the connection goes.
    pub endpoint: SocketAddr,
}

impl EndpointSessions {
    fn place(&self, name: &ServerName<'_>) -> Place {
        (name.to_owned(), self.endpoint)
    }
}

impl ClientSessionStore for EndpointSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.cache
            .with((server_name, self.endpoint), |s| s.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.peek(&self.place(server_name), |s| s.group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.cache
            .with((server_name, self.endpoint), |s| s.tls12 = Some(value));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.cache
            .peek(&self.place(server_name), |s| s.tls12.clone())
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.cache
            .peek(&self.place(server_name), |s| s.tls12.take());
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        self.cache.with((server_name, self.endpoint), |s| {
            if s.tickets.len() >= TICKETS {
                s.tickets.pop_front();
            }
            s.tickets.push_back(value);
        });
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        self.cache
            .peek(&self.place(server_name), |s| s.tickets.pop_back())
    }
}
