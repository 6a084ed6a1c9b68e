//! Nodes of an overlay that encrypt what they send each other, with the real program and an API server.

use anyhow::{Context, Result};
use lab::fake_api::FakeApi;
use lab::{Daemon, wait_until};
use nix::sys::signal::Signal;

use crate::overlay::{OverlayStage, tool};
use crate::stage::{PATIENCE, portolan};
use crate::wire::Listener;

/// Part of each answer of the pods' servers: `pod-1:8080 peer 10.244.0.2:40000`.
pub const ANSWER: &[u8] = b":8080 peer ";
/// The link between the nodes.
pub const UPLINK: &str = "eth0";
/// The annotation with a node's key.
pub const ANNOTATION: &str = "flannel.alpha.coreos.com/portolan-encryption";
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

/// Nodes with an API server and one program each.
pub struct Encrypted {
    pub stage: OverlayStage,
    pub api: FakeApi,
    pub kubeconfig: String,
    pub daemons: Vec<Option<Daemon>>,
}

impl Encrypted {
    /// So many nodes without a program yet.
    pub fn new(nodes: usize) -> Result<Encrypted> {
        let stage = OverlayStage::new(nodes)?;
        let (api, kubeconfig) = stage.serve_api()?;
        Ok(Encrypted {
            daemons: (0..nodes).map(|_| None).collect(),
            stage,
            api,
            kubeconfig,
        })
    }

    /// Starts the program on a node, instead of the one that runs there.
    pub fn start(&mut self, node: usize, mode: &str) -> Result<()> {
        if let Some(before) = self.daemons[node].take() {
            before.signal(Signal::SIGTERM)?;
            before.wait(PATIENCE)?;
        }
        let keys = self.stage.file(node, "keys");
        let flags = [
            "--overlay-encryption",
            mode,
            "--overlay-encryption-key-file",
            &keys,
            "--log-level",
            "object_source=debug,portolan::overlay::round=debug,info",
        ];
        let daemon = self.stage.start_with_api(node, &self.kubeconfig, &flags)?;
        self.daemons[node] = Some(daemon);
        Ok(())
    }

    /// Starts it on every node, and waits until every pod reaches every other.
    pub fn start_all(&mut self, mode: &str) -> Result<()> {
        (0..self.stage.nodes.len()).try_for_each(|node| self.start(node, mode))?;
        self.stage.wait_for_mesh()
    }

    /// FDB entries of a node in all, and those that lead to a device with this name.
    pub fn entries(&self, node: usize, carrier: &str) -> Result<(usize, usize)> {
        let (mut all, mut carried) = (0, 0);
        for device in DEVICES {
            let text = tool(
                &self.stage.nodes[node],
                "bridge",
                &format!("fdb show dev {device}"),
            )?;
            let dst = text.lines().filter(|line| line.contains(" dst "));
            let via = format!(" via {carrier} ");
            all += dst.clone().count();
            carried += dst.filter(|line| format!("{line} ").contains(&via)).count();
        }
        Ok((all, carried))
    }

    /// Waits until every entry of every node leads to the first device.
    pub fn wait_until_encrypted(&self) -> Result<()> {
        let others = self.stage.nodes.len() - 1;
        for node in 0..self.stage.nodes.len() {
            let what = format!("node-{node} sends by WireGuard alone");
            let expected = (others * 2, others * 2);
            wait_until(&what, PATIENCE, || {
                self.entries(node, "portolan-wg")
                    .is_ok_and(|found| found == expected)
            })
            .with_context(|| self.situation(node))?;
        }
        Ok(())
    }

    /// The key that a node announces.
    pub fn announced(&self, node: usize) -> Option<String> {
        let node = self.api.node(self.stage.nodes[node].name())?;
        let text = node["metadata"]["annotations"].get(ANNOTATION)?.as_str()?;
        Some(text.to_owned())
    }

    /// Listens at the link of each node for answers of pods.
    pub fn listen(&self) -> Result<Vec<Listener>> {
        self.listen_for(ANSWER)
    }

    /// Listens at the link of each node for this text.
    pub fn listen_for(&self, text: &'static [u8]) -> Result<Vec<Listener>> {
        let nodes = self.stage.nodes.iter();
        nodes
            .map(|node| Listener::start(node, UPLINK, text))
            .collect()
    }

    /// What a node came to, for the message of a failure.
    pub fn situation(&self, node: usize) -> String {
        let entries = self.entries(node, "portolan-wg");
        let status = self.says(node, "status").unwrap_or_default();
        let daemon = self.daemons[node].as_ref();
        let log = daemon.map(Daemon::lines).unwrap_or_default().join("\n");
        let threads = daemon.map(Daemon::threads).unwrap_or_default();
        format!("entries {entries:?}\n{status}\n{log}\n{threads}")
    }

    /// What a command of the program prints on a node, whatever its exit code.
    pub fn says(&self, node: usize, arguments: &str) -> Result<String> {
        let host = &self.stage.nodes[node];
        let mut command = host.command(portolan()?);
        command.args(arguments.split_whitespace());
        let output = host.output(command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
