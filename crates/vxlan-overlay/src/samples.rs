//! Clusters for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use net_types::PerFamily;

use crate::annotations::{Names, ParsedAnnotations};
use crate::carriers::Carriers;
use crate::config::Config;
use crate::mac::Mac;
use crate::peers::Node;
use crate::plan::Facts;
use crate::underlay::{Interface, InterfaceAddress, Preferences, Surroundings};

/// What a plan follows from, owned.
pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) preferences: Preferences,
    pub(crate) names: Names,
    pub(crate) infer: bool,
    pub(crate) found: PerFamily<Option<Mac>>,
    pub(crate) surroundings: Surroundings,
    pub(crate) carriers: Carriers,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            config: &self.config,
            preferences: &self.preferences,
            names: &self.names,
            own: "node-0",
            infer: self.infer,
            found: self.found,
            surroundings: &self.surroundings,
            carriers: &self.carriers,
        }
    }
}

/// Dual-stack nodes on one link; the facts are those of `node-0`.
pub(crate) fn cluster(nodes: u8) -> Cluster {
    let own = ["192.0.2.10/24", "2001:db8::10/64"].map(|net| InterfaceAddress {
        net: net.parse().unwrap(),
        permanent: true,
        stable: true,
    });
    let eth0 = Interface {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        up: true,
        tunnel: None,
        vrf: None,
        addresses: own.into(),
    };
    let node = |number: u8| Node {
        name: format!("node-{number}").into(),
        created: None,
        pod_cidrs: [
            format!("10.244.{number}.0/24").parse().unwrap(),
            format!("fd00:244:0:{number}::/64").parse().unwrap(),
        ]
        .into(),
        addresses: [
            format!("192.0.2.{}", 10 + number).parse().unwrap(),
            format!("2001:db8::{}", 10 + number).parse().unwrap(),
        ]
        .into(),
        parsed: ParsedAnnotations::Absent,
        encryption: None,
        probes: false,
        annotations: Arc::default(),
        held: false,
        stale: false,
        former: Default::default(),
    };
    Cluster {
        config: Config::default(),
        preferences: Preferences::default(),
        names: Names::default(),
        infer: true,
        found: PerFamily::default(),
        surroundings: Surroundings {
            interfaces: vec![eth0],
            default_route: PerFamily::new(Some(2), Some(2)),
            uplinks: PerFamily::default(),
            reaching: PerFamily::default(),
            ways: BTreeMap::new(),
        },
        carriers: Carriers::default(),
        nodes: (0..nodes).map(node).collect(),
    }
}
