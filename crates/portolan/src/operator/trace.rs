//! `/v1/trace`: what becomes of a connection's first packet on this node, step by step.
//!
//! The decision is [`service_dataplane::predict`]'s. Added here are this moment's facts: the interface that the client's
//! packets come by, affinity entries in the kernel, routes to endpoints, and peers of the overlay.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nft::{Backend as _, Family, Kernel};
use service_dataplane::predict::{Fate, Packet, Prediction, Surroundings, Target, predict};
use service_dataplane::{Claim, affinity, layout};
use service_model::{
    Affinity, Choice, Conditions, EndpointChoice, Frontend, FrontendAddress, Hints, NodeFacts,
    ObjectName, Protocol, Service,
};

use super::catalog::Catalog;
use super::documents::{Step, Trace, TraceVerdict, TracedEndpoint};
use super::knowledge::{Knowledge, Parameters};
use super::routes::{Network, Route};
use super::services::{pod_name, policy_name};
use super::status::clean;

pub(super) async fn answer(known: &Knowledge, parameters: &Parameters) -> Result<Trace> {
    let parameter = |name: &str| {
        parameters
            .get(name)
            .with_context(|| format!("no parameter {name}"))
    };
    let to: SocketAddr = parameter("to")?.parse().context("--to: not ADDRESS:PORT")?;
    let protocol = protocol(parameter("protocol")?)?;
    let network = Network::open().await?;
    let from = address_of_client(known, parameter("from")?, to)?;
    let packet = packet(&from, to, protocol, &network).await?;
    let decided = decide(known, &packet, &network)?;
    let service = decided.prediction.holder.as_ref().map(|(name, _)| name);
    let identities = service.map(|name| known.catalog.borrow().identities(name));
    let identities = identities.unwrap_or_default();
    let mut endpoints = Vec::new();
    for (choice, target) in &decided.endpoints {
        let only_local = decided.only_local;
        let mut traced = endpoint(known, &network, &packet, choice, *target, only_local).await;
        let identity = identities.get(&choice.backend.address);
        traced.pod = service.and_then(|name| pod_name(name, identity?));
        endpoints.push(traced);
    }
    let eligible = endpoints
        .iter()
        .filter(|endpoint| endpoint.eligible)
        .count();
    let (verdict, text) = verdict(&decided.prediction, eligible);
    Ok(Trace {
        node: clean(&known.sources.node),
        from: packet.source.to_string(),
        to: to.to_string(),
        protocol: protocol.to_string(),
        steps: decided.steps,
        service: decided
            .prediction
            .holder
            .map(|(service, _)| clean(&service.to_string())),
        endpoints,
        verdict,
        text,
        live: None,
    })
}

fn protocol(name: &str) -> Result<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => anyhow::bail!("unknown protocol {}: tcp, udp or sctp", clean(name)),
    }
}

/// The client: `node`, an address, or the address of a pod by `namespace/name`, in the family of the destination.
fn address_of_client(known: &Knowledge, from: &str, to: SocketAddr) -> Result<String> {
    let Some((namespace, name)) = from.split_once('/') else {
        return Ok(from.to_owned());
    };
    let pod = ObjectName::new(namespace, name);
    let addresses = known.catalog.borrow().addresses_of_pod(&pod);
    let mut of_family = addresses.iter().filter(|a| a.is_ipv4() == to.is_ipv4());
    let address = of_family.next().with_context(|| {
        format!(
            "--from: the daemon does not know pod {}: it knows those that are endpoints of a Service; write its address",
            clean(&pod.to_string())
        )
    })?;
    Ok(address.to_string())
}

