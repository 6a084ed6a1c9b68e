//! From command line and file to the effective configuration.
//!
//! Order: defaults, then the file, then variables, then flags. kube-proxy ignores most flags beside `--config`; here they
//! win, and [`Notes::overridden`] lists them. Invariant: all problems are reported at once, each with flag or field and
//! value.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::command_line::{CommandLine, Dialect, origin_name};
use crate::effective::{
    ApiServer, Conntrack, DetectLocalMode, Effective, Listeners, LogFormat, Logging, Mode,
    NodePortAddress, Services,
};
use crate::flag::Target;
use crate::problem::{Notes, Origin, Override, Problem, Problems};
use crate::schema::{Field, Settings};
use crate::tables::checks::{interface_name, node_name, parse_port_range, range};
use crate::tables::field_of;
use crate::tables::fields::KUBE_PROXY;
use crate::tables::portolan::PORTOLAN;
use crate::value::Value;
use crate::verbosity::filter_of;
use crate::{file, go, listeners, node_ports};

mod overlay;

/// The outcome of a command line and a file that can be used.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// All that the daemon needs.
    pub effective: Effective,
    /// What is worth a line in the log.
    pub notes: Notes,
    pub(crate) proxy: Settings,
    pub(crate) own: Settings,
}

impl CommandLine {
    /// Resolves the command line against the text of the file that `--config` names, if it names one.
    ///
    /// # Errors
    /// All that has to be changed: unknown flags and wrong values of flags, of fields, and of fields together.
    pub fn resolve(&self, file: Option<&str>) -> Result<Resolved, Problems> {
        let mut resolver = Resolver {
            line: self,
            proxy: Settings::new(KUBE_PROXY),
            own: Settings::new(PORTOLAN),
            problems: self.problems.clone(),
            notes: Notes {
                warnings: self.warnings.clone(),
                ..Notes::default()
            },
        };
        let has_proxy_document = file.is_some_and(|text| resolver.read_file(text));
        let in_file = (resolver.proxy.clone(), resolver.own.clone());
        resolver.apply_flags();
        let default = match self.dialect {
            Dialect::KubeProxy => Mode::Iptables,
            _ if has_proxy_document => Mode::Iptables,
            Dialect::Portolan | Dialect::Flanneld => Mode::Nftables,
        };
        let mode = mode_of(&resolver.proxy, default);
        resolver.apply_masquerade_all(mode);
        if file.is_some() {
            resolver.note_overrides(&in_file.0, &in_file.1);
            resolver.note_ports();
        }
        let effective = resolver.effective(mode, default);
        resolver.note_unused();
        match resolver.problems.is_empty() {
            false => Err(Problems(resolver.problems)),
            true => Ok(Resolved {
                effective,
                notes: resolver.notes,
                proxy: resolver.proxy,
                own: resolver.own,
            }),
        }
    }
}

struct Resolver<'l> {
    line: &'l CommandLine,
    proxy: Settings,
    own: Settings,
    problems: Vec<Problem>,
    notes: Notes,
}

fn mode_of(proxy: &Settings, default: Mode) -> Mode {
    match proxy.text("mode").as_str() {
        "iptables" => Mode::Iptables,
        "ipvs" => Mode::Ipvs,
        "nftables" => Mode::Nftables,
        _ => default,
    }
}

