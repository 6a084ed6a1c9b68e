//! Builds the client: whose cluster, with which credentials, over connections that notice when they die.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Uri;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceExt};

/// A dead peer is found after the first of these plus so many probes: 30 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// What we sent must be acknowledged within this time.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The kernel repeats what opens a connection after 1 s and 3 s; a path that works again is found by a new attempt
/// sooner than by its next ones.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Long enough for the pages of a list, too short for a connection to die in the pool unnoticed.
const POOL_IDLE: Duration = Duration::from_secs(5);

/// How to reach an API server.
pub struct Server {
    /// The client.
    pub client: Client,
    /// The same for what is written: each request has a connection of its own, which is not kept. Kept ones are dead when the
    /// node has changed its address, which is just when an overlay writes.
    pub writer: Client,
    /// Where it connects to, unless that is a name.
    pub address: Option<SocketAddr>,
}

/// A client for the cluster that a kubeconfig's current context names, or for the one we run in.
///
/// Token files and the cluster's CA file are read anew while it lives (kube: at least each minute). Pauses and
/// repetitions after failures are the caller's.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Server> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("could not read the kubeconfig {path:?}"))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("could not use the kubeconfig {path:?}"))?
        }
        None => Config::incluster().context(
            "this is not a pod of a cluster, or one without a service account: name a cluster with --kubeconfig, \
             or a folder of manifests with --manifests",
        )?,
    };
    let address = address(&config.cluster_url);
    let connect = |kept| {
        connect(config.clone(), kept).context("could not set up the connection to the API server")
    };
    Ok(Server {
        client: connect(usize::MAX)?,
        writer: connect(0)?,
        address,
    })
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
/// connections that were idle for up to 90 s. At most so many are `kept`.
fn connect(config: Config, kept: usize) -> Result<Client> {
    if config.proxy_url.is_some() {
        bail!("a proxy on the way to the API server is not supported (proxy-url)");
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
    fn an_api_server_has_an_address_unless_it_has_a_name() {
        let found = |url: &'static str| address(&Uri::from_static(url)).map(|a| a.to_string());
        assert_eq!(found("https://10.0.0.1:6443").unwrap(), "10.0.0.1:6443");
        assert_eq!(found("https://10.0.0.1/").unwrap(), "10.0.0.1:443");
        assert_eq!(found("http://[fd00::1]").unwrap(), "[fd00::1]:80");
        assert_eq!(found("https://api.example.com:6443"), None);
    }
}
