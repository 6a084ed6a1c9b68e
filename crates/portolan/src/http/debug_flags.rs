//! `/debug/flags/v` of the metrics port, with `--profiling`: changes how much is logged, as kube-proxy does.
//!
//! Paths, methods, bodies and codes are kube-proxy's (`DebugFlags` in apiserver's `pkg/server/routes`, `GlogSetter` in
//! component-base's `logs`). Whoever may scrape metrics from elsewhere may not change the log here: only clients of the node may.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use bytes::Bytes;
use http::{Method, StatusCode};

use super::listener::{Answer, Asked, Change};
use super::page;
use crate::log;

pub(super) const FLAG: &str = "/debug/flags/v";

/// The answer to GET and HEAD; `None` for other paths.
pub(super) fn read(asked: &Asked<'_>) -> Option<Answer> {
    match asked.path {
        FLAG => Some(unsupported()),
        "/debug/flags" | "/debug/flags/" => {
            let text = format!("PUT a verbosity to {FLAG}\n");
            Some(Answer::text(StatusCode::OK, text))
        }
        _ => None,
    }
}

/// The answer to other methods; `None` for other paths.
pub(super) fn change(method: &Method, asked: &Asked<'_>) -> Option<Change> {
    if asked.path != FLAG {
        return None;
    }
    if !page::is_of_this_node(asked) {
        let text =
            "only clients of this node may change the log: kubectl port-forward to the pod\n";
        return Some(Box::new(move |_| Answer::text(StatusCode::FORBIDDEN, text)));
    }
    Some(match *method {
        Method::PUT => Box::new(set),
        _ => Box::new(|_| unsupported()),
    })
}

fn unsupported() -> Answer {
    Answer::text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n")
}

/// Sets the verbosity.
fn set(body: Bytes) -> Answer {
    let text = String::from_utf8_lossy(&body);
    let Ok(verbosity) = text.trim().parse::<u32>() else {
        let text = "not a verbosity, as -v has it: a number from 0 on; `portolan log-level` takes levels and modules\n";
        return Answer::text(StatusCode::BAD_REQUEST, text);
    };
    let before = log::current();
    match log::set_filter(&kube_proxy_config::filter_of(verbosity)) {
        Ok(()) => {
            let level = log::current();
            tracing::info!(before, level, "log level changed by a request");
            let text = format!("successfully set klog.logging.verbosity to {verbosity}\n");
            Answer::text(StatusCode::OK, text)
        }
        Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}
