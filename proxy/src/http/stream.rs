//! One request from its head to its log line: prepare, route, filters, then forward, redirect or answer. The
//! place where every response leaves, whoever made it.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use outrigger_config::http::{HttpFilterKind, PerFilter, ServerHeader};
use outrigger_config::route::{HeaderMutations, PathMatch, RequireTls, RouteAction};

use crate::access_log::LogContext;
use crate::error::Flag;
use crate::http::conn_manager::HttpConnectionManager;
use crate::http::date;
use crate::http::downstream::{Downstream, DownstreamError};
use crate::http::filters::cors::CorsState;
use crate::http::filters::{self, cors, fault};
use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::request::{self, Facts};
use crate::http::route::Selected;
use crate::http::{mutate, redirect, router};
use crate::listener::drain::Drain;
use crate::stream_info::{Protocol, StreamInfo};
use crate::upstream::cluster::Cluster;
use crate::worker::Worker;

/// A request as its codec read it.
#[derive(Debug)]
pub struct Incoming {
    /// Head.
    pub headers: Headers,
    /// A body follows.
    pub has_body: bool,
    /// Value of `upgrade` when the connection header lists it.
    pub upgrade: Option<Vec<u8>>,
    /// `expect: 100-continue`.
    pub expect_continue: bool,
    /// Scheme of an absolute target.
    pub scheme: Option<Vec<u8>>,
    /// The connection ends after this request (drain, request limit).
    pub leave: bool,
}

/// A request under way.
pub struct RequestStream<'a, D> {
    /// Connection manager.
    pub hcm: &'a Arc<HttpConnectionManager>,
    /// Worker.
    pub worker: &'a Rc<Worker>,
    /// Where the response goes.
    pub down: &'a D,
    /// The record.
    pub info: StreamInfo,
    /// Request head, changed on its way.
    pub request: Headers,
    /// Response head as sent.
    pub response: Headers,
    /// Response trailers as sent.
    pub trailers: Headers,
    /// What preparation found.
    pub facts: Facts,
    /// The request body has been read to its end.
    pub request_done: bool,
    /// The route, once chosen.
    pub selected: Option<Selected>,
    /// CORS decision.
    pub cors: CorsState,
    /// Header changes of the chosen weighted cluster.
    pub weighted_headers: Option<HeaderMutations>,
    /// Index of the chosen weighted cluster.
    pub weighted: Option<usize>,
    /// The cluster, once the route named one that is there.
    pub cluster: Option<Arc<Cluster>>,
    /// Metadata headers of the upstream are removed from the answer.
    pub hide_peer_metadata: bool,
    /// Upgrade type under way.
    pub upgrade: Option<Vec<u8>>,
    /// The client expects 100.
    pub expect_continue: bool,
    /// Some of the response has been sent.
    pub response_started: bool,
    leave: bool,
    drain: &'a Drain,
}

/// How serving a request ended.
#[derive(Debug)]
pub enum Failure {
    /// Answer it with this.
    Reply(LocalReply),
    /// The client went away.
    Downstream(DownstreamError),
    /// The response was cut after it had started; details and flag are in the record.
    Cut,
}

impl From<LocalReply> for Failure {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(reply)
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Downstream(DownstreamError::Disconnected)
    }
}

/// Removes what Istio's metadata exchange puts into heads.
pub fn remove_peer_metadata(headers: &mut Headers) {
    for name in [&b"x-envoy-peer-metadata"[..], b"x-envoy-peer-metadata-id"] {
        headers.remove(name);
    }
}

/// Serves one request.
pub async fn handle<D: Downstream>(
    hcm: &Arc<HttpConnectionManager>,
    worker: &Rc<Worker>,
    down: &D,
    info: StreamInfo,
    incoming: Incoming,
    drain: &Drain,
) {
    hcm.stats.rq_total.inc();
    hcm.stats.rq_active.add(1);
    let mut stream = RequestStream {
        hcm,
        worker,
        down,
        info,
        request: incoming.headers,
        response: Headers::new(),
        trailers: Headers::new(),
        facts: Facts::default(),
        request_done: !incoming.has_body,
        selected: None,
        cors: CorsState::default(),
        weighted_headers: None,
        weighted: None,
        cluster: None,
        hide_peer_metadata: false,
        upgrade: incoming.upgrade,
        expect_continue: incoming.expect_continue,
        response_started: false,
        leave: incoming.leave,
        drain,
    };
    if let Some(scheme) = incoming.scheme.filter(|_| hcm.config.allow_absolute_url) {
        stream.request.set_scheme(&scheme);
    }
    if stream.request_done {
        stream.info.request_end = Some(stream.info.start);
    }
    if let Err(failure) = stream.serve().await {
        stream.fail(failure).await;
    }
    stream.record();
}

