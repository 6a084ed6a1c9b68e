//! Listener addresses.
//!
//! In the file an empty address is the default (`SetDefaults_KubeProxyConfiguration`), which has the family of
//! `bindAddress`; on the command line it switches the listener off. A missing port is appended (`AppendPortIfNeeded`). Of
//! the deprecated `--healthz-port` and `--metrics-port`, 0 switches off, and another number counts for an address that
//! has no port (`addressFromDeprecatedFlags`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::command_line::{CommandLine, Dialect};
use crate::go;
use crate::schema::Settings;
use crate::tables::checks::socket_address;

/// One of the two listeners.
struct Listener {
    path: &'static str,
    port_path: &'static str,
    port: u16,
    wildcard: bool,
}

const HEALTHZ: Listener = Listener {
    path: "healthzBindAddress",
    port_path: "healthzPort",
    port: 10_256,
    wildcard: true,
};

const METRICS: Listener = Listener {
    path: "metricsBindAddress",
    port_path: "metricsPort",
    port: 10_249,
    wildcard: false,
};

/// Addresses for health and for metrics.
pub(crate) fn resolve(
    line: &CommandLine,
    proxy: &Settings,
    warnings: &mut Vec<String>,
) -> (Option<SocketAddr>, Option<SocketAddr>) {
    if line.dialect == Dialect::Flanneld {
        return (flannel_healthz(line), None);
    }
    let is_v6 = go::parse_ip(&proxy.text("bindAddress")).is_some_and(|ip| ip.is_ipv6());
    let mut one = |listener: &Listener| address(listener, &line.command, proxy, is_v6, warnings);
    (one(&HEALTHZ), one(&METRICS))
}

/// Whether the kernel refuses to listen on both. A wildcard listener is dual-stack.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (any || a.ip() == b.ip())
}

fn address(
    listener: &Listener,
    command: &Settings,
    proxy: &Settings,
    is_v6: bool,
    warnings: &mut Vec<String>,
) -> Option<SocketAddr> {
    let port: Option<u16> = command
        .is_given(listener.port_path)
        .then(|| command.number(listener.port_path));
    if port == Some(0) {
        return None;
    }
    let text = match proxy.is_given(listener.path) {
        true => proxy.text(listener.path),
        false => default_ip(listener, is_v6).to_string(),
    };
    let is_bare = proxy.is_given(listener.path) && go::parse_ip(&text).is_some();
    if let (Some(port), false) = (port, is_bare) {
        let setting = command.source(listener.port_path);
        warnings.push(format!(
            "{setting} has no effect, as in kube-proxy: it counts for an address without a port; \
             the port is not {port} unless the address says so"
        ));
    }
    let port = port.filter(|_| is_bare).unwrap_or(listener.port);
    socket_address(&text, port)
}

fn default_ip(listener: &Listener, is_v6: bool) -> IpAddr {
    match (is_v6, listener.wildcard) {
        (false, true) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (false, false) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (true, true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (true, false) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// flanneld listens only when it is given a port.
fn flannel_healthz(line: &CommandLine) -> Option<SocketAddr> {
    let port = line
        .command
        .is_given("healthzPort")
        .then(|| line.command.number("healthzPort"))
        .filter(|port| *port > 0)?;
    let address = go::parse_ip(&line.command.text("healthzIp"))?;
    Some(SocketAddr::new(address, port))
}
