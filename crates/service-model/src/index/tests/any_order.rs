//! The property that the index is built on: its answers depend on the existing objects, not on the events that brought
//! them, and planning the dirty Services alone is as good as planning everything.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::intent::ServiceIntent;

type Intents = BTreeMap<ObjectName, ServiceIntent>;

/// What can happen. Few names, so that events meet.
#[derive(Clone, Debug)]
enum Step {
    Service(ObjectEvent<Service>),
    Slice(ObjectEvent<EndpointSlice>),
    Suspects(Suspects),
    Node(ObjectEvent<Node>),
    Listeners(Arc<BTreeSet<Socket>>),
    /// The dirty Services are planned, as after a batch.
    Plan,
}

/// The objects there are, kept in the simplest way.
#[derive(Clone, Debug, Default)]
struct World {
    services: BTreeMap<ObjectName, Service>,
    /// Services that were invalid in the last list.
    unconfirmed: BTreeSet<ObjectName>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    suspects: Suspects,
    nodes: BTreeMap<ObjectName, Node>,
    listeners: Arc<BTreeSet<Socket>>,
}

/// The address of this node at which listeners count.
const HERE: &str = "192.0.2.10";

fn follow<T: Clone>(
    objects: &mut BTreeMap<ObjectName, T>,
    event: &ObjectEvent<T>,
    key: fn(&T) -> &ObjectName,
) {
    match event {
        ObjectEvent::Apply(object) => {
            objects.insert(key(object).clone(), T::clone(object));
        }
        ObjectEvent::Delete(name) => drop(objects.remove(name)),
        ObjectEvent::Reset {
            objects: listed,
            invalid,
        } => {
            objects.retain(|name, _| invalid.contains(name));
            objects.extend(
                listed
                    .iter()
                    .map(|object| (key(object).clone(), T::clone(object))),
            );
        }
    }
}

impl World {
    fn follow(&mut self, step: &Step) {
        match step {
            Step::Service(event) => self.follow_services(event),
            Step::Slice(event) => follow(&mut self.slices, event, |slice| &slice.name),
            Step::Suspects(suspects) => self.suspects = suspects.clone(),
            Step::Node(event) => follow(&mut self.nodes, event, |node| &node.name),
            Step::Listeners(listeners) => self.listeners = listeners.clone(),
            Step::Plan => {}
        }
    }

    /// Services that are received take their cluster IPs from those that were invalid in the last list.
    fn follow_services(&mut self, event: &ObjectEvent<Service>) {
        follow(&mut self.services, event, |service| &service.name);
        let received: &[Arc<Service>] = match event {
            ObjectEvent::Apply(service) => std::slice::from_ref(service),
            ObjectEvent::Delete(name) => {
                self.unconfirmed.remove(name);
                &[]
            }
            ObjectEvent::Reset { objects, invalid } => {
                self.unconfirmed = invalid.iter().cloned().collect();
                objects
            }
        };
        for service in received {
            self.unconfirmed.remove(&service.name);
        }
        for service in received {
            let services = &mut self.services;
            self.unconfirmed.retain(|name| {
                let kept = services.get(name);
                let is_taken = kept.is_some_and(|kept| {
                    let mut cluster_ips = kept.cluster_ips.iter();
                    cluster_ips.any(|at| service.cluster_ips.contains(at))
                });
                if is_taken {
                    services.remove(name);
                }
                !is_taken
            });
        }
    }

    /// Each object applied once.
    fn steps(&self) -> Vec<Step> {
        let services = self
            .services
            .values()
            .cloned()
            .map(|object| ObjectEvent::Apply(Arc::new(object)))
            .map(Step::Service);
        let slices = self
            .slices
            .values()
            .cloned()
            .map(|object| ObjectEvent::Apply(Arc::new(object)))
            .map(Step::Slice);
        let nodes = self
            .nodes
            .values()
            .cloned()
            .map(|object| ObjectEvent::Apply(Arc::new(object)))
            .map(Step::Node);
        let measured = [
            Step::Suspects(self.suspects.clone()),
            Step::Listeners(self.listeners.clone()),
        ];
        services
            .chain(slices)
            .chain(nodes)
            .chain(measured)
            .collect()
    }

