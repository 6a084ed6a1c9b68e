//! Tables that other processes have changed.

use super::*;

/// A foreign change of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meddling {
    /// A set not in our form.
    Set,
    /// A set and a chain in Portolan's form that refer to each other and to Portolan's chains.
    Loop,
    /// A chain hooked in another way, with a rule not in our form.
    Hook,
    /// A rule in another form, in one of Portolan's chains.
    Rule,
    /// One of Portolan's chains without its rules.
    Flush,
}

impl Meddling {
    pub(super) const ALL: [Meddling; 5] = [
        Meddling::Set,
        Meddling::Loop,
        Meddling::Hook,
        Meddling::Rule,
        Meddling::Flush,
    ];

    pub(super) fn with(self, contents: &mut TableContents) {
        let family = contents.table.family;
        let foreign = rule([Statement::Unknown("meta immediate".into())]);
        let mut add_chain = |hook, rules| {
            let (name, comment): (Name, Name) = ("foreign".into(), "".into());
            contents.chains.insert(
                name.clone(),
                Chain {
                    name,
                    hook,
                    comment,
                    rules,
                },
            );
        };
        match self {
            Meddling::Set => {
                let set = set("foreign", &[], SetKind::Unknown, "");
                contents.sets.insert(set.name.clone(), set);
            }
            Meddling::Hook => {
                add_chain(Some(Hook::Unknown), vec![foreign, rule([jump("cluster")])])
            }
            Meddling::Loop => {
                let (key, map) = (vec![Operand::SourceAddress], Name::from("foreign_map"));
                let look_up = Statement::VerdictMap {
                    key,
                    map: map.clone(),
                };
                add_chain(None, vec![rule([jump("services")]), rule([look_up])]);
                let to = |name: &'static str, number| {
                    let key = Bytes::new().address(address(family, number));
                    Element::verdict(key, Verdict::Jump(name.into()))
                };
                contents
                    .elements
                    .insert(map.clone(), vec![to("foreign", 1), to("cluster", 2)]);
                let set = set(map.clone(), &[Field::Address], SetKind::VerdictMap, "");
                contents.sets.insert(map, set);
                let large = contents
                    .elements
                    .entry("frontends_large".into())
                    .or_default();
                let key = frontend(family, 1000);
                large.push(Element::verdict(key, Verdict::Goto("foreign".into())));
            }
            Meddling::Rule => {
                for chain in contents
                    .chains
                    .values_mut()
                    .filter(|chain| chain.name == "services")
                {
                    chain.rules.push(foreign.clone());
                }
            }
            Meddling::Flush => {
                for chain in contents
                    .chains
                    .values_mut()
                    .filter(|chain| chain.name == "cluster")
                {
                    chain.rules.clear();
                }
            }
        }
    }
}
