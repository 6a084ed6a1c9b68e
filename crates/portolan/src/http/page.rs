//! The page about this node at `/` of the metrics port, and the documents that its script asks for.
//!
//! Service names and addresses of clients are not for everybody who may read metrics: only clients of this node get an answer,
//! as `kubectl port-forward` is one. A browser that a foreign page has led here by a name of its own (DNS rebinding) sends that
//! name as `Host`, and is refused.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::listener::{Answer, Asked, Reply};
use crate::operator::Questions;

const PAGE: &str = include_str!("page.html");
/// What the script may ask the daemon's commands.
const DOCUMENTS: [&str; 3] = ["/v1/status", "/v1/services", "/v1/flows"];
/// The page has all of its script and style in itself.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The answer to a request for the page or one of its documents; `None` for other paths.
pub(super) fn reply(asked: &Asked<'_>, questions: &Questions) -> Option<Reply> {
    let is_page = asked.path == "/";
    if !is_page && !DOCUMENTS.contains(&asked.path) {
        return None;
    }
    if !is_of_this_node(asked) {
        let text = "the page is for clients of this node: kubectl port-forward to the pod, then http://127.0.0.1:PORT/\n";
        return Some(Answer::text(StatusCode::FORBIDDEN, text).into());
    }
    if is_page {
        return Some(whole("text/html; charset=utf-8", PAGE.into()).into());
    }
    let (questions, path) = (questions.clone(), format!("{}?{}", asked.path, asked.query));
    Some(Reply::Later(Box::pin(async move {
        match questions.ask(path).await {
            Some((code, document)) => Answer {
                code,
                ..whole("application/json", document.into())
            },
            None => Answer::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the daemon cannot answer now\n",
            ),
        }
    })))
}

fn whole(content_type: &'static str, body: Bytes) -> Answer {
    Answer {
        content_type,
        policy: Some(POLICY),
        body,
        ..Answer::text(StatusCode::OK, "")
    }
}

/// Whether a client of this node asks, and not a foreign page in the client's browser.
pub(super) fn is_of_this_node(asked: &Asked<'_>) -> bool {
    asked.client.is_loopback() && is_named_by_address(asked.headers)
}

/// Whether the client has asked by an address or `localhost`, not by another name.
fn is_named_by_address(headers: &HeaderMap) -> bool {
    let Some(host) = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
    else {
        return true;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    let name = name.unwrap_or_default();
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn code(path: &str, client: &str, host: &'static str) -> Option<StatusCode> {
        let (questions, _) = crate::operator::questions();
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
        let asked = Asked {
            path,
            query: "",
            headers: &headers,
            client: client.parse().unwrap(),
        };
        match reply(&asked, &questions)? {
            Reply::Now(answer) => Some(answer.code),
            Reply::Later(_) => Some(StatusCode::OK),
        }
    }

    #[test]
    fn other_hosts_and_other_names_are_refused() {
        let (ok, forbidden) = (Some(StatusCode::OK), Some(StatusCode::FORBIDDEN));
        for path in ["/", "/v1/status", "/v1/services", "/v1/flows"] {
            for host in ["127.0.0.1:10249", "localhost:8080", "[::1]:10249", "[::1]"] {
                assert_eq!(code(path, "127.0.0.1", host), ok, "{path} {host}");
                assert_eq!(code(path, "10.0.0.9", host), forbidden, "{path} {host}");
            }
            assert_eq!(code(path, "::1", "evil.example:10249"), forbidden);
            assert_eq!(code(path, "127.0.0.1", "localhost.evil.example"), forbidden);
        }
        assert_eq!(code("/metrics", "10.0.0.9", "node-a:10249"), None);
        assert_eq!(code("/v1/trace", "127.0.0.1", "localhost"), None);
    }
}