    /// From nothing, by one list of each kind.
    fn index(&self) -> Index {
        let mut index = empty();
        index.node_event(&ObjectEvent::list(self.nodes.values().cloned()));
        index.set_listeners(self.listeners.clone());
        index.service_event(ObjectEvent::list(self.services.values().cloned()));
        index.slice_event(ObjectEvent::list(self.slices.values().cloned()));
        index.set_suspects(self.suspects.clone());
        index
    }

    fn intents(&self) -> Intents {
        let index = self.index();
        let names: Vec<ObjectName> = index.service_names().cloned().collect();
        names
            .iter()
            .filter_map(|name| Some((name.clone(), index.plan(name, &facts())?.intent)))
            .collect()
    }
}

fn empty() -> Index {
    let mut index = Index::new();
    index.set_node_addresses(&[HERE.parse().unwrap()]);
    index
}

fn some_world() -> impl Strategy<Value = World> {
    let objects = (
        prop::collection::vec(some_service(), 0..4),
        prop::collection::vec(some_slice(), 0..6),
        some_suspects(),
        prop::collection::vec(some_node(), 0..4),
        some_listeners(),
    );
    objects.prop_map(|(services, slices, suspects, nodes, listeners)| World {
        services: services.into_iter().map(|s| (s.name.clone(), s)).collect(),
        unconfirmed: BTreeSet::new(),
        slices: slices.into_iter().map(|s| (s.name.clone(), s)).collect(),
        suspects,
        nodes: nodes.into_iter().map(|n| (n.name.clone(), n)).collect(),
        listeners,
    })
}

/// Follows the dirty Services.
fn plan_dirty(index: &mut Index, intents: &mut Intents) {
    for name in index.take_dirty() {
        match index.plan(&name, &facts()) {
            Some(plan) => drop(intents.insert(name, plan.intent)),
            None => drop(intents.remove(&name)),
        }
    }
}

fn take_in(index: &mut Index, step: Step) {
    match step {
        Step::Service(event) => index.service_event(event),
        Step::Slice(event) => index.slice_event(event),
        Step::Suspects(suspects) => index.set_suspects(suspects),
        Step::Node(event) => index.node_event(&event),
        Step::Listeners(listeners) => index.set_listeners(listeners),
        Step::Plan => {}
    }
}

/// This node, node-1, is never one.
fn some_suspects() -> impl Strategy<Value = Suspects> {
    let names = prop::sample::subsequence(vec!["node-2", "node-3"], 0..=2);
    names.prop_map(|names| suspects(&names))
}

/// This node among them, whose addresses are free to its Services.
fn some_node() -> impl Strategy<Value = Node> {
    let name = prop::sample::select(&["node-1", "node-2", "node-3"]);
    let address = prop::sample::select(&["198.51.100.1", "198.51.100.2"]);
    let pod_cidr = prop::sample::select(&["10.244.1.0/24", "10.244.0.0/16"]);
    (name, address, pod_cidr).prop_map(|(name, address, pod_cidr)| {
        let mut node = Node::unknown(name);
        node.addresses = vec![address.parse().unwrap()];
        node.pod_cidrs = vec![pod_cidr.parse().unwrap()];
        node
    })
}

fn some_listeners() -> impl Strategy<Value = Arc<BTreeSet<Socket>>> {
    let at = |protocol, port| (protocol, SocketAddr::new(HERE.parse().unwrap(), port));
    let all = vec![at(Protocol::Tcp, 80), at(Protocol::Udp, 53)];
    prop::sample::subsequence(all, 0..=2)
        .prop_map(|listeners| Arc::new(listeners.into_iter().collect()))
}

fn some_service() -> impl Strategy<Value = Service> {
    let name = prop::sample::select(&["shop/a", "shop/b", "prod/a"]);
    let ips = prop::sample::select(&["10.96.0.1", "10.96.0.2 fd00::2", "fd00::3", ""]);
    let ports = prop::sample::select(&["http/80/TCP", "http/80/TCP/30080 dns/53/UDP", ""]);
    let addresses = vec![HERE, "198.51.100.1", "198.51.100.2", "10.244.1.9"];
    (
        name,
        ips,
        ports,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::sample::subsequence(addresses, 0..=2),
    )
        .prop_map(|(name, ips, ports, excluded, external, addresses)| {
            let mut service = service(name, ips, ports);
            service.external_ips = addresses.iter().map(|at| at.parse().unwrap()).collect();
            service.excluded = excluded;
            if external {
                service.service_type = ServiceType::ExternalName;
            }
            service
        })
}

