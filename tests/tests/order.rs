//! The order of events does not matter: the same objects give the same table, to the bit, however they
//! came to be known.
//!
//! Histories are expanded as Felix expands its tests: shuffled, reversed, split, squashed, repeated, with
//! empties between, with lists in place of events, and with restarts of the daemon between any two steps.
//! `PORTOLAN_HISTORIES` says how many, `PORTOLAN_SEED` where to begin.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nft::{Backend, Fake, Family, TableContents};
use portolan_tests::cluster::{Cluster, Generator, Node, Service, Settings, Slice};
use portolan_tests::{in_parallel, number_from_env, product};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use service_dataplane::{Dataplane, Update};
use service_model::wire::ConversionContext;
use service_model::{Index, NodeFacts, ObjectEvent, ObjectName};

type Key = (String, String);

/// What exists, as an API server holds it.
#[derive(Clone, Default)]
struct World {
    services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, Slice>,
    suspects: BTreeSet<String>,
    /// With the flags; no other objects.
    node: Option<(Cluster, Node)>,
}

impl World {
    fn of(cluster: &Cluster) -> World {
        let services = cluster.services.iter();
        let slices = cluster.slices.iter();
        let flags = Cluster {
            settings: cluster.settings.clone(),
            service_cidrs: cluster.service_cidrs.clone(),
            ..Cluster::default()
        };
        World {
            services: services
                .map(|s| ((s.namespace.clone(), s.name.clone()), s.clone()))
                .collect(),
            slices: slices
                .map(|s| ((s.namespace.clone(), s.name.clone()), s.clone()))
                .collect(),
            suspects: cluster.suspects.clone(),
            node: Some((flags, cluster.nodes[0].clone())),
        }
    }

    /// The events that lead to `next`, in any order.
    fn changes(&self, next: &World) -> Vec<Event> {
        let mut events = Vec::new();
        for (key, service) in changed(&self.services, &next.services) {
            events.push(Event::Service(key, service));
        }
        for (key, slice) in changed(&self.slices, &next.slices) {
            events.push(Event::Slice(key, slice));
        }
        if self.suspects != next.suspects {
            events.push(Event::Suspects(next.suspects.clone()));
        }
        if self.node != next.node {
            events.extend(next.node.clone().map(|node| Event::Node(Box::new(node))));
        }
        events
    }

    fn facts(&self) -> NodeFacts {
        let (flags, node) = self.node.as_ref().unwrap();
        product::facts(flags, node)
    }
}

/// What is not alike on both sides, as it is on the second.
fn changed<T: Clone + PartialEq>(
    before: &BTreeMap<Key, T>,
    after: &BTreeMap<Key, T>,
) -> Vec<(Key, Option<T>)> {
    let keys: BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
    let different = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key));
    different
        .map(|key| (key.clone(), after.get(key).cloned()))
        .collect()
}

/// An object is now so, or gone.
#[derive(Clone)]
enum Event {
    Service(Key, Option<Service>),
    Slice(Key, Option<Slice>),
    Suspects(BTreeSet<String>),
    Node(Box<(Cluster, Node)>),
}

/// A daemon with its world, and a kernel that outlives it.
struct Daemon {
    world: World,
    index: Index,
    context: ConversionContext,
    dataplane: Dataplane<Fake>,
    rng: SmallRng,
}

impl Daemon {
    fn start(world: World, kernel: Fake, rng: SmallRng) -> Daemon {
        let dataplane = Dataplane::new(kernel, world.facts());
        let context = product::context(&world.node.as_ref().unwrap().0);
        let mut daemon = Daemon {
            world,
            index: Index::new(),
            context,
            dataplane,
            rng,
        };
        daemon.relist();
        let suspects = product::suspects(&daemon.world.suspects);
        daemon.index.set_suspects(suspects);
        daemon.sync();
        daemon
    }

    fn restart(self) -> Daemon {
        let Daemon {
            world,
            mut dataplane,
            rng,
            ..
        } = self;
        Daemon::start(world, std::mem::take(dataplane.backend_mut()), rng)
    }