/// The packet. A client with an address of the node is the node itself.
async fn packet(
    from: &str,
    to: SocketAddr,
    protocol: Protocol,
    network: &Network,
) -> Result<Packet> {
    let is_own = |address: &IpAddr| address.is_loopback() || network.addresses.contains(address);
    let source = match from {
        // What the node sends to an address of its own has that for its source.
        "node" if is_own(&to.ip()) => to.ip(),
        "node" => {
            let route = network.route(to.ip()).await;
            let source = route.and_then(|route| route.source);
            source.context("this node has no route to that address")?
        }
        address => address
            .parse::<IpAddr>()
            .context("--from: not an IP address or `node`")?,
    };
    ensure!(
        source.is_ipv4() == to.is_ipv4(),
        "--from and --to are of different families"
    );
    let from_node = is_own(&source);
    let interface = match from_node {
        true => None,
        false => network
            .route(source)
            .await
            .and_then(|route| route.interface),
    };
    Ok(Packet {
        from_node,
        source,
        interface,
        destination: to.ip(),
        protocol,
        port: to.port(),
    })
}

/// What is decided before routes matter.
struct Decided {
    prediction: Prediction,
    steps: Vec<Step>,
    /// All endpoints of the Service port, and what the eligible ones see.
    endpoints: Vec<(EndpointChoice, Option<Target>)>,
    /// Only endpoints on this node count.
    only_local: bool,
}

fn decide(known: &Knowledge, packet: &Packet, network: &Network) -> Result<Decided> {
    let catalog = known.catalog.borrow();
    let facts = catalog.facts().context("the first sync is not complete")?;
    let frontends = catalog.frontends(|service| concerns(service, packet, facts));
    let around = Surroundings {
        facts,
        own_addresses: &network.addresses,
    };
    let kept = |affinity| kept(packet, affinity);
    let prediction = predict(&frontends, around, packet, kept);
    let mut steps = vec![step("client", client(packet, facts))];
    let holder = prediction.holder.as_ref().map(|(name, _)| name);
    steps.extend(quarantined(&catalog, packet, facts, holder));
    let Some((name, frontend)) = &prediction.holder else {
        steps.push(step(
            "frontend",
            "no Service has a frontend at this address and port",
        ));
        return Ok(Decided {
            prediction,
            steps,
            endpoints: Vec::new(),
            only_local: false,
        });
    };
    let claim = Claim::from(frontend);
    steps.push(step(
        "frontend",
        format!("{claim}: Service {}", clean(&name.to_string())),
    ));
    let is_internal = matches!(frontend.address, FrontendAddress::ClusterIp(_));
    // The object of a quarantined Service is the refused version.
    let service = catalog.service(name);
    let service = service.filter(|_| !catalog.quarantined().contains_key(name));
    let is_local =
        |service: &Arc<Service>| is_internal && policy_name(service.internal_policy) == "Local";
    let only_local = prediction.only_local || service.is_some_and(is_local);
    if let Some(service) = service {
        steps.push(step("policy", policy(service, is_internal, &prediction)));
    }
    steps.extend(sources(frontend, packet));
    steps.extend(affinity_step(frontend, packet));
    let endpoints = endpoints(&catalog, name, frontend, &prediction);
    let eligible = endpoints
        .iter()
        .filter(|(_, target)| target.is_some())
        .count();
    let all = endpoints.len();
    steps.push(step(
        "endpoints",
        format!("{eligible} of {all} are eligible"),
    ));
    Ok(Decided {
        prediction,
        steps,
        endpoints,
        only_local,
    })
}

fn step(name: &str, text: impl Into<String>) -> Step {
    Step {
        name: name.to_owned(),
        text: text.into(),
    }
}

/// A step for each quarantined Service that has the packet's destination, or that may request it.
fn quarantined(
    catalog: &Catalog,
    packet: &Packet,
    facts: &NodeFacts,
    holder: Option<&ObjectName>,
) -> Vec<Step> {
    let is_concerned = |name: &ObjectName| {
        let service = catalog.service(name);
        holder == Some(name) || service.is_some_and(|service| concerns(service, packet, facts))
    };
    let all = catalog.quarantined().iter();
    let concerned = all.filter(|(name, _)| is_concerned(name));
    let steps = concerned.map(|(name, quarantined)| {
        let meanwhile = match quarantined.last_good {
            Some(_) => "its last good rules serve",
            None => "it has no earlier rules",
        };
        let text = format!("Service {name}: {}; {meanwhile}", quarantined.reason);
        step("quarantined", clean(&text))
    });
    steps.collect()
}

