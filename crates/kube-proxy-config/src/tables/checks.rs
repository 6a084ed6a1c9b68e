//! The forms of texts: each check says why a text is not accepted and what is. Empty text never gets here.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;

use crate::go;
use crate::problem::shown;

pub(crate) fn any(_: &str) -> Result<(), String> {
    Ok(())
}

pub(crate) fn ip(text: &str) -> Result<(), String> {
    let valid = go::parse_ip(text).is_some();
    accept(valid, "must be an IP address")
}

pub(crate) fn ipv4(text: &str) -> Result<(), String> {
    let valid = matches!(go::parse_ip(text), Some(IpAddr::V4(_)));
    accept(valid, "must be an IPv4 address")
}

pub(crate) fn ipv6(text: &str) -> Result<(), String> {
    let valid = matches!(go::parse_ip(text), Some(IpAddr::V6(_)));
    accept(valid, "must be an IPv6 address")
}

/// What an API client takes for a URL, or a host and port as kubectl has it.
pub(crate) fn server(text: &str) -> Result<(), String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let host = rest.split('/').next().unwrap_or_default();
    let is_host =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'[' | b']');
    let valid = matches!(scheme, "http" | "https")
        && host.starts_with(|first: char| first == '[' || first.is_ascii_alphanumeric())
        && host.bytes().all(is_host);
    accept(
        valid,
        "must be a URL such as https://10.0.0.1:6443, or HOST:PORT",
    )
}

pub(crate) fn cidr(text: &str) -> Result<(), String> {
    let valid = go::parse_cidr(text).is_some();
    let reason = format!(
        "{} is not a CIDR such as 10.0.0.0/8 or fd00::/8",
        shown(text)
    );
    valid.then_some(()).ok_or(reason)
}

pub(crate) fn cidr_or_ip(text: &str) -> Result<(), String> {
    let valid = range(text).is_some();
    let reason = format!("{} is neither a CIDR nor an IP address", shown(text));
    valid.then_some(()).ok_or(reason)
}

/// A range, or an address as a range of one.
pub(crate) fn range(text: &str) -> Option<IpNet> {
    go::parse_cidr(text).or_else(|| go::parse_ip(text).map(IpNet::from))
}

/// kube-proxy's `validateKubeProxyNodePortAddress`, but for repeated key words.
pub(crate) fn node_port_address(text: &str) -> Result<(), String> {
    let valid = matches!(text, "primary" | "localhost" | "all") || go::parse_cidr(text).is_some();
    let reason = format!(
        "{} is neither a CIDR nor one of primary, localhost, all",
        shown(text)
    );
    valid.then_some(()).ok_or(reason)
}

pub(crate) fn listener(text: &str) -> Result<(), String> {
    let valid = socket_address(text, 1).is_some();
    accept(
        valid,
        "must be IP:PORT or IP, with a port from 1 to 65535; an IPv6 address with a port needs brackets: [::]:10256",
    )
}

/// `IP:PORT`, or `IP` with this port (`AppendPortIfNeeded`).
pub(crate) fn socket_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Some(address) = go::parse_ip(text) {
        return Some(SocketAddr::new(address, port));
    }
    let (host, port) = text.rsplit_once(':')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match bracketed {
        // Not made canonical: an IPv4-mapped address stays an IPv6 socket address.
        Some(host) => {
            let address = host.parse().ok()?;
            Some(SocketAddr::V6(SocketAddrV6::new(address, port, 0, 0)))
        }
        None if host.contains(':') => None,
        None => Some(SocketAddr::new(go::parse_ip(host)?, port)),
    }
}

pub(crate) fn quantity(text: &str) -> Result<(), String> {
    accept(
        go::is_quantity(text),
        "must be a quantity such as 512, 64Ki or 1M",
    )
}

/// `MAJOR.MINOR`; which minor version is the previous one is for kube-proxy to know.
pub(crate) fn hidden_version(text: &str) -> Result<(), String> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let valid = text
        .split_once('.')
        .is_some_and(|(major, minor)| number(major) && number(minor));
    accept(valid, "must be MAJOR.MINOR, such as 1.36")
}

pub(crate) fn port_range(text: &str) -> Result<(), String> {
    accept(
        parse_port_range(text).is_some(),
        "must be FIRST-LAST with 1 <= FIRST <= LAST <= 65535",
    )
}

pub(crate) fn parse_port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (1 <= first && first <= last).then_some((first, last))
}

/// An interface's name or the beginning of one: `IFNAMSIZ` less the final zero, and nothing that means something to
/// nft's grammar.
pub(crate) fn interface_name(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    let valid = (1..=15).contains(&text.len()) && text.bytes().all(allowed);
    accept(
        valid,
        "must be an interface name: 1 to 15 letters, digits, '-', '_', '.' or '@'",
    )
}

/// The first part of the tunnel device's name, which `-v6.` and a VNI of up to eight digits follow.
pub(crate) fn device_name(text: &str) -> Result<(), String> {
    interface_name(text)
}

/// A label value (apimachinery's `IsValidLabelValue`).
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let valid =
        bytes.len() <= 63 && end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inner);
    accept(
        valid,
        "must be a label value: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends",
    )
}

/// A node's name as the API server demands it (RFC 1123), trimmed and in lower case already.
pub(crate) fn node_name(text: &str) -> Result<(), String> {
    let label = |label: &str| {
        let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inner)
    };
    let valid = text.len() <= 253 && text.split('.').all(label);
    accept(
        valid,
        "must be a name that a Node object can have: at most 253 letters, digits, '-' and '.'",
    )
}

/// flannel's prefix of annotations: at most one slash.
pub(crate) fn prefix(text: &str) -> Result<(), String> {
    let valid = text.matches('/').count() <= 1 && !text.contains(char::is_whitespace);
    accept(
        valid,
        "must be a prefix of annotation keys, with at most one slash",
    )
}

/// A level, or a list of modules with levels, as tracing takes it. Numbers are klog's, and go to `-v`.
pub(crate) fn log_filter(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |text: &str| LEVELS.contains(&text.to_ascii_lowercase().as_str());
    let part = |part: &str| match part.rsplit_once('=') {
        Some((module, text)) => !module.is_empty() && level(text),
        None => level(part),
    };
    accept(
        text.split(',').map(str::trim).all(part),
        "must be a level (off, error, warn, info, debug, trace) or a list such as info,portolan=debug; \
         numbers go to -v",
    )
}

fn accept(valid: bool, reason: &str) -> Result<(), String> {
    valid.then_some(()).ok_or_else(|| reason.to_owned())
}
