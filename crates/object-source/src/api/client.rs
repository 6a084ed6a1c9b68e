//! Builds the clients: which cluster, which credentials, and connections that notice a dead peer.
//!
//! Leaves pauses and repetitions after failures to the caller.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::Uri;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceExt};

use super::request::ApiClient;

/// A dead peer is found after [`KEEPALIVE_IDLE`] and all probes: 30 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// The peer must acknowledge sent data within this time.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The kernel repeats a SYN after 1 s and 3 s; after that a new attempt finds a repaired path sooner than the kernel does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Long enough for the pages of a list, too short for a connection to die in the pool unnoticed.
const POOL_IDLE: Duration = Duration::from_secs(5);

/// Clients of one API server.
pub struct ApiServer {
    /// For lists, watches and reads.
    pub reader: ApiClient,
    /// For writes: each request has a connection of its own. A connection that is kept is dead when the node has changed its
    /// address, which is just when an overlay writes.
    pub writer: ApiClient,
    /// The address to which the clients connect, unless the URL has a host name.
    pub address: Option<SocketAddr>,
}

/// Clients for the cluster of a kubeconfig's current context, or for the cluster of this pod.
///
/// Token files and the cluster's CA file are read again while the clients live (kube: at least each minute).
pub async fn connect(kubeconfig: Option<&Path>) -> Result<ApiServer> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {path:?}"))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use the kubeconfig {path:?}"))?
        }
        None => Config::incluster().map_err(|error| no_cluster(&error))?,
    };
    let url: Arc<str> = config.cluster_url.to_string().trim_end_matches('/').into();
    let client = |kept| {
        let http = http_client(config.clone(), kept)
            .with_context(|| format!("cannot set up connections to the API server at {url}"))?;
        anyhow::Ok(ApiClient::new(http, url.clone()))
    };
    Ok(ApiServer {
        reader: client(usize::MAX)?,
        writer: client(0)?,
        address: address(&config.cluster_url),
    })
}

fn no_cluster(error: &InClusterError) -> anyhow::Error {
    let reason = match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "KUBERNETES_SERVICE_HOST is not set".to_owned()
        }
        error => error.to_string(),
    };
    anyhow!(
        "no API server: not running in a pod with a service account ({reason}). Use --kubeconfig FILE or --manifests DIR."
    )
}

fn address(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_matches(['[', ']']).parse().ok()?;
    let default = match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    Some(SocketAddr::new(host, url.port_u16().unwrap_or(default)))
}

/// kube's own stack with other connections: its connector has no keep-alive, and its pool hands out
/// connections that were idle for up to 90 s. The pool keeps at most `kept` of them.
fn http_client(config: Config, kept: usize) -> Result<Client> {
    if config.proxy_url.is_some() {
        bail!("proxy-url is not supported; remove it from the kubeconfig");
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(tcp)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_with_an_ip_has_an_address_and_one_with_a_name_has_none() {
        let found = |url: &'static str| address(&Uri::from_static(url)).map(|a| a.to_string());
        assert_eq!(found("https://10.0.0.1:6443").unwrap(), "10.0.0.1:6443");
        assert_eq!(found("https://10.0.0.1/").unwrap(), "10.0.0.1:443");
        assert_eq!(found("http://[fd00::1]").unwrap(), "[fd00::1]:80");
        assert_eq!(found("https://api.example.com:6443"), None);
    }
}
