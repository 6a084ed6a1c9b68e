use net_types::PerFamily;
use nft::{Backend, Fake};

use super::*;
use crate::plan::plan;
use crate::samples::cluster;

fn made(nodes: u8, options: RuleOptions) -> PerFamily<Option<TableContents>> {
    let cluster = cluster(nodes);
    let plan = plan(cluster.facts(), cluster.nodes.iter());
    PerFamily::from_fn(|family| table(&cluster.config, options, &plan, family))
}

#[test]
fn difference_of_any_two_tables_leads_to_the_second() {
    let all = [Filter::Off, Filter::Monitor, Filter::Enforce]
        .into_iter()
        .flat_map(|filter| {
            [true, false].map(|masquerade| RuleOptions {
                masquerade,
                filter,
                probe_port: masquerade.then_some(8473),
            })
        })
        .flat_map(|options| [1, 2, 9].map(|nodes| made(nodes, options)));
    let mut fake = Fake::new();
    for tables in all {
        for wanted in tables.values().flatten() {
            let family = wanted.table.family;
            let found = fake.list(family).unwrap();
            let transaction = nft::diff::diff(found.as_ref(), wanted);
            fake.commit(&transaction).unwrap();
            assert_eq!(fake.list(family).unwrap().as_ref(), Some(wanted));
        }
    }
}

#[test]
fn a_peer_may_send_from_its_pods_and_from_its_own_addresses() {
    let tables = made(
        3,
        RuleOptions {
            masquerade: false,
            filter: Filter::Enforce,
            probe_port: None,
        },
    );
    let elements = &tables[Family::Ip].as_ref().unwrap().elements;
    assert_eq!(elements["sources_24"].len(), 2);
    assert_eq!(elements["sources_32"].len(), 2);
    assert_eq!(elements["peers"].len(), 2);
}
