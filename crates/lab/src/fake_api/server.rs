//! The listening side: connections and routes, on a thread of its own, so that neither a test's runtime nor its network
//! namespace matters.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Parameters};
use super::body::Pieces;
use super::faults::{Fault, Verb};
use super::nodes;
use super::state::{Refusal, Seen, Server, lock};
use super::store::Resource;

type Reply = Response<Either<Full<Bytes>, Pieces>>;

impl Server {
    /// Accepts until `stop` resolves.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        mut stop: watch::Receiver<bool>,
    ) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => continue,
                },
                _ = stop.changed() => return,
            };
            self.count_connection();
            // Before it is known to be reachable: a server that becomes unreachable now breaks this connection as well.
            let breaks = self.breaks.subscribe();
            if self.settings().reachable {
                tokio::spawn(Arc::clone(&self).connection(stream, tls.clone(), breaks));
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        mut breaks: watch::Receiver<()>,
    ) {
        let _ = stream.set_nodelay(true);
        let connection = async move {
            match tls {
                None => self.requests(stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        self.requests(stream).await;
                    }
                }
            }
        };
        tokio::select! {
            // First: all tasks share one thread, so what a watch writes after a break is not sent.
            biased;
            _ = breaks.changed() => {}
            () = connection => {}
        }
    }

    async fn requests<S>(self: Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request| Arc::clone(&self).answer(request));
        // A connection that breaks is the client's to notice.
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Reply, Infallible> {
        let path = request.uri().path().to_owned();
        let node = nodes::node_of(&path).filter(|_| self.settings().node_patches);
        let outcome = if let Some(node) = node {
            self.answer_about_node(node, request).await
        } else if let Some(pod) = nodes::pod_of(&self, &path) {
            let body = Bytes::from(pod.to_string());
            Ok(reply(200, None, Either::Left(body.into())))
        } else if request.method() == Method::POST && path == nodes::EVENTS {
            self.take_event(request).await
        } else {
            let body = match self.route(&request) {
                Ok((resource, verb, parameters)) => self.serve(resource, verb, &parameters).await,
                Err(refusal) => Err(refusal),
            };
            body.map(|body| reply(200, None, Either::Right(body)))
        };
        Ok(outcome.unwrap_or_else(|refusal| refused(&refusal)))
    }

    async fn answer_about_node(
        &self,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let node = match *request.method() {
            Method::GET => {
                self.saw(&request, Resource::Nodes, Verb::Get, BTreeMap::new());
                self.strike(Resource::Nodes, Verb::Get).await?;
                nodes::get(self, name)
            }
            Method::PATCH => match json_body(request).await {
                Some(patch) => nodes::patch(self, name, &patch),
                None => Err(Refusal::new(400, "not a patch")),
            },
            _ => Err(Refusal::new(405, "read and patched only")),
        }?;
        let body = Bytes::from(node.to_string());
        self.count_bytes(body.len());
        Ok(reply(200, None, Either::Left(body.into())))
    }

    async fn take_event(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let event = json_body(request).await;
        let event = event.ok_or_else(|| Refusal::new(400, "not an event"))?;
        let text = event.to_string();
        lock(&self.events).push(event);
        Ok(reply(201, None, Either::Left(text.into())))
    }

    fn route(&self, request: &Request<Incoming>) -> Result<(Resource, Verb, Parameters), Refusal> {
        let path = request.uri().path();
        let resource = Resource::ALL
            .into_iter()
            .find(|resource| resource.path() == path);
        let Some(resource) = resource.filter(|_| request.method() == Method::GET) else {
            self.count_forbidden();
            return Err(Refusal::new(
                403,
                format!("{} {path} is not allowed", request.method()),
            ));
        };
        let parameters = Parameters {
            query: parameters(request),
            metadata_only: metadata_only(request),
        };
        let verb = if parameters.is_true("watch") {
            Verb::Watch
        } else {
            Verb::List
        };
        self.saw(request, resource, verb, parameters.query.clone());
        let settings = self.settings();
        if settings
            .token
            .as_ref()
            .is_some_and(|t| text(request.headers(), AUTHORIZATION) != format!("Bearer {t}"))
        {
            return Err(Refusal::new(401, "Unauthorized"));
        }
        Ok((resource, verb, parameters))
    }

    fn saw(
        &self,
        request: &Request<Incoming>,
        resource: Resource,
        verb: Verb,
        parameters: BTreeMap<String, String>,
    ) {
        self.record(Seen {
            at: Instant::now(),
            resource,
            verb,
            parameters,
            user_agent: text(request.headers(), USER_AGENT),
            metadata_only: metadata_only(request),
        });
    }

    /// Draws the fault of a request. Refusals and hangs happen here, other faults are returned.
    async fn strike(&self, resource: Resource, verb: Verb) -> Result<Option<Fault>, Refusal> {
        let fault = lock(&self.faults).draw(resource, verb);
        match fault {
            Some(Fault::Status { code, retry_after }) => Err(Refusal {
                retry_after,
                ..Refusal::new(code, "refused on purpose")
            }),
            Some(Fault::Hang) => std::future::pending().await,
            fault => Ok(fault),
        }
    }

    async fn serve(
        self: &Arc<Self>,
        resource: Resource,
        verb: Verb,
        parameters: &Parameters,
    ) -> Result<Pieces, Refusal> {
        let fault = self.strike(resource, verb).await?;
        match verb {
            Verb::List => answer::list(self, resource, parameters, fault),
            _ => answer::watch(self, resource, parameters, fault),
        }
    }
}

fn reply(code: u16, retry_after: Option<u64>, body: Either<Full<Bytes>, Pieces>) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

async fn json_body(request: Request<Incoming>) -> Option<Value> {
    let body = request.into_body().collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}

fn refused(refusal: &Refusal) -> Reply {
    let body = Either::Left(refusal.status().into());
    reply(refusal.code, refusal.retry_after, body)
}

fn metadata_only(request: &Request<Incoming>) -> bool {
    text(request.headers(), ACCEPT).contains("as=PartialObjectMetadata")
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// The parameters of the query.
fn parameters(request: &Request<Incoming>) -> BTreeMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}
