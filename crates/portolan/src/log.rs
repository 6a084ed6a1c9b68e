//! Sets up the log, changes its filter, and logs the effective configuration.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};
use kube_proxy_config::{Effective, LogFormat, Logging};
use service_model::NodeConfig;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

mod fields;

type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// Replaces the filter of the log that [`start`] has set up.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// The filter in force, as text.
static FILTER: Mutex<String> = Mutex::new(String::new());

/// Sets up the log. Has no effect when there is one already.
pub fn start(logging: &Logging) -> Result<()> {
    let filter = filter(&logging.filter)?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    let set: SetFilter = match logging.format {
        LogFormat::Text => {
            let log = log
                .fmt_fields(fields::Fields)
                .with_ansi(std::io::stderr().is_terminal())
                .with_env_filter(filter)
                .with_filter_reloading();
            let handle = log.reload_handle();
            let _ = log.try_init();
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
        LogFormat::Json => {
            let log = log
                .json()
                .flatten_event(true)
                .with_env_filter(filter)
                .with_filter_reloading();
            let handle = log.reload_handle();
            let _ = log.try_init();
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
    };
    let _ = SET_FILTER.set(set);
    note(&logging.filter);
    Ok(())
}

fn note(filter: &str) {
    filter.clone_into(&mut FILTER.lock().unwrap_or_else(PoisonError::into_inner));
}

/// The filter in force.
pub(crate) fn current() -> String {
    FILTER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Changes what is logged from now on, by a level, a verbosity as kube-proxy's `-v`, or a list by module.
pub(crate) fn set_level(text: &str) -> Result<()> {
    let filter = match text.parse() {
        Ok(verbosity) => kube_proxy_config::filter_of(verbosity),
        Err(_) => text.to_owned(),
    };
    set_filter(&filter)
}

/// Changes what is logged from now on.
pub(crate) fn set_filter(text: &str) -> Result<()> {
    let filter = filter(text)?;
    let set = SET_FILTER.get().map(|set| set(filter));
    set.filter(|is_set| *is_set)
        .context("the log has no filter to change")?;
    note(text);
    Ok(())
}

/// A filter in tracing's grammar, which takes a misspelled level for a module, and then drops the lines of all others. So
/// here each module needs its level.
pub(crate) fn filter(text: &str) -> Result<EnvFilter> {
    let advice = || {
        format!("--log-level={text}: use error, warn, info, debug or trace, or a list by module")
    };
    let is_valid = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    ensure!(text.split(',').all(is_valid), advice());
    EnvFilter::try_new(text).with_context(advice)
}

/// Logs the effective configuration in one line.
pub(crate) fn configuration(effective: &Effective, node: &NodeConfig) {
    let from = &effective.api_server;
    let source = match (&from.manifests, &from.kubeconfig, &from.master) {
        (Some(dir), _, _) => format!("manifests {}", dir.display()),
        (None, Some(file), None) => format!("kubeconfig {}", file.display()),
        (None, _, Some(url)) => format!("API server {url}"),
        (None, None, None) => "service account".to_owned(),
    };
    let services = &effective.services;
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
    let listener = |address: Option<std::net::SocketAddr>| match address {
        Some(address) => address.to_string(),
        None => "off".to_owned(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %node.node_name,
        source,
        service_proxy = effective.service_proxy,
        overlay = effective.overlay.is_some(),
        detect_local = match services.detect_local {
            kube_proxy_config::DetectLocalMode::ClusterCidr => "ClusterCIDR",
            kube_proxy_config::DetectLocalMode::NodeCidr => "NodeCIDR",
            kube_proxy_config::DetectLocalMode::BridgeInterface(_) => "BridgeInterface",
            kube_proxy_config::DetectLocalMode::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
        },
        cluster_cidr = list(&mut services.cluster_cidrs.iter().map(ToString::to_string)),
        nodeport_addresses = list(&mut services.node_port_addresses.iter().map(ToString::to_string)),
        masquerade_all = services.masquerade_all,
        allowed_external_ips = services.allowed_external_ips.as_ref()
            .map(|ranges| list(&mut ranges.iter().map(ToString::to_string))),
        service_proxy_name = services.service_proxy_name,
        own_tables = effective.table_owner,
        take_over_kube_proxy = effective.take_over_kube_proxy,
        failover = effective.failover,
        healthz = listener(effective.listeners.healthz),
        metrics = listener(effective.listeners.metrics),
        "starting"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_level_is_refused_and_no_module() {
        for text in [
            "warning",
            "inof",
            "-1",
            "9",
            "portolan",
            "info,nft",
            "info, debug",
            "info,portolan=loud",
        ] {
            let error = filter(text).unwrap_err().to_string();
            let start = format!("--log-level={text}: use error, warn");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn levels_and_lists_by_module_are_filters() {
        let verbose = kube_proxy_config::filter_of(6);
        for text in [
            "info",
            "WARN",
            "off",
            "",
            "info,",
            "info,portolan::control=debug",
            "portolan=",
            "[commit]",
            "nft[commit{family}]=trace",
            &verbose,
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
    }
}