impl Resolver<'_> {
    fn read_file(&mut self, text: &str) -> bool {
        let report = file::read(text, &mut self.proxy, &mut self.own);
        self.problems.extend(report.problems);
        self.notes.warnings.extend(report.warnings);
        report.has_proxy
    }

    /// Variables and flags, in their order: the last wins, lists append within the command line.
    fn apply_flags(&mut self) {
        for given in &self.line.given {
            let (settings, path) = match given.flag.target {
                Target::Proxy(path) => (&mut self.proxy, path),
                Target::Own(path) => (&mut self.own, path),
                Target::Command(_) => continue,
            };
            // An empty name, address or mode is none given (`processHostnameOverrideFlag`, `IPVar`).
            let empty_is_none = matches!(
                path,
                "hostnameOverride" | "bindAddress" | "mode" | "detectLocalMode"
            );
            if empty_is_none && given.value.is_zero() {
                continue;
            }
            let before = settings.given(path).cloned();
            let appends = field_of(given.flag).is_some_and(|field: &Field| field.shape.appends());
            let value = match (before, given.value.clone()) {
                (Some((Value::List(mut items), Origin::Flag(_))), Value::List(more)) if appends => {
                    items.extend(more);
                    Value::List(items)
                }
                (Some((Value::Map(mut entries), _)), Value::Map(more)) if appends => {
                    entries.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
                    entries.extend(more);
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                    Value::Map(entries)
                }
                (_, value) => value,
            };
            settings.set(path, value, given.origin.clone());
        }
    }

    /// `masqueradeAll` counts in the section of the mode (`Convert_v1alpha1_KubeProxyConfiguration_...`).
    fn apply_masquerade_all(&mut self, mode: Mode) {
        if let Some((value, origin)) = self.line.command.given("masqueradeAll") {
            self.proxy
                .set(masquerade_path(mode), value.clone(), origin.clone());
        }
    }

    fn note_overrides(&mut self, proxy: &Settings, own: &Settings) {
        let ignored = |name: &str| {
            let flag = self
                .line
                .given
                .iter()
                .find(|given| origin_name(&given.origin) == name);
            flag.is_none_or(|given| !given.flag.counts_beside_a_file())
        };
        for (in_file, now) in [(proxy, &self.proxy), (own, &self.own)] {
            for field in now.table {
                let Some((value, origin)) = now.given(field.path) else {
                    continue;
                };
                if matches!(origin, Origin::File { .. }) {
                    continue;
                }
                let name = origin_name(origin);
                let before = in_file.given(field.path).map(|(before, _)| before);
                let differs = before.filter(|before| *before != value);
                if differs.is_some() || (before.is_none() && ignored(&name)) {
                    self.notes.overridden.push(Override {
                        flag: format!("{name}={}", value.shown()),
                        field: field.path.to_owned(),
                        file: differs.map(Value::shown),
                    });
                }
            }
        }
    }

    /// kube-proxy does not look at `--healthz-port` and `--metrics-port` beside a file.
    fn note_ports(&mut self) {
        let ports = [
            ("healthzPort", "healthzBindAddress"),
            ("metricsPort", "metricsBindAddress"),
        ];
        for (port, field) in ports {
            if self.line.command.is_given(port) {
                self.notes.overridden.push(Override {
                    flag: self.line.command.source(port),
                    field: field.to_owned(),
                    file: None,
                });
            }
        }
    }

    fn note_unused(&mut self) {
        let mut unused = self.line.inert.clone();
        for given in &self.line.given {
            if field_of(given.flag).is_some_and(|field| !field.used) {
                unused.push(origin_name(&given.origin));
            }
        }
        unused.extend(self.proxy.unused().map(str::to_owned));
        if let Value::Map(gates) = self.proxy.value("featureGates") {
            let unknown = gates
                .iter()
                .filter(|(name, _)| name != node_ports::LOCALHOST_GATE);
            unused.extend(unknown.map(|(name, _)| format!("feature gate {name}")));
        }
        for name in unused {
            if !self.notes.unused.contains(&name) {
                self.notes.unused.push(name);
            }
        }
    }

    fn effective(&mut self, mode: Mode, default: Mode) -> Effective {
        if self.line.dialect == Dialect::Flanneld {
            self.be_flanneld();
        }
        self.check_sync_periods(mode);
        self.check_sources();
        let (healthz, metrics) = self.listeners();
        let overlay = self.overlay();
        let services = self.services(mode, default, overlay.is_some());
        let service_proxy = self.own.text("serviceProxy") != "off";
        if !service_proxy {
            self.notes.node_ports.clear();
        }
        if !service_proxy && overlay.is_none() {
            let reason = "nothing is left to do: no service proxy and no overlay";
            self.problems.push(self.own.problem("serviceProxy", reason));
        }
        let take_over = match self.own.value("takeOverKubeProxy") {
            Value::Bool(value) => value,
            _ => service_proxy && services.service_proxy_name.is_none(),
        };
        let node_ip = go::parse_ip(&self.proxy.text("bindAddress"));
        Effective {
            mode,
            node_name: self.node_name(),
            api_server: self.api_server(),
            node_ip: node_ip.filter(|ip| !ip.is_unspecified()),
            listeners: Listeners {
                healthz,
                metrics,
                hard_fail: self.proxy.bool("bindAddressHardFail"),
            },
            service_proxy,
            services,
            oom_score_adj: self.proxy.number("oomScoreAdj"),
            conntrack: self.conntrack(),
            logging: self.logging(),
            feature_gates: self.feature_gates(),
            ipvs_exclude_cidrs: ranges(&self.proxy.texts("ipvs.excludeCIDRs")),
            table_owner: self.own.bool("tableOwner"),
            take_over_kube_proxy: take_over,
            failover: service_proxy && self.own.text("failover") != "off",
            failover_endpoints: self.own.text("failover") == "endpoints",
            service_traffic: service_proxy && self.counts_traffic(),
            page: self.own.text("page") != "off",
            profiling: self.proxy.bool("enableProfiling"),
            without_features: self.own.texts("withoutFeatures"),
            overlay,
        }
    }

    /// Under flanneld's name the overlay is on and the service proxy off, unless the file or a flag says otherwise.
    fn be_flanneld(&mut self) {
        for (path, word) in [("overlay.type", "vxlan"), ("serviceProxy", "off")] {
            if !self.own.is_given(path) {
                let origin = Origin::Flag("flanneld".to_owned());
                self.own.set(path, Value::Text(word.to_owned()), origin);
            }
        }
        if !self.line.command.bool("kubeSubnetManager") {
            let reason =
                "must be true: Portolan takes pod CIDRs from Node objects, never from etcd";
            let mut problem = self.line.command.problem("kubeSubnetManager", reason);
            problem.origin = Some(Origin::Flag("--kube-subnet-mgr".to_owned()));
            if !self.line.command.is_given("kubeSubnetManager") {
                problem.value = None;
                problem.reason = reason.replace("must be true", "must be given");
            }
            self.problems.push(problem);
        }
    }

    /// Addresses for health and metrics. Where both have one port, metrics give way, with a warning; with
    /// `bindAddressHardFail`, that is a problem.
    fn listeners(&mut self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let (healthz, metrics) =
            listeners::resolve(self.line, &self.proxy, &mut self.notes.warnings);
        let clash = healthz
            .zip(metrics)
            .filter(|(a, b)| listeners::overlap(*a, *b));
        let Some((health_address, _)) = clash else {
            return (healthz, metrics);
        };
        let problem = self.proxy.problem(
            "metricsBindAddress",
            format!("healthzBindAddress {health_address} has the same port: give metricsBindAddress another one"),
        );
        match self.proxy.bool("bindAddressHardFail") {
            true => self.problems.push(problem),
            false => self
                .notes
                .warnings
                .push(format!("{problem}; metrics are not served")),
        }
        (healthz, None)
    }

    /// kube-proxy's `Validate`, on the section of the mode.
    fn check_sync_periods(&mut self, mode: Mode) {
        let (least, most) = match mode {
            Mode::Iptables => ("iptables.minSyncPeriod", "iptables.syncPeriod"),
            Mode::Ipvs => ("ipvs.minSyncPeriod", "ipvs.syncPeriod"),
            Mode::Nftables => ("nftables.minSyncPeriod", "nftables.syncPeriod"),
        };
        let longest = self.proxy.nanoseconds(most);
        if self.proxy.nanoseconds(least) > longest {
            let reason = format!(
                "must not be more than {most} ({})",
                go::format_duration(longest)
            );
            self.problems.push(self.proxy.problem(least, reason));
        }
    }

    fn check_sources(&mut self) {
        let by_flag = |settings: &Settings, path: &str| {
            let given = settings.given(path);
            given.is_some_and(|(value, origin)| {
                !value.is_zero() && matches!(origin, Origin::Flag(_))
            })
        };
        let kubeconfig = "clientConnection.kubeconfig";
        if by_flag(&self.own, "manifests") && by_flag(&self.proxy, kubeconfig) {
            let reason = "cannot be combined with --kubeconfig: objects come from one source";
            self.problems.push(self.own.problem("manifests", reason));
        }
        let mut repeated = node_ports::repeated(&self.proxy);
        self.problems.extend(repeated.take());
    }

    fn node_name(&mut self) -> Option<String> {
        let path = "hostnameOverride";
        let given = self.proxy.some_text(path)?;
        let name = given.trim().to_lowercase();
        if let Err(reason) = node_name(&name) {
            self.problems.push(self.proxy.problem(path, reason));
        }
        Some(name)
    }

    fn api_server(&self) -> ApiServer {
        let range = parse_port_range(&self.own.text("nodePortRange"));
        let kubeconfig = self.proxy.some_text("clientConnection.kubeconfig");
        let from = self.own.texts("apiServerFrom").into_iter();
        ApiServer {
            manifests: self.own.some_text("manifests").map(Into::into),
            node_port_range: range.unwrap_or((30_000, 32_767)),
            kubeconfig: kubeconfig.map(Into::into),
            master: self.line.command.some_text("master"),
            api_server_from: from
                .filter(|path| !path.is_empty())
                .map(Into::into)
                .collect(),
        }
    }

    fn services(&mut self, mode: Mode, default: Mode, has_overlay: bool) -> Services {
        let detect_local = self.detect_local();
        let needed = has_overlay || detect_local == DetectLocalMode::ClusterCidr;
        let no_mode = match (default, self.line.dialect) {
            (Mode::Nftables, _) => "the default",
            _ => "no mode is given: kube-proxy's default is iptables",
        };
        let source = node_ports::mode_source(&self.proxy, mode, no_mode);
        let node_ports = node_ports::resolve(&self.proxy, mode, &source);
        self.notes.node_ports = node_ports.explanation;
        self.notes.warnings.extend(node_ports.warning);
        let allowed = self.own.is_given("allowedExternalIPs");
        let allowed = allowed.then(|| ranges(&self.own.texts("allowedExternalIPs")));
        Services {
            detect_local,
            cluster_cidrs: self.cluster_cidrs(needed),
            node_port_addresses: node_ports.addresses,
            masquerade_all: self.proxy.bool(masquerade_path(mode)),
            allowed_external_ips: allowed,
            service_proxy_name: self.own.some_text("serviceProxyName"),
        }
    }

    fn detect_local(&mut self) -> DetectLocalMode {
        let (path, make): (&str, fn(String) -> DetectLocalMode) =
            match self.proxy.text("detectLocalMode").as_str() {
                "NodeCIDR" => return DetectLocalMode::NodeCidr,
                "BridgeInterface" => (
                    "detectLocal.bridgeInterface",
                    DetectLocalMode::BridgeInterface,
                ),
                "InterfaceNamePrefix" => (
                    "detectLocal.interfaceNamePrefix",
                    DetectLocalMode::InterfaceNamePrefix,
                ),
                _ => return DetectLocalMode::ClusterCidr,
            };
        let name = self.proxy.text(path);
        if name.is_empty() {
            let reason = format!("needs {path} (--{})", flag_of(path));
            self.problems
                .push(self.proxy.problem("detectLocalMode", reason));
        } else if let Err(reason) = interface_name(&name) {
            self.problems.push(self.proxy.problem(path, reason));
        }
        make(name)
    }

    /// `validateDualStackCIDRStrings`; kube-proxy checks them only where they detect local traffic.
    fn cluster_cidrs(&mut self, needed: bool) -> Vec<IpNet> {
        let path = "clusterCIDR";
        let text = self.proxy.text(path);
        let texts = text
            .split(',')
            .map(str::trim)
            .filter(|_| !text.trim().is_empty());
        let parsed: Vec<Option<IpNet>> = texts.map(go::parse_cidr).collect();
        let cidrs: Vec<IpNet> = parsed.iter().flatten().copied().collect();
        let of = |v6: bool| {
            cidrs
                .iter()
                .filter(|cidr| cidr.addr().is_ipv6() == v6)
                .count()
        };
        let reason = if parsed.contains(&None) {
            "must be a CIDR, or one of each family: 10.244.0.0/16,fd00:10:244::/56"
        } else if of(false) > 1 || of(true) > 1 {
            "must have at most one CIDR of a family"
        } else {
            return cidrs;
        };
        match needed {
            true => self.problems.push(self.proxy.problem(path, reason)),
            false => {
                let source = self.proxy.source(path);
                self.notes
                    .warnings
                    .push(format!("{source} is ignored: {reason}"));
            }
        }
        Vec::new()
    }

    fn conntrack(&mut self) -> Conntrack {
        let path = "conntrack.tcpBeLiberal";
        // Every generated file has `false`, which file.rs drops as a zero value; a flag's `false` is kept.
        if let Some((value, origin)) = self.proxy.given(path).cloned() {
            let own_counts = matches!(origin, Origin::File { .. }) && self.own.is_given(path);
            if !own_counts {
                self.own.set(path, value, origin);
            }
        }
        Conntrack {
            max_per_core: self.proxy.number("conntrack.maxPerCore"),
            min: self.proxy.number("conntrack.min"),
            tcp_established_timeout: self.proxy.duration("conntrack.tcpEstablishedTimeout"),
            tcp_close_wait_timeout: self.proxy.duration("conntrack.tcpCloseWaitTimeout"),
            tcp_be_liberal: self.own.bool(path),
            accounting: self.counts_traffic(),
            udp_timeout: self.proxy.duration("conntrack.udpTimeout"),
            udp_stream_timeout: self.proxy.duration("conntrack.udpStreamTimeout"),
        }
    }

    fn counts_traffic(&self) -> bool {
        self.own.text("serviceTraffic") == "on"
    }

    fn logging(&self) -> Logging {
        let format = self.own.some_text("logFormat");
        let format = format.unwrap_or_else(|| self.proxy.text("logging.format"));
        let filter = self.own.some_text("logLevel");
        Logging {
            format: match format.as_str() {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            },
            filter: filter.unwrap_or_else(|| filter_of(self.proxy.number("logging.verbosity"))),
        }
    }

    fn feature_gates(&self) -> BTreeMap<String, bool> {
        let Value::Map(gates) = self.proxy.value("featureGates") else {
            return BTreeMap::new();
        };
        let gates = gates.into_iter();
        gates
            .map(|(name, value)| (name, value == Value::Bool(true)))
            .collect()
    }
}

