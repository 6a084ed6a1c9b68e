//! Sets up the log, and logs the effective configuration.

use std::io::IsTerminal;

use anyhow::Context;
use service_model::NodeConfig;
use tracing_subscriber::EnvFilter;

use crate::cli::{LogArgs, LogFormat, RunArgs};

/// Sets up the log. Has no effect when there is one already.
pub fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level).context("invalid log level")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match args.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Logs the effective configuration in one line.
pub(crate) fn configuration(args: &RunArgs, node: &NodeConfig) {
    let source = match (&args.manifests, &args.kubeconfig) {
        (Some(dir), _) => format!("manifests {}", dir.display()),
        (None, Some(file)) => format!("kubeconfig {}", file.display()),
        (None, None) => "service account".to_owned(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %node.node_name,
        source,
        detect_local = %args.node.detect_local_mode,
        cluster_cidr = %args.node.cluster_cidr,
        nodeport_addresses = %args.node.nodeport_addresses,
        masquerade_all = node.masquerade_all,
        allowed_external_ips = args.node.allowed_external_ips.as_ref().map(tracing::field::display),
        service_proxy_name = args.node.service_proxy_name.as_deref(),
        own_tables = !args.no_table_owner,
        take_over_kube_proxy = args.takes_over_kube_proxy(),
        healthz = %args.healthz_bind_address,
        metrics = %args.metrics_bind_address,
        "starting"
    );
}