/// Answers a head that was refused by the codec.
pub async fn refuse<D: Downstream>(
    hcm: &Arc<HttpConnectionManager>,
    worker: &Rc<Worker>,
    down: &D,
    info: StreamInfo,
    reply: LocalReply,
) {
    let handle = crate::listener::drain::DrainHandle::default();
    let drain = handle.subscribe();
    hcm.stats.rq_total.inc();
    hcm.stats.rq_active.add(1);
    let mut stream = RequestStream {
        hcm,
        worker,
        down,
        info,
        request: Headers::new(),
        response: Headers::new(),
        trailers: Headers::new(),
        facts: Facts::default(),
        request_done: true,
        selected: None,
        cors: CorsState::default(),
        weighted_headers: None,
        weighted: None,
        cluster: None,
        hide_peer_metadata: false,
        upgrade: None,
        expect_continue: false,
        response_started: false,
        leave: true,
        drain: &drain,
    };
    stream.fail(Failure::Reply(reply)).await;
    stream.record();
}

impl<D: Downstream> RequestStream<'_, D> {
    async fn serve(&mut self) -> Result<(), Failure> {
        let config = &self.hcm.config;
        let protocol = self.info.protocol.unwrap_or(Protocol::Http11);
        request::underscores(&mut self.request, config.underscores, protocol)?;
        request::validate(&mut self.request, config, protocol).inspect_err(|reply| {
            if reply.details == "absolute_path_rejected" {
                self.hcm.stats.rq_non_relative_path.inc();
            }
        })?;
        self.check_upgrade();
        let worker = self.worker;
        self.facts = request::prepare(
            &mut self.request,
            config,
            &worker.store.options,
            &mut self.info,
            self.upgrade.is_some(),
            || worker.random(),
        )?;
        self.answer_expectation().await?;
        self.route()?;
        self.filter().await?;
        self.act().await
    }

    /// `h2c` is ignored; whether another type is allowed is the route's business.
    fn check_upgrade(&mut self) {
        if self
            .upgrade
            .as_ref()
            .is_some_and(|u| u.eq_ignore_ascii_case(b"h2c"))
        {
            self.upgrade = None;
        }
    }

    async fn answer_expectation(&mut self) -> Result<(), Failure> {
        if !self.expect_continue || self.hcm.config.proxy_100_continue {
            return Ok(());
        }
        self.expect_continue = false;
        self.request.remove(b"expect");
        let mut head = Headers::new();
        head.set_status(100);
        self.down.send_informational(&head).await?;
        Ok(())
    }

    fn no_route(&self) -> LocalReply {
        self.hcm.stats.no_route.inc();
        let reply = LocalReply::new(404, "route_not_found").flag(Flag::NoRouteFound);
        if self.request.method() == b"CONNECT" {
            reply.close()
        } else {
            reply
        }
    }

    /// Chooses the virtual host and the route.
    fn route(&mut self) -> Result<(), LocalReply> {
        let worker = self.worker;
        let table = self.hcm.routes().ok_or_else(|| self.no_route())?;
        let vhost = table
            .virtual_host(self.request.authority())
            .ok_or_else(|| self.no_route())?;
        if self.needs_https(table.config.virtual_hosts[vhost].require_tls) {
            return Err(redirect::to_https(&self.request));
        }
        let selected = table
            .select(vhost, &self.request, || worker.random())
            .ok_or_else(|| self.no_route())?;
        let route = selected.route();
        if self.request.method() == b"CONNECT" && !matches!(route.matcher.path, PathMatch::Connect)
        {
            return Err(self.no_route());
        }
        if !route.name.is_empty() {
            self.info.route_name = Some(Arc::clone(&route.name));
        }
        if let RouteAction::Forward(forward) = &route.action {
            let target = selected.target(forward, &self.request, &worker.store, worker.random());
            self.weighted_headers = target.weighted.map(|w| w.headers.clone());
            self.weighted = target.weighted_index;
            self.cluster = target.slot.and_then(|slot| slot.load());
            if let Some(cluster) = &self.cluster {
                self.info.upstream.cluster = Some(Arc::clone(cluster.name()));
                self.info.upstream.observability_name =
                    Some(Arc::clone(&cluster.config.observability_name));
            }
        }
        if let Some(kind) = &self.upgrade {
            self.allow_upgrade(&selected, kind)?;
        }
        self.selected = Some(selected);
        Ok(())
    }

    fn needs_https(&self, require: RequireTls) -> bool {
        let plain = self.request.scheme() != b"https";
        match require {
            RequireTls::None => false,
            RequireTls::All => plain,
            RequireTls::ExternalOnly => plain && !self.facts.internal,
        }
    }

    fn allow_upgrade(&self, selected: &Selected, kind: &[u8]) -> Result<(), LocalReply> {
        let same = |name: &str| kind.eq_ignore_ascii_case(name.as_bytes());
        let by_route = match &selected.route().action {
            RouteAction::Forward(f) => f
                .upgrades
                .iter()
                .find(|(name, _)| same(name))
                .map(|(_, on)| *on),
            _ => None,
        };
        let allowed = by_route.unwrap_or_else(|| self.hcm.config.upgrades.iter().any(|u| same(u)));
        if allowed {
            return Ok(());
        }
        self.hcm.stats.rq_ws_on_non_ws_route.inc();
        Err(LocalReply::new(403, "upgrade_failed").close())
    }

    /// Runs the filters before the router.
    async fn filter(&mut self) -> Result<(), Failure> {
        let Some(selected) = self.selected.clone() else {
            return Ok(());
        };
        let hcm = Arc::clone(self.hcm);
        for filter in &hcm.config.filters {
            let per_route = filters::per_route(&selected, &filter.name);
            let disabled = match per_route {
                Some(PerFilter::Disabled) => true,
                Some(_) => false,
                None => filter.disabled,
            };
            if disabled {
                continue;
            }
            match &filter.kind {
                HttpFilterKind::Cors => self.filter_cors(&selected, per_route)?,
                HttpFilterKind::Fault(own) => {
                    let fault = match per_route {
                        Some(PerFilter::Fault(fault)) => Some(fault),
                        _ => own.as_ref(),
                    };
                    if let Some(fault) = fault {
                        self.filter_fault(&hcm, fault).await?;
                    }
                }
                HttpFilterKind::PeerMetadata => {
                    self.hide_peer_metadata = true;
                    remove_peer_metadata(&mut self.request);
                }
                // The ALPN filter acts when the upstream connection is made, message counts change nothing.
                HttpFilterKind::IstioAlpn(_) | HttpFilterKind::GrpcStats => {}
            }
        }
        Ok(())
    }

    fn filter_cors(
        &mut self,
        selected: &Selected,
        per_route: Option<&PerFilter>,
    ) -> Result<(), LocalReply> {
        let policy = match (per_route, &selected.route().action) {
            (Some(PerFilter::Cors(policy)), _) => Some(policy),
            (_, RouteAction::Forward(forward)) => forward.cors.as_ref(),
            _ => None,
        };
        let Some(policy) = policy else { return Ok(()) };
        if policy
            .enabled
            .is_some_and(|p| !crate::http::route::hit(p, self.worker.random()))
        {
            return Ok(());
        }
        self.cors = cors::decode(policy, &self.request)?;
        Ok(())
    }

    async fn filter_fault(
        &mut self,
        hcm: &HttpConnectionManager,
        fault: &outrigger_config::http::Fault,
    ) -> Result<(), Failure> {
        let injection = fault::decide(fault, &self.request, || self.worker.random());
        if injection.delay.is_none() && injection.abort.is_none() {
            return Ok(());
        }
        let Some(_active) = hcm.faults.enter(fault.max_active_faults) else {
            return Ok(());
        };
        if let Some(delay) = injection.delay {
            self.info.flags.set(Flag::DelayInjected);
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                gone = self.down.gone(), if self.request_done => {
                    return Err(Failure::Downstream(gone));
                }
            }
        }
        injection.abort.map_or(Ok(()), |reply| Err(reply.into()))
    }

    /// Does what the route says.
    async fn act(&mut self) -> Result<(), Failure> {
        let Some(selected) = self.selected.clone() else {
            return Ok(());
        };
        match &selected.route().action {
            RouteAction::Forward(forward) => router::forward(self, &selected, forward).await,
            RouteAction::Redirect(action) => {
                self.hcm.stats.rq_redirect.inc();
                let location = redirect::location(action, selected.route(), &self.request);
                Err(LocalReply::new(action.response_code, "direct_response")
                    .header("location", location)
                    .into())
            }
            RouteAction::Direct(direct) => {
                self.hcm.stats.rq_direct_response.inc();
                let body = String::from_utf8_lossy(&direct.body).into_owned();
                Err(LocalReply::new(direct.status, "direct_response")
                    .body(body)
                    .into())
            }
        }
    }

    /// Ends a request that was not answered by an upstream.
    pub async fn fail(&mut self, failure: Failure) {
        match failure {
            Failure::Reply(reply) if !self.response_started => {
                // Whether the client still listens shows at the next read; the log line is the same.
                let _ = self.send_local(reply).await;
            }
            Failure::Reply(reply) => {
                if let Some(flag) = reply.flag {
                    self.info.flags.set(flag);
                }
                self.info.details = reply.details;
                self.down.abort();
            }
            Failure::Downstream(error) => {
                let (flag, details) = match error {
                    DownstreamError::Disconnected => (
                        Flag::DownstreamConnectionTermination,
                        "downstream_remote_disconnect",
                    ),
                    DownstreamError::Reset => {
                        (Flag::DownstreamRemoteReset, "downstream_remote_reset")
                    }
                    DownstreamError::Protocol(error) => {
                        if !self.response_started {
                            let reply = crate::http::conn_manager::body_refusal(error);
                            let _ = self.send_local(reply).await;
                        }
                        self.down.close_after(true);
                        return;
                    }
                };
                self.info.flags.set(flag);
                self.info.details = Cow::Borrowed(details);
                self.down.abort();
            }
            Failure::Cut => self.down.abort(),
        }
    }

    async fn send_local(&mut self, reply: LocalReply) -> io::Result<()> {
        if let Some(flag) = reply.flag {
            self.info.flags.set(flag);
        }
        self.info.details = reply.details.clone();
        // An unread body would be taken for the next request.
        if reply.close || !self.request_done {
            self.down.close_after(true);
        }
        let grpc = crate::http::local_reply::is_grpc(&self.request);
        let (headers, body) = reply.into_response(grpc);
        self.response = headers;
        if let Some(selected) = self.selected.clone() {
            self.change_response(&selected);
        }
        self.cors.encode(&mut self.response);
        self.finish_head();
        let head_only = body.is_empty();
        self.send_head(head_only).await?;
        if !head_only && self.request.method() != b"HEAD" {
            self.info.bytes_sent += body.len() as u64;
            self.down
                .send_data(Bytes::copy_from_slice(body.as_bytes()))
                .await?;
        }
        if !head_only {
            self.down.finish(None).await?;
        }
        self.info.end = Some(Instant::now());
        Ok(())
    }

    /// Applies the response header changes of the route's levels.
    pub fn change_response(&mut self, selected: &Selected) {
        let levels = selected.header_levels(self.weighted_headers.as_ref());
        mutate::response(&mut self.response, &levels, &self.info, &self.request);
    }

    /// What every response gets on its way out.
    pub fn finish_head(&mut self) {
        let config = &self.hcm.config;
        self.info.response_code = self.response.status();
        if config.always_set_request_id_in_response
            && let Some(id) = self.request.get(b"x-request-id")
        {
            self.response.set(b"x-request-id", id);
        }
        if let Some(via) = &config.via {
            request::append_via(&mut self.response, via);
        }
        if config.tracing.is_some() {
            self.decorate();
        }
        if !self.response.contains(b"date") {
            date::with_now(|text| self.response.append(b"date", text));
        }
        let name = config.server_name.as_bytes();
        match config.server_header_transformation {
            ServerHeader::Overwrite => self.response.set(b"server", name),
            ServerHeader::AppendIfAbsent => self.response.set_if_absent(b"server", name),
            ServerHeader::PassThrough => {}
        }
        if self.leave || self.drain.is_draining() {
            self.hcm.stats.cx_drain_close.inc();
            self.down.close_after(false);
        }
    }

    /// The decorator header: written for requests that enter the workload, consumed for those that leave it.
    fn decorate(&mut self) {
        const NAME: &[u8] = b"x-envoy-decorator-operation";
        if self.hcm.egress {
            self.response.remove(NAME);
            return;
        }
        let decorator = self
            .selected
            .as_ref()
            .and_then(|s| s.route().decorator.as_ref());
        if let Some(d) = decorator.filter(|d| d.propagate && !d.operation.is_empty()) {
            self.response.set(NAME, d.operation.as_bytes());
        }
    }

    /// Sends the response head.
    pub async fn send_head(&mut self, end: bool) -> io::Result<()> {
        self.response_started = true;
        self.down.send_head(&mut self.response, end).await
    }

    /// Counts and logs the finished request.
    fn record(&mut self) {
        let end = *self.info.end.get_or_insert_with(Instant::now);
        let stats = &self.hcm.stats;
        stats.rq_active.add(-1);
        let millis = end.duration_since(self.info.start).as_millis() as u64;
        stats.completed(self.info.response_code, millis);
        self.hcm.logs.log(&LogContext {
            info: &self.info,
            request: &self.request,
            response: &self.response,
            trailers: &self.trailers,
        });
    }
}
