//! Builds the clients of a cluster's API servers.
//!
//! Leaves finding the servers to [`super::locate`], connections to [`super::server`], and retries to the caller.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use http::Uri;

use super::locate::{Environment, ServerSource, locate};
use super::proxy::port;
use super::remembered::Memory;
use super::request::{ApiClient, RequestObserver};
use super::server::{Server, Template};
use super::servers::Servers;

/// Clients of one cluster's API servers.
pub struct ApiServer {
    /// For lists, watches and reads.
    pub reader: ApiClient,
    /// For writes: each request has a connection of its own. A connection that is kept is dead when the node has changed its
    /// address, which is just when an overlay writes.
    pub writer: ApiClient,
    /// The first address to which the clients connect, unless the URL has a host name.
    pub address: Option<SocketAddr>,
}

/// Clients for the cluster that the configuration, or else this pod, belongs to. `observer` is called after each request.
///
/// # Errors
/// The configuration cannot be used. A server that cannot be reached is no error.
pub async fn connect(source: &ServerSource, observer: RequestObserver) -> Result<ApiServer> {
    connect_from(source, observer, &Environment::of_this_process()).await
}

pub(super) async fn connect_from(
    source: &ServerSource,
    observer: RequestObserver,
    environment: &Environment,
) -> Result<ApiServer> {
    let located = locate(source, environment).await?;
    let mut servers = Vec::new();
    let cluster_ip = environment.cluster_ip.as_deref();
    for candidate in &located.candidates {
        servers.push(Server::new(candidate, cluster_ip)?);
    }
    let first = located.candidates.first().context("no API server")?;
    let address = address(&first.config.cluster_url);
    let names: Vec<&str> = servers.iter().map(|server| &*server.name).collect();
    tracing::info!(servers = names.join(", "), "found the API server");
    // Only TLS proves that a server at another address belongs to the same cluster.
    let may_learn = located.may_learn && first.config.cluster_url.scheme_str() == Some("https");
    let learning = may_learn.then(|| {
        let template = Template::new(first.clone(), environment.proxies.clone());
        (template, Memory::new(environment.memory.clone()))
    });
    let servers = Arc::new(Servers::new(servers, learning));
    Ok(ApiServer {
        reader: ApiClient::reader(servers.clone(), observer.clone()),
        writer: ApiClient::writer(servers, observer),
        address,
    })
}

fn address(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(host, port(url)))
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