    /// Complete lists, in any order, of either kind first.
    fn relist(&mut self) {
        let mut services: Vec<_> = self.world.services.values().cloned().collect();
        let mut slices: Vec<_> = self.world.slices.values().cloned().collect();
        services.shuffle(&mut self.rng);
        slices.shuffle(&mut self.rng);
        let context = &mut self.context;
        let services = services
            .iter()
            .map(|s| product::service(s, context).unwrap());
        let services = ObjectEvent::list(services);
        let slices = slices.iter().filter_map(|s| product::slice(s, context));
        let slices = ObjectEvent::list(slices);
        if self.rng.random() {
            self.index.service_event(services);
            self.index.slice_event(slices);
        } else {
            self.index.slice_event(slices);
            self.index.service_event(services);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Service(key, Some(service)) => {
                let object = product::service(&service, &mut self.context).unwrap();
                self.index
                    .service_event(ObjectEvent::Apply(Arc::new(object)));
                self.world.services.insert(key, service);
            }
            Event::Slice(key, Some(slice)) => {
                match product::slice(&slice, &mut self.context) {
                    Some(object) => self.index.slice_event(ObjectEvent::Apply(Arc::new(object))),
                    // A source has nothing to apply: no owner, or FQDN. What it was before is gone.
                    None => self.index.slice_event(ObjectEvent::Delete(name(&key))),
                }
                self.world.slices.insert(key, slice);
            }
            Event::Service(key, None) => {
                self.index.service_event(ObjectEvent::Delete(name(&key)));
                self.world.services.remove(&key);
            }
            Event::Slice(key, None) => {
                self.index.slice_event(ObjectEvent::Delete(name(&key)));
                self.world.slices.remove(&key);
            }
            Event::Suspects(suspects) => {
                self.index.set_suspects(product::suspects(&suspects));
                self.world.suspects = suspects;
            }
            Event::Node(node) => {
                self.world.node = Some(*node);
                let facts = self.world.facts();
                let mut names: BTreeSet<ObjectName> = self.index.take_dirty().into_iter().collect();
                names.extend(self.index.service_names().cloned());
                let updates = self.plan(names, &facts);
                self.dataplane.refresh(facts, updates).unwrap();
            }
        }
    }

    fn plan(&self, names: impl IntoIterator<Item = ObjectName>, facts: &NodeFacts) -> Vec<Update> {
        let update = |service: ObjectName| Update {
            intent: self
                .index
                .plan(&service, facts)
                .map(|plan| plan.intent.into()),
            service,
        };
        names.into_iter().map(update).collect()
    }

    fn sync(&mut self) -> usize {
        let dirty = self.index.take_dirty();
        let updates = self.plan(dirty, self.dataplane.facts());
        let outcome = self.dataplane.commit(updates).unwrap();
        assert!(outcome.quarantined.is_empty(), "{:?}", outcome.quarantined);
        outcome.transactions
    }

    fn tables(&mut self) -> [TableContents; 2] {
        let kernel = self.dataplane.backend_mut();
        Family::ALL.map(|family| without_empties(kernel.list(family).unwrap().unwrap()))
    }
}

fn name(key: &Key) -> ObjectName {
    ObjectName::new(key.0.as_str(), key.1.as_str())
}

/// A set without elements may be listed or not.
fn without_empties(mut contents: TableContents) -> TableContents {
    contents.elements.retain(|_, elements| !elements.is_empty());
    contents
}

/// The settings, so that no plan depends on other Nodes, which these worlds do not have.
fn without_other_nodes(cluster: &Cluster) -> Settings {
    let everywhere = || vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let mut settings = cluster.settings.clone();
    settings.allowed_external_ips.get_or_insert_with(everywhere);
    settings
}

