//! HTTP proxies on the way to an API server: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` as Go's `ProxyFromEnvironment`
//! reads them, and connections through a tunnel (CONNECT).
//!
//! hyper-util brings the tunnel and parses a proxy's URL. It reads `NO_PROXY` as curl does: without ports, with the domain
//! itself in `.example.com`, and with loopback addresses through the proxy. So that part is written here after
//! golang.org/x/net/http/httpproxy. SOCKS and proxies over TLS are not supported: naming one is an error.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Result, bail};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

/// The proxies of the environment.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies {
    https: Option<String>,
    http: Option<String>,
    exceptions: Vec<Exception>,
}

impl Proxies {
    /// Reads the variables: the upper-case name first; an empty variable counts as absent.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Proxies {
        let any = |names: [&str; 2]| {
            let values = names.into_iter().filter_map(&variable);
            values.into_iter().find(|value| !value.is_empty())
        };
        let exceptions = any(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        Proxies {
            https: any(["HTTPS_PROXY", "https_proxy"]),
            http: any(["HTTP_PROXY", "http_proxy"]),
            exceptions: exceptions.split(',').filter_map(Exception::read).collect(),
        }
    }

    /// The proxy for a server.
    ///
    /// # Errors
    /// The proxy's URL cannot be used. The message does not repeat the URL, which may hold a password.
    pub(super) fn to(&self, server: &Uri) -> Result<Option<Intercept>> {
        let (name, proxy) = match server.scheme_str() {
            Some("http") => ("HTTP_PROXY", &self.http),
            _ => ("HTTPS_PROXY", &self.https),
        };
        let Some(proxy) = proxy.as_deref().filter(|_| !self.excepts(server)) else {
            return Ok(None);
        };
        http_proxy(name, proxy).map(Some)
    }

    fn excepts(&self, server: &Uri) -> bool {
        let host = server.host().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let port = port(server);
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_here = host == "localhost" || address.is_some_and(|ip| ip.is_loopback());
        let mut exceptions = self.exceptions.iter();
        is_here || exceptions.any(|exception| exception.matches(&host, port, address))
    }
}

/// The port of a URL, or that of its scheme.
pub(super) fn port(url: &Uri) -> u16 {
    let default = match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    url.port_u16().unwrap_or(default)
}

/// Parses the URL of a proxy; errors call it `name`. A URL without a scheme is of HTTP.
pub(super) fn http_proxy(name: &str, url: &str) -> Result<Intercept> {
    let matcher = Matcher::builder().all(url).build();
    let proxy = matcher.intercept(&Uri::from_static("https://any"));
    match proxy.filter(|proxy| proxy.uri().scheme_str() == Some("http")) {
        Some(proxy) => Ok(proxy),
        None => bail!("{name} has no usable proxy: only http://HOST:PORT is supported"),
    }
}

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// Names with this suffix, which begins with a dot; with the flag, also the name after the dot.
    Domain(String, bool, Option<u16>),
}

impl Exception {
    fn read(entry: &str) -> Option<Exception> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Exception::All);
        }
        if let Ok(network) = entry.parse() {
            return Some(Exception::Network(network));
        }
        let (host, port) = split_port(&entry);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Exception::Address(address.to_canonical(), port));
        }
        let host = match host.strip_prefix("*.") {
            Some(domain) => format!(".{domain}"),
            None => host.to_owned(),
        };
        match host.strip_prefix('.') {
            Some(_) => Some(Exception::Domain(host, false, port)),
            None if host.is_empty() => None,
            None => Some(Exception::Domain(format!(".{host}"), true, port)),
        }
    }

    fn matches(&self, host: &str, to: u16, address: Option<IpAddr>) -> bool {
        let is_port = |port: &Option<u16>| port.is_none_or(|port| port == to);
        match self {
            Exception::All => true,
            Exception::Network(network) => address.is_some_and(|ip| network.contains(&ip)),
            Exception::Address(ip, port) => address == Some(*ip) && is_port(port),
            Exception::Domain(suffix, itself, port) => {
                let is_itself = *itself && Some(host) == suffix.strip_prefix('.');
                address.is_none() && (is_itself || host.ends_with(suffix.as_str())) && is_port(port)
            }
        }
    }
}

/// `host:port` and `[address]:port`; anything else is a host. An IPv6 address without brackets has no port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let Some((host, port)) = entry.rsplit_once(':') else {
        return (entry, None);
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match (bare, port.parse()) {
        (Some(host), Ok(port)) => (host, Some(port)),
        (None, Ok(port)) if !host.contains(':') => (host, Some(port)),
        _ => (entry, None),
    }
}

