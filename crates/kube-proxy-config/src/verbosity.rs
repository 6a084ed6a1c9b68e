//! klog's verbosity as a filter of tracing's: more for more, and never less than errors, warnings and information.
//!
//! Most manifests set `--v=2`; operators raise it to 4 or 6 to find a fault. Libraries stay at
//! `info`: at `trace`, some of them write thousands of lines a second.

/// Crates whose modules get more than `info`.
const OWN: [&str; 8] = [
    "kube_proxy_config",
    "net_types",
    "nft",
    "object_source",
    "portolan",
    "service_dataplane",
    "service_model",
    "vxlan_overlay",
];

/// The filter for a verbosity: 0-3 `info`, 4-5 `debug` and from 6 on `trace` of Portolan's own modules.
pub fn filter_of(verbosity: u32) -> String {
    let level = match verbosity {
        0..=3 => return "info".to_owned(),
        4..=5 => "debug",
        _ => "trace",
    };
    let own: String = OWN.iter().map(|name| format!(",{name}={level}")).collect();
    format!("info{own}")
}
