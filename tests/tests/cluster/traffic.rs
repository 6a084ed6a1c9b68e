//! Pods that answer, and traffic to them that goes on while a test does something.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{ConnectionStream, Held, Host, Probe, Protocol, wait_until};

use crate::dns::Questions;
use crate::kubeadm::{Cluster, PATIENCE};

/// Where the servers in the pods listen.
pub(crate) const PORT: u16 = 8080;
pub(crate) const NODE_PORT: u16 = 30080;
/// Node port of the Service that only the pod of node1 serves.
const NEAR_PORT: u16 = 30081;
pub(crate) const HOST_PORT: u16 = 8088;
pub(crate) const NAME: &str = "web.default.svc.cluster.local";

/// Places in [`Web`]'s list of nodes.
pub(crate) const NODE1: usize = 0;
pub(crate) const NODE2: usize = 1;

/// Between two attempts of one kind.
const PAUSE: Duration = Duration::from_millis(20);

/// Two pods that answer, one on each node, and one that asks.
const PODS: [(&str, &str, &str); 3] = [
    ("web-0", "node1", "web"),
    ("web-1", "node2", "web"),
    ("client", "node1", "client"),
];

/// A pod that waits; a thread of the test serves in its network namespace.
pub(crate) fn pod(name: &str, node: &str, app: &str, host_port: &str) -> String {
    format!(
        r"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}, pod: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: pod
    image: localhost/busybox:1
    imagePullPolicy: Never
    command: [sleep, '1000000']
    ports: [{{containerPort: {PORT}{host_port}}}]
"
    )
}

/// A Service with both families, for TCP and UDP.
pub(crate) fn service(name: &str, spec: &str) -> String {
    format!(
        r"---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  ipFamilyPolicy: RequireDualStack
  {spec}
"
    )
}

/// The same with node ports.
fn node_port_service(name: &str, selector: &str, node_port: u16) -> String {
    let spec = format!(
        "type: NodePort\n  selector: {{{selector}}}\n  ports: [{{name: tcp, port: 80, targetPort: {PORT}, nodePort: {node_port}}}, \
         {{name: udp, port: 80, protocol: UDP, targetPort: {PORT}, nodePort: {node_port}}}]"
    );
    service(name, &spec)
}

/// Ports of a Service, without node ports.
pub(crate) const PORTS: &str = "ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, port: 80, protocol: UDP, targetPort: 8080}]";

/// What answers and who asks.
pub(crate) struct Web {
    pub(crate) servers: [Host; 2],
    pub(crate) client: Host,
    pub(crate) outside: Host,
    /// Addresses of the nodes, in the order of their names.
    nodes: [Ipv4Addr; 2],
    /// Cluster IPs of the Service that only the pod of node1 serves.
    near: [IpAddr; 2],
    /// Cluster IPs of the Service `web`, IPv4 first.
    pub(crate) cluster_ips: [IpAddr; 2],
}

impl Web {
    /// Makes pods and the Service `web` with a node port, and waits until both answer.
    pub(crate) fn new(cluster: &Cluster) -> Result<Web> {
        let mut text = String::new();
        for (name, node, app) in PODS {
            let host_port = match name {
                "web-1" => format!(", hostPort: {HOST_PORT}"),
                _ => String::new(),
            };
            text += &pod(name, node, app, &host_port);
        }
        text += &node_port_service("web", "app: web", NODE_PORT);
        text += &node_port_service("near", "pod: web-0", NEAR_PORT);
        cluster.apply(&text)?;
        let servers = [serving(cluster, "web-0")?, serving(cluster, "web-1")?];
        let web = Web {
            servers,
            client: cluster.pod("client")?,
            outside: cluster.outside()?,
            nodes: [cluster.address("node1")?, cluster.address("node2")?],
            near: cluster_ips(cluster, "near")?,
            cluster_ips: cluster_ips(cluster, "web")?,
        };
        web.wait_until_served()?;
        Ok(web)
    }

    pub(crate) fn wait_until_served(&self) -> Result<()> {
        for ip in self.cluster_ips {
            let probe = Probe::new(Protocol::Tcp, (ip, 80)).within(Duration::from_millis(500));
            let both = || {
                let outcomes = (0..8).map(|_| self.client.probe(probe));
                let outcomes: Result<Vec<_>> = outcomes.collect();
                let outcomes = outcomes.unwrap_or_default();
                ["web-0", "web-1"].iter().all(|name| {
                    let answers = outcomes.iter().filter_map(|one| one.server());
                    answers.clone().count() == 8
                        && answers.into_iter().any(|one| one.starts_with(name))
                })
            };
            wait_until("both pods to answer", PATIENCE, both)?;
        }
        Ok(())
    }
}

/// A pod in whose namespace a thread answers, over TCP and UDP.
pub(crate) fn serving(cluster: &Cluster, name: &str) -> Result<Host> {
    let host = cluster.pod(name)?;
    host.serve(Protocol::Tcp, PORT)?;
    host.serve(Protocol::Udp, PORT)?;
    Ok(host)
}

/// The cluster IPs of a Service, IPv4 first.
pub(crate) fn cluster_ips(cluster: &Cluster, name: &str) -> Result<[IpAddr; 2]> {
    let service = cluster.get(&["service", name])?;
    let ip = |n: usize| -> Result<IpAddr> {
        let ip = service["spec"]["clusterIPs"][n].as_str();
        Ok(ip.context("no cluster IP")?.parse()?)
    };
    Ok([ip(0)?, ip(1)?])
}

