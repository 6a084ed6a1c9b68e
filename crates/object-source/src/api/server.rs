//! One API server: connections that notice a dead peer, renewed client certificates, and further servers from addresses.
//!
//! Leaves the choice between servers to [`super::servers`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tokio::runtime::Handle;
use tower::{BoxError, ServiceExt};

use super::certificate::CertificateFiles;
use super::locate::Candidate;
use super::proxy::{Connector, Proxies, port};
use super::token::TokenFile;

/// A dead peer is found after [`KEEPALIVE_IDLE`] and all probes: 30 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// The peer must acknowledge sent data within this time.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The kernel repeats a SYN after 1 s and 3 s. After 4 s a new attempt finds a repaired path sooner than the next repetition.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Long enough for the pages of a list, too short for a connection to die in the pool unnoticed.
const POOL_IDLE: Duration = Duration::from_secs(5);

/// Connections to one server.
pub(super) struct Server {
    /// The URL, with its port.
    pub(super) url: Arc<str>,
    /// The URL and the proxy, for messages.
    pub(super) name: Arc<str>,
    clients: ArcSwap<Clients>,
    /// Present if files hold the client certificate.
    renewal: Option<Renewal>,
    /// Read for every request; other credentials are part of the clients.
    pub(super) token: Option<Arc<TokenFile>>,
    /// Whether its address is the cluster IP of Service `default/kubernetes`.
    pub(super) is_cluster_ip: bool,
}

/// Clients of one server, with the credentials of TLS.
pub(super) struct Clients {
    /// For lists, watches and reads.
    pub(super) reader: Client,
    /// For writes: each request has a connection of its own.
    pub(super) writer: Client,
}

impl Clients {
    fn new(candidate: &Candidate) -> Result<Clients> {
        let Candidate { config, proxy } = candidate;
        let client = |kept| http_client(config, Connector::new(tcp(), proxy.as_ref()), kept);
        Ok(Clients {
            reader: client(usize::MAX)?,
            writer: client(0)?,
        })
    }
}

/// Builds clients again when the client certificate has changed.
struct Renewal {
    candidate: Candidate,
    files: CertificateFiles,
    /// Runs the workers of the clients. The runtime of a request may end earlier.
    runtime: Handle,
}

impl Server {
    /// Prepares connections to `candidate`; nothing is sent yet.
    pub(super) fn new(candidate: &Candidate, cluster_ip: Option<&str>) -> Result<Server> {
        let mut candidate = candidate.clone();
        let config = &mut candidate.config;
        let url = &config.cluster_url;
        let host = url
            .host()
            .context("the URL of the API server has no host")?;
        let path = url.path().trim_end_matches('/');
        let scheme = url.scheme_str().unwrap_or("https");
        let name: Arc<str> = format!("{scheme}://{host}:{}{path}", port(url)).into();
        // kube would load the system's CAs even if no certificate is checked, and the image has none. An empty list prevents
        // this, and accepts no certificate.
        if config.root_cert.is_none() && (scheme == "http" || config.accept_invalid_certs) {
            config.root_cert = Some(Vec::new());
        }
        let is_cluster_ip = cluster_ip == Some(host.trim_matches(['[', ']']));
        let auth = &mut config.auth_info;
        let token = match (auth.token.is_some(), auth.token_file.take()) {
            (false, Some(path)) => Some(Arc::new(TokenFile::open(path)?)),
            _ => None,
        };
        let files = CertificateFiles::of(auth);
        let without_ca = match config.root_cert {
            Some(_) => "",
            None => ", which needs the system's CAs, since its kubeconfig names none",
        };
        let clients = Clients::new(&candidate).with_context(|| {
            format!("cannot set up connections to the API server at {name}{without_ca}")
        })?;
        Ok(Server {
            clients: ArcSwap::from_pointee(clients),
            name: match &candidate.proxy {
                Some(proxy) => format!("{name} through the proxy {}", proxy.uri()).into(),
                None => name.clone(),
            },
            renewal: files.map(|files| Renewal {
                candidate,
                files,
                runtime: Handle::current(),
            }),
            url: name,
            token,
            is_cluster_ip,
        })
    }

    /// The clients, with the client certificate that the files hold now.
    pub(super) fn clients(&self) -> Arc<Clients> {
        if let Some(renewal) = &self.renewal {
            renewal.files.if_changed(|| {
                let _entered = renewal.runtime.enter();
                let clients = Clients::new(&renewal.candidate)?;
                self.clients.store(Arc::new(clients));
                Ok(())
            });
        }
        self.clients.load_full()
    }

    /// Host and port.
    pub(super) fn host(&self) -> &str {
        let url = self
            .url
            .split_once("://")
            .map_or(&*self.url, |(_, rest)| rest);
        url.split('/').next().unwrap_or_default()
    }

    /// Adds the token to a request's headers.
    pub(super) fn authorize(&self, headers: &mut http::HeaderMap<HeaderValue>) {
        if let Some(value) = self.token.as_ref().and_then(|token| token.authorization()) {
            headers.insert(AUTHORIZATION, value);
        }
    }
}

/// Builds servers at addresses that the cluster names. They have the configured server's CA and credentials, and must show
/// a certificate for the configured server's name.
pub(super) struct Template {
    candidate: Candidate,
    proxies: Proxies,
}

impl Template {
    pub(super) fn new(mut candidate: Candidate, proxies: Proxies) -> Template {
        let config = &mut candidate.config;
        let host = config.cluster_url.host();
        let host = host.map(|host| host.trim_matches(['[', ']']).to_owned());
        config.tls_server_name = config.tls_server_name.take().or(host);
        Template { candidate, proxies }
    }

    pub(super) fn url(&self, address: SocketAddr) -> Arc<str> {
        format!("https://{address}").into()
    }

    pub(super) fn server(&self, address: SocketAddr) -> Result<Server> {
        let mut candidate = self.candidate.clone();
        candidate.config.cluster_url = self.url(address).parse()?;
        candidate.proxy = self.proxies.to(&candidate.config.cluster_url)?;
        Server::new(&candidate, None)
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    tcp
}

/// kube's layers over our own connections: kube's connector has no keep-alive, and kube's pool hands out connections that
/// were idle for up to 90 s. The pool keeps at most `kept` idle connections.
fn http_client(config: &Config, connector: Connector, kept: usize) -> Result<Client> {
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(kept)
        .build(https);

    let builder = ClientBuilder::new(
        http.map_err(BoxError::from),
        config.default_namespace.clone(),
    )
    .with_layer(&config.extra_headers_layer()?);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&base).build(),
        None => builder.with_layer(&base).build(),
    })
}