fn some_slice() -> impl Strategy<Value = EndpointSlice> {
    let name = prop::sample::select(&["shop/1", "shop/2", "shop/3", "prod/1"]);
    let service = prop::sample::select(&["a", "b"]);
    let ports = prop::sample::select(&[
        "http/8080/TCP",
        "http/80/TCP dns/53/UDP",
        "http/8080/TCP dns/53/UDP",
        "dns/54/UDP",
    ]);
    let endpoints = prop::sample::select(&[
        "10.1.0.1 10.1.0.2@node-1",
        "10.1.0.1 10.1.0.4@node-2 10.1.0.5@node-3",
        "10.1.0.1:st",
        "10.1.0.1@node-1 10.1.0.3:s",
        "192.0.2.10@node-1",
        "fd00:1::1 fd00:1::2:st",
        "",
    ]);
    (name, service, ports, endpoints, prop::bool::weighted(0.1)).prop_map(
        |(name, service, ports, endpoints, excluded)| {
            let mut slice = slice(name, service, ports, endpoints);
            slice.excluded = excluded;
            slice
        },
    )
}

fn some_event<T: Clone + std::fmt::Debug>(
    object: fn() -> BoxedStrategy<T>,
    key: fn(&T) -> &ObjectName,
) -> impl Strategy<Value = ObjectEvent<T>> {
    let name = move || object().prop_map(move |object| key(&object).clone());
    let lists = (
        prop::collection::vec(object(), 0..5),
        prop::collection::vec(name(), 0..2),
    );
    prop_oneof![
        6 => object().prop_map(|object| ObjectEvent::Apply(Arc::new(object))),
        2 => name().prop_map(ObjectEvent::Delete),
        1 => lists.prop_map(|(objects, invalid)| ObjectEvent::Reset {
            objects: objects.into_iter().map(Arc::new).collect(),
            invalid,
        }),
    ]
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => some_event(|| some_service().boxed(), |service| &service.name).prop_map(Step::Service),
        5 => some_event(|| some_slice().boxed(), |slice| &slice.name).prop_map(Step::Slice),
        1 => some_suspects().prop_map(Step::Suspects),
        1 => some_event(|| some_node().boxed(), |node| &node.name).prop_map(Step::Node),
        1 => some_listeners().prop_map(Step::Listeners),
        2 => Just(Step::Plan),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_history_gives_the_intents_of_planning_from_nothing(steps in prop::collection::vec(some_step(), 0..40)) {
        let (mut index, mut world, mut intents) = (empty(), World::default(), Intents::new());
        for step in steps {
            world.follow(&step);
            let plan_now = matches!(step, Step::Plan);
            take_in(&mut index, step);
            if plan_now {
                plan_dirty(&mut index, &mut intents);
                prop_assert_eq!(&intents, &world.intents());
            }
        }
        plan_dirty(&mut index, &mut intents);
        prop_assert_eq!(&intents, &world.intents());
        let names: Vec<&ObjectName> = index.service_names().collect();
        prop_assert_eq!(names, world.services.keys().collect::<Vec<_>>());
        prop_assert_eq!(index.external_sockets(), world.index().external_sockets());
        prop_assert_eq!(index.service_count(), world.services.len());
        let counted = world.slices.values().filter(|slice| !slice.excluded);
        prop_assert_eq!(index.endpoint_count(), counted.map(|slice| slice.endpoints.len()).sum::<usize>());
    }

    #[test]
    fn objects_may_arrive_in_any_order_and_repeatedly((world, steps) in some_world().prop_flat_map(|world| {
        let steps = world.steps();
        (Just(world), Just([steps.clone(), steps].concat()).prop_shuffle())
    })) {
        let (mut index, mut intents) = (empty(), Intents::new());
        for step in steps {
            take_in(&mut index, step);
        }
        plan_dirty(&mut index, &mut intents);
        prop_assert_eq!(&intents, &world.intents());
    }
}