/// Connections held and new ones, datagrams and questions, between pods and from outside.
pub(crate) struct Traffic {
    held: Vec<(&'static str, Held)>,
    streams: Vec<(&'static str, ConnectionStream)>,
    questions: Option<Questions>,
}

impl Traffic {
    /// Between all pods, and from outside by way of node2.
    pub(crate) fn start(web: &Web) -> Result<Traffic> {
        let ([_, node], [_, far]) = (web.nodes, &web.servers);
        let node = SocketAddr::from((node, NODE_PORT));
        let far = SocketAddr::new(far.ipv4().into(), PORT);
        let mut traffic = Traffic::between(web, web.cluster_ips, node, far)?;
        let questions = Questions::start(&web.client, NAME, Duration::from_millis(50))?;
        traffic.questions = Some(questions);
        Ok(traffic)
    }

    /// To the pod of node1 only, from outside by way of one node: [`NODE1`] or [`NODE2`].
    pub(crate) fn near(web: &Web, through: usize) -> Result<Traffic> {
        let [server, _] = &web.servers;
        let node = web.nodes.get(through).context("no such node")?;
        let node = SocketAddr::from((*node, NEAR_PORT));
        let server = SocketAddr::new(server.ipv4().into(), PORT);
        Traffic::between(web, web.near, node, server)
    }

    fn between(
        web: &Web,
        cluster_ips: [IpAddr; 2],
        node: SocketAddr,
        far: SocketAddr,
    ) -> Result<Traffic> {
        let [v4, v6] = cluster_ips.map(|ip| SocketAddr::new(ip, 80));
        let beat = Duration::from_millis(100);
        let held = [
            ("pod to cluster IP, IPv4", &web.client, v4),
            ("pod to cluster IP, IPv6", &web.client, v6),
            ("direct to a pod", &web.client, far),
            ("outside to node port", &web.outside, node),
        ];
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let streams = [
            ("TCP pod to cluster IP, IPv4", &web.client, tcp, v4),
            ("TCP pod to cluster IP, IPv6", &web.client, tcp, v6),
            ("UDP pod to cluster IP, IPv4", &web.client, udp, v4),
            ("TCP outside to node port", &web.outside, tcp, node),
            ("UDP outside to node port", &web.outside, udp, node),
            ("TCP direct to a pod", &web.client, tcp, far),
        ];
        Ok(Traffic {
            held: held
                .into_iter()
                .map(|(what, host, to)| Ok((what, host.hold(to, 10, beat)?)))
                .collect::<Result<_>>()?,
            streams: streams
                .into_iter()
                .map(|(what, host, protocol, to)| {
                    let probe = Probe::new(protocol, to);
                    Ok((what, host.stream_connections(probe, PAUSE)?))
                })
                .collect::<Result<_>>()?,
            questions: None,
        })
    }

    /// Waits for this number of further attempts of each kind.
    pub(crate) fn goes_on(&self, attempts: usize) -> Result<()> {
        for (what, stream) in &self.streams {
            let made = || {
                let tally = stream.report().tally;
                tally.answered() + tally.failed()
            };
            let enough = made() + attempts;
            wait_until(what, PATIENCE, || made() >= enough)?;
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Result<Count> {
        let mut count = Count::default();
        if let Some(questions) = self.questions {
            let (answered, failures) = questions.stop()?;
            count.answered += answered;
            count.add("DNS", failures);
        }
        for (what, stream) in self.streams {
            let report = stream.stop();
            count.answered += report.tally.answered();
            let failures = report.failures.into_iter();
            count.add(what, failures.map(|(at, how)| format!("{at:?}: {how}")));
        }
        for (what, held) in self.held {
            let report = held.stop();
            count.held += 10;
            count.exchanges += report.exchanges;
            let lost = report.lost.into_iter();
            let lost: Vec<_> = lost
                .map(|(at, how)| format!("{what}, held: {at:?}: {how}"))
                .collect();
            count.lost.extend(lost);
        }
        Ok(count)
    }
}

/// What became of traffic.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) answered: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) held: usize,
    pub(crate) exchanges: u64,
    pub(crate) lost: Vec<String>,
}

impl Count {
    fn add(&mut self, what: &str, failures: impl IntoIterator<Item = String>) {
        let failures = failures.into_iter().map(|how| format!("{what}: {how}"));
        self.failed.extend(failures);
    }

    /// A row of the table in the documentation.
    pub(crate) fn row(&self, what: &str) -> String {
        format!(
            "| {what} | {} of {} | {} of {} |",
            self.failed.len(),
            self.answered + self.failed.len(),
            self.lost.len(),
            self.held
        )
    }

    pub(crate) fn nothing_is_lost(&self, what: &str) -> Result<()> {
        println!("{}", self.row(what));
        ensure!(self.answered > 0 && self.exchanges > 0, "no traffic at all");
        let all = self.failed.iter().chain(&self.lost);
        let some: Vec<_> = all.take(20).collect();
        ensure!(some.is_empty(), "{what}: {some:#?}");
        Ok(())
    }
}