/// Connects to the server, or to a proxy that connects to it.
#[derive(Clone)]
pub(super) enum Connector {
    Direct(HttpConnector),
    Tunnel(Tunnel<HttpConnector>),
}

impl Connector {
    pub(super) fn new(tcp: HttpConnector, proxy: Option<&Intercept>) -> Connector {
        let Some(proxy) = proxy else {
            return Connector::Direct(tcp);
        };
        let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
        Connector::Tunnel(match proxy.basic_auth() {
            Some(password) => tunnel.with_auth(password.clone()),
            None => tunnel,
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Connector::Direct(tcp) => tcp.poll_ready(context).map_err(Into::into),
            Connector::Tunnel(tunnel) => tunnel.poll_ready(context).map_err(Into::into),
        }
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        match self {
            Connector::Direct(tcp) => {
                let connecting = tcp.call(server);
                Box::pin(async { Ok(connecting.await?) })
            }
            Connector::Tunnel(tunnel) => {
                let connecting = tunnel.call(server);
                Box::pin(async { Ok(connecting.await?) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host and port of the proxy for a server, with these variables.
    fn proxy(variables: &[(&str, &str)], server: &str) -> Option<String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let proxy = Proxies::of(value).to(&server.parse().unwrap()).unwrap()?;
        Some(proxy.uri().authority().unwrap().to_string())
    }

    #[test]
    fn scheme_decides_the_proxy_and_upper_case_comes_first() {
        let both = [("HTTPS_PROXY", "p:1"), ("HTTP_PROXY", "http://q:2")];
        assert_eq!(proxy(&both, "https://a:6443").unwrap(), "p:1");
        assert_eq!(proxy(&both, "http://a:6443").unwrap(), "q:2");
        let cases = [("https_proxy", "low:1"), ("HTTPS_PROXY", "up:1")];
        assert_eq!(proxy(&cases, "https://a").unwrap(), "up:1");
        let empty = [("https_proxy", "low:1"), ("HTTPS_PROXY", "")];
        assert_eq!(proxy(&empty, "https://a").unwrap(), "low:1");
        assert_eq!(
            proxy(&[("ALL_PROXY", "p:1")], "https://a"),
            None,
            "not Go's"
        );
    }

    /// The table of golang.org/x/net/http/httpproxy's documentation, row by row.
    #[test]
    fn no_proxy_means_what_it_means_to_go() {
        let rows = [
            ("*", "https://10.0.0.1", true),
            ("*", "https://any.where", true),
            ("a, *", "https://any.where", true),
            ("10.0.0.0/8", "https://10.9.9.9:6443", true),
            ("10.1.2.3/8", "https://10.9.9.9:6443", true),
            ("10.0.0.0/8", "https://11.0.0.1", false),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            ("10.0.0.1", "https://10.0.0.1:6443", true),
            ("10.0.0.1:6443", "https://10.0.0.1:6443", true),
            ("10.0.0.1:443", "https://10.0.0.1:6443", false),
            ("10.0.0.1:443", "https://10.0.0.1", true),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", true),
            ("fd00::1", "https://[fd00::1]:6443", true),
            ("example.com", "https://example.com", true),
            ("example.com", "https://API.Example.com", true),
            ("example.com", "https://notexample.com", false),
            (".example.com", "https://api.example.com", true),
            (".example.com", "https://example.com", false),
            ("*.example.com", "https://api.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("example.com:6443", "https://api.example.com:6443", true),
            ("example.com:6443", "https://api.example.com", false),
            (" , :80,", "https://api.example.com", false),
            ("", "https://localhost:6443", true),
            ("", "https://127.0.0.2:6443", true),
            ("", "https://[::1]:6443", true),
            ("", "https://api.example.com", false),
        ];
        for (exceptions, server, direct) in rows {
            let variables = [("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", exceptions)];
            let found = proxy(&variables, server);
            assert_eq!(found.is_none(), direct, "NO_PROXY={exceptions:?} {server}");
        }
    }

    #[test]
    fn unusable_proxy_is_an_error_that_hides_its_password() {
        for url in [
            "socks5://u:secret@p:1",
            "https://u:secret@p:1",
            "ht tp://secret",
        ] {
            let proxies = Proxies::of(|name| (name == "HTTPS_PROXY").then(|| url.to_owned()));
            let error = proxies.to(&Uri::from_static("https://a")).unwrap_err();
            let text = format!("{error:#}");
            assert!(
                text.contains("HTTPS_PROXY") && !text.contains("secret"),
                "{text}"
            );
            assert!(
                proxies
                    .to(&Uri::from_static("https://[::1]"))
                    .unwrap()
                    .is_none()
            );
        }
    }
}
