//! What the loop reads of its own node besides the facts: the processes that listen, and whether there is a Node object.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use nft::Backend;
use service_model::Socket;

use super::Control;

impl<B: Backend> Control<B> {
    /// Looks for processes that listen where Services ask for external frontends, when the requests have changed or time is up.
    pub(super) fn look_for_listeners(&mut self, now: Instant) {
        let revision = self.view.external_sockets_revision();
        let has_changed = std::mem::replace(&mut self.sockets_revision, revision) != revision;
        if !has_changed && self.listeners.due().is_none_or(|at| at > now) {
            return;
        }
        let requested = self.view.external_sockets();
        let found: BTreeSet<Socket> = self.listeners.among(&requested, now).into_iter().collect();
        if found != *self.listening {
            self.listening = Arc::new(found);
            for observer in &mut self.observers {
                observer.listeners(&self.listening);
            }
            self.view.set_listeners(self.listening.clone());
        }
    }

    /// Logs a missing Node object of this node. Until there is one, node ports stay at the addresses at which an earlier
    /// process served them.
    pub(super) fn look_for_node(&mut self) {
        if !self.view.lacks_node() {
            if std::mem::take(&mut self.lacks_node) {
                tracing::info!("found the Node object of this node");
            }
            return;
        }
        if std::mem::replace(&mut self.lacks_node, true) {
            return;
        }
        let adopted = match self.synced {
            true => Ok(Vec::new()),
            false => self.dataplane.adopted_node_addresses(),
        };
        let adopted = adopted.unwrap_or_default();
        let addresses: Vec<String> = adopted.iter().map(IpAddr::to_string).collect();
        tracing::warn!(node = %self.facts.node_name, addresses = addresses.join(" "),
            "no Node object has the name of this node: node ports are served at the addresses of an earlier start only, policy \
             Local finds no endpoints, and health checks of load balancers fail; check --hostname-override");
        self.view.adopt_addresses(adopted);
    }
}