/// Some worlds that follow each other, then a walk over them, forth and back, that ends in the last.
fn history(generator: &mut Generator) -> (Vec<World>, Cluster) {
    let mut cluster = generator.cluster();
    cluster.settings = without_other_nodes(&cluster);
    let mut worlds = vec![World::of(&cluster)];
    for _ in 0..generator.rng().random_range(1..6) {
        for _ in 0..generator.rng().random_range(1..4) {
            generator.mutate(&mut cluster);
        }
        cluster.settings = without_other_nodes(&cluster);
        worlds.push(World::of(&cluster));
    }
    let mut walk: Vec<World> = worlds
        .iter()
        .filter(|_| generator.rng().random_bool(0.7))
        .cloned()
        .collect();
    if generator.rng().random() {
        let back = worlds.choose(generator.rng()).cloned();
        walk.extend(back);
    }
    walk.push(World::of(&cluster));
    (walk, cluster)
}

/// Lives through the worlds in some way, and returns the daemon at the end.
fn live(worlds: Vec<World>, mut rng: SmallRng) -> Daemon {
    let begin = if rng.random() {
        World {
            node: worlds[0].node.clone(),
            ..World::default()
        }
    } else {
        worlds[0].clone()
    };
    let mut daemon = Daemon::start(begin, Fake::new(), SmallRng::seed_from_u64(rng.random()));
    for world in worlds {
        let mut events = daemon.world.changes(&world);
        for event in events.clone() {
            if rng.random_bool(0.2) {
                events.push(event);
            }
        }
        if rng.random_bool(0.3) {
            let unknown = ("default".to_owned(), "never-was".to_owned());
            events.push(Event::Service(unknown.clone(), None));
            events.push(Event::Slice(unknown, None));
        }
        events.shuffle(&mut rng);
        let split = [0.0, 0.3, 1.0].choose(&mut rng).copied().unwrap_or(0.0);
        for event in events {
            daemon.handle(event);
            if rng.random_bool(split) {
                daemon.sync();
            }
            match rng.random_range(0..40) {
                0 => daemon = daemon.restart(),
                1 => daemon.relist(),
                2 => {
                    daemon.sync();
                    assert_eq!(daemon.sync(), 0, "a sync without news wrote something");
                }
                _ => {}
            }
        }
    }
    daemon.sync();
    daemon
}

#[test]
fn any_order_of_events_and_restarts_gives_the_same_table() {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let histories = number_from_env("PORTOLAN_HISTORIES", 500);
    in_parallel(seed..seed + histories, |seed| {
        let mut generator = Generator::new(seed).contradictory();
        let (worlds, last) = history(&mut generator);
        let expected = product::contents(&last, &last.nodes[0]).map(without_empties);
        let mut daemon = live(worlds, SmallRng::seed_from_u64(seed));
        assert!(
            daemon.tables() == expected,
            "PORTOLAN_SEED={seed} PORTOLAN_HISTORIES=1: tables differ\n{:#?}\n{}",
            differences(&daemon.tables(), &expected),
            last.to_manifests()
        );
        let mut again = daemon.restart();
        assert_eq!(
            again.sync(),
            0,
            "PORTOLAN_SEED={seed}: a restart with nothing changed wrote something"
        );
        assert!(
            again.tables() == expected,
            "PORTOLAN_SEED={seed}: a restart changed the table"
        );
    });
}

#[test]
fn any_order_of_objects_gives_an_identical_table() {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    in_parallel(
        seed..seed + number_from_env("PORTOLAN_HISTORIES", 500),
        |seed| {
            let mut generator = Generator::new(seed).contradictory();
            let mut cluster = generator.cluster();
            let node = cluster.nodes[0].clone();
            let expected = product::contents(&cluster, &node);
            for _ in 0..3 {
                cluster.services.shuffle(generator.rng());
                cluster.slices.shuffle(generator.rng());
                let same = product::contents(&cluster, &node) == expected;
                assert!(
                    same,
                    "PORTOLAN_SEED={seed} PORTOLAN_HISTORIES=1\n{}",
                    cluster.to_manifests()
                );
            }
        },
    );
}

fn differences(found: &[TableContents; 2], expected: &[TableContents; 2]) -> Vec<nft::Transaction> {
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(found, expected)| nft::diff::diff(Some(found), expected))
        .collect()
}