/// The section in which `masqueradeAll` counts.
pub(crate) fn masquerade_path(mode: Mode) -> &'static str {
    match mode {
        Mode::Nftables => "nftables.masqueradeAll",
        Mode::Iptables | Mode::Ipvs => "iptables.masqueradeAll",
    }
}

/// kube-proxy's flag for a field.
fn flag_of(path: &str) -> &'static str {
    let flags = crate::tables::flags::FLAGS.iter();
    let mut named =
        flags.filter(|flag| matches!(flag.target, Target::Proxy(field) if field == path));
    named.next().map_or("", |flag| flag.name)
}

fn ranges(texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| range(text)).collect()
}

impl Resolved {
    /// Paths of the fields whose values differ, of both documents.
    pub fn changes(&self, other: &Resolved) -> Vec<&'static str> {
        let documents = [(&self.proxy, &other.proxy), (&self.own, &other.own)];
        let mut changed = Vec::new();
        for (one, other) in documents {
            let fields = one.table.iter();
            let differs = fields.filter(|field| one.value(field.path) != other.value(field.path));
            changed.extend(differs.filter(|field| field.used).map(|field| field.path));
        }
        changed
    }

    /// Whether the addresses for node ports are the default of the mode.
    pub(crate) fn node_ports_are_default(&self) -> bool {
        self.proxy.texts("nodePortAddresses").is_empty()
    }

    /// The addresses for node ports in kube-proxy's words.
    pub(crate) fn node_ports_written(&self) -> Value {
        match (self.node_ports_are_default(), self.effective.mode) {
            (true, Mode::Nftables) => {
                Value::List(vec![Value::Text(NodePortAddress::Primary.to_string())])
            }
            (true, _) => Value::Null,
            (false, _) => self.proxy.value("nodePortAddresses"),
        }
    }
}