/// Whether a Service may have a frontend at the packet's destination.
fn concerns(service: &Service, packet: &Packet, facts: &NodeFacts) -> bool {
    let to = packet.destination;
    let has_node_port = || {
        service
            .ports
            .iter()
            .any(|port| port.node_port == Some(packet.port))
    };
    service.cluster_ips.contains(&to)
        || service.external_ips.contains(&to)
        || service.load_balancer_ips.contains(&to)
        || facts.node_addresses.contains(&to) && has_node_port()
}

/// The endpoint that the client keeps.
fn kept(packet: &Packet, by: Affinity) -> Option<SocketAddr> {
    let mut kernel = Kernel::open_to_read(layout::TABLE.into()).ok()?;
    let family = Family::of(packet.source);
    let entries = kernel
        .dynamic_elements(family, &affinity::map(by.map))
        .ok()?;
    affinity::kept(family, &entries, packet.source, packet.protocol, by.group)
}

fn client(packet: &Packet, facts: &NodeFacts) -> String {
    let source = packet.source;
    if packet.from_node {
        return format!("{source} is this node itself");
    }
    let by = match &packet.interface {
        Some(interface) => format!("comes by {}", clean(interface)),
        None => "has no route back".to_owned(),
    };
    let is_listed = facts
        .local_sources
        .iter()
        .any(|range| range.contains(&source));
    match &facts.local_interface {
        Some(_) => format!("{source} {by}"),
        None if is_listed => format!("{source} {by}, and is in the pod CIDRs"),
        None => format!("{source} {by}, and is not in the pod CIDRs"),
    }
}

fn policy(service: &Service, is_internal: bool, prediction: &Prediction) -> String {
    if is_internal {
        let policy = policy_name(service.internal_policy);
        return format!("internalTrafficPolicy {policy}");
    }
    let policy = policy_name(service.external_policy);
    let consequence = match (policy, prediction.only_local) {
        ("Local", true) => ", and the client is outside: only endpoints on this node",
        ("Local", false) => ", but the client is inside: endpoints on all nodes",
        _ => "",
    };
    format!("externalTrafficPolicy {policy}{consequence}")
}

fn sources(frontend: &Frontend, packet: &Packet) -> Option<Step> {
    let ranges = frontend.allowed_sources.as_deref()?;
    let is_allowed = ranges.iter().any(|range| range.contains(&packet.source));
    let listed: Vec<String> = ranges.iter().take(8).map(ToString::to_string).collect();
    let verdict = if is_allowed { "allowed" } else { "not allowed" };
    Some(step(
        "sources",
        format!("{} is {verdict} by {}", packet.source, listed.join(" ")),
    ))
}

fn affinity_step(frontend: &Frontend, packet: &Packet) -> Option<Step> {
    let affinity = frontend.affinity?;
    let entry = match kept(packet, affinity) {
        Some(endpoint) => format!("the client keeps {endpoint}"),
        None => "the client has no entry yet".to_owned(),
    };
    Some(step(
        "affinity",
        format!("ClientIP, {} s: {entry}", affinity.seconds),
    ))
}

/// All endpoints of the Service port behind a frontend, and the targets among them.
fn endpoints(
    catalog: &Catalog,
    service: &ObjectName,
    frontend: &Frontend,
    prediction: &Prediction,
) -> Vec<(EndpointChoice, Option<Target>)> {
    let targets = match &prediction.fate {
        Fate::Balanced(targets) => targets.as_slice(),
        _ => &[],
    };
    if catalog.quarantined().contains_key(service) {
        let last_good = targets.iter();
        return last_good
            .map(|target| (last_good_choice(target), Some(*target)))
            .collect();
    }
    let is_node_port = matches!(frontend.address, FrontendAddress::NodePort(_));
    let ports = catalog.explain(service).into_iter().filter(|choices| {
        let number = match is_node_port {
            true => choices.port.node_port,
            false => Some(choices.port.port),
        };
        choices.family == frontend.address.family()
            && choices.port.protocol == frontend.protocol
            && number == Some(frontend.port)
    });
    let choices = ports.take(1).flat_map(|choices| choices.endpoints);
    choices
        .map(|choice| {
            let target = targets
                .iter()
                .find(|target| target.backend == choice.backend);
            (choice, target.copied())
        })
        .collect()
}

