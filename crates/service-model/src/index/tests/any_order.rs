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
    /// The dirty Services are planned, as after a batch.
    Plan,
}

/// The objects there are, kept in the simplest way.
#[derive(Clone, Debug, Default)]
struct World {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    suspects: Suspects,
}

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
            Step::Service(event) => follow(&mut self.services, event, |service| &service.name),
            Step::Slice(event) => follow(&mut self.slices, event, |slice| &slice.name),
            Step::Suspects(suspects) => self.suspects = suspects.clone(),
            Step::Plan => {}
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
        let suspects = [Step::Suspects(self.suspects.clone())];
        services.chain(slices).chain(suspects).collect()
    }

    /// From nothing, by one list of each kind.
    fn intents(&self) -> Intents {
        let mut index = Index::new();
        index.service_event(ObjectEvent::list(self.services.values().cloned()));
        index.slice_event(ObjectEvent::list(self.slices.values().cloned()));
        index.set_suspects(self.suspects.clone());
        let names: Vec<ObjectName> = index.service_names().cloned().collect();
        names
            .iter()
            .filter_map(|name| Some((name.clone(), index.plan(name, &facts())?.intent)))
            .collect()
    }
}

fn some_world() -> impl Strategy<Value = World> {
    let objects = (
        prop::collection::vec(some_service(), 0..4),
        prop::collection::vec(some_slice(), 0..6),
        some_suspects(),
    );
    objects.prop_map(|(services, slices, suspects)| World {
        services: services.into_iter().map(|s| (s.name.clone(), s)).collect(),
        slices: slices.into_iter().map(|s| (s.name.clone(), s)).collect(),
        suspects,
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
        Step::Plan => {}
    }
}

/// This node, node-1, is never one.
fn some_suspects() -> impl Strategy<Value = Suspects> {
    let names = prop::sample::subsequence(vec!["node-2", "node-3"], 0..=2);
    names.prop_map(|names| suspects(&names))
}

fn some_service() -> impl Strategy<Value = Service> {
    let name = prop::sample::select(&["shop/a", "shop/b", "prod/a"]);
    let ips = prop::sample::select(&["10.96.0.1", "10.96.0.2 fd00::2", "fd00::3", ""]);
    let ports = prop::sample::select(&["http/80/TCP", "http/80/TCP/30080 dns/53/UDP", ""]);
    (
        name,
        ips,
        ports,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(name, ips, ports, excluded, external)| {
            let mut service = service(name, ips, ports);
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
    let ports = prop::sample::select(&["http/8080/TCP", "http/8080/TCP dns/53/UDP", "dns/54/UDP"]);
    let endpoints = prop::sample::select(&[
        "10.1.0.1 10.1.0.2@node-1",
        "10.1.0.1 10.1.0.4@node-2 10.1.0.5@node-3",
        "10.1.0.1:st",
        "10.1.0.1@node-1 10.1.0.3:s",
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
        2 => Just(Step::Plan),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_history_gives_the_intents_of_planning_from_nothing(steps in prop::collection::vec(some_step(), 0..40)) {
        let (mut index, mut world, mut intents) = (Index::new(), World::default(), Intents::new());
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
        prop_assert_eq!(index.service_count(), world.services.len());
        let counted = world.slices.values().filter(|slice| !slice.excluded);
        prop_assert_eq!(index.endpoint_count(), counted.map(|slice| slice.endpoints.len()).sum::<usize>());
    }

    #[test]
    fn objects_may_arrive_in_any_order_and_repeatedly((world, steps) in some_world().prop_flat_map(|world| {
        let steps = world.steps();
        (Just(world), Just([steps.clone(), steps].concat()).prop_shuffle())
    })) {
        let (mut index, mut intents) = (Index::new(), Intents::new());
        for step in steps {
            take_in(&mut index, step);
        }
        plan_dirty(&mut index, &mut intents);
        prop_assert_eq!(&intents, &world.intents());
    }
}