/// An endpoint of a quarantined Service, whose slices are those of the refused version.
fn last_good_choice(target: &Target) -> EndpointChoice {
    EndpointChoice {
        backend: target.backend,
        node: None,
        conditions: Conditions {
            ready: true,
            serving: true,
            terminating: false,
        },
        hints: Hints::default(),
        cluster: Choice::Chosen,
        local: Choice::Chosen,
    }
}

async fn endpoint(
    known: &Knowledge,
    network: &Network,
    packet: &Packet,
    choice: &EndpointChoice,
    target: Option<Target>,
    only_local: bool,
) -> TracedEndpoint {
    let address = SocketAddr::new(choice.backend.address, choice.backend.port);
    let mut traced = TracedEndpoint {
        address: address.to_string(),
        node: choice.node.as_deref().map(clean),
        ..TracedEndpoint::default()
    };
    let Some(target) = target else {
        let choice = if only_local {
            choice.local
        } else {
            choice.cluster
        };
        traced.reason = Some(match choice {
            Choice::Chosen => "not for this client".to_owned(),
            other => other.to_string(),
        });
        return traced;
    };
    let route = network.route(address.ip()).await;
    let source = match target.masquerade {
        None => Some(packet.source),
        Some(_) => route.as_ref().and_then(|route| route.source),
    };
    traced.eligible = true;
    traced.source = source.map(|source| source.to_string());
    traced.masquerade = target.masquerade.map(|reason| reason.to_string());
    traced.way = Some(way(known, network, choice, route));
    traced
}

/// How packets get to an endpoint.
fn way(
    known: &Knowledge,
    network: &Network,
    choice: &EndpointChoice,
    route: Option<Route>,
) -> String {
    let address = choice.backend.address;
    let Some(route) = route else {
        return "no route to the endpoint".to_owned();
    };
    let interface = clean(route.interface.as_deref().unwrap_or("?"));
    if network.addresses.contains(&address) {
        return "on this node itself".to_owned();
    }
    if choice.backend.local {
        return format!("local, through {interface}");
    }
    let overlay = known
        .sources
        .published
        .overlay
        .as_ref()
        .map(|overlay| overlay.load());
    let peers = overlay
        .iter()
        .flat_map(|overlay| overlay.plan.peers(Family::of(address)));
    let mut peers = peers.filter(|peer| peer.pod_cidr.contains(&address));
    match (peers.next(), route.gateway) {
        (Some(peer), _) if peer.direct.is_some() => {
            format!("peer {}, direct through {interface}", clean(&peer.name))
        }
        (Some(peer), _) => {
            let vtep = peer.vtep.public_ip;
            format!("peer {}, tunnel {interface} to {vtep}", clean(&peer.name))
        }
        (None, Some(gateway)) => format!("routed through {interface} by {gateway}"),
        (None, None) => format!("on the link of {interface}"),
    }
}

fn verdict(prediction: &Prediction, eligible: usize) -> (TraceVerdict, String) {
    match &prediction.fate {
        Fate::Untouched => {
            let text = "no rule of Portolan concerns the packet: it is routed as any other";
            (TraceVerdict::Untouched, text.to_owned())
        }
        Fate::Refused(why) => (TraceVerdict::Refused, format!("refused: {why}")),
        Fate::Dropped(why) => (TraceVerdict::Dropped, format!("dropped: {why}")),
        Fate::Balanced(_) if eligible == 1 => (
            TraceVerdict::Balanced,
            "goes to the one eligible endpoint".to_owned(),
        ),
        Fate::Balanced(_) => (
            TraceVerdict::Balanced,
            format!("goes to one of {eligible} endpoints, evenly"),
        ),
    }
}
