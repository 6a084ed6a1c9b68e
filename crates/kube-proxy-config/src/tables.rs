//! The tables: fields of the two documents, flags of the three command lines.
//!
//! A new setting is a row here and a line in [`crate::effective`].

pub(crate) mod checks;
pub(crate) mod fields;
pub(crate) mod flags;
pub(crate) mod flannel;
pub(crate) mod portolan;

use crate::flag::{Flag, Target};
use crate::schema::Field;

/// The field that a flag sets.
pub(crate) fn field_of(flag: &Flag) -> Option<&'static Field> {
    let (table, path) = match flag.target {
        Target::Proxy(path) => (fields::KUBE_PROXY, path),
        Target::Own(path) => (portolan::PORTOLAN, path),
        Target::Command(path) => (fields::COMMAND, path),
    };
    table.iter().find(|field| field.path == path)
}

/// Whether a flag may be given without a value.
pub(crate) fn is_switch(flag: &Flag) -> bool {
    field_of(flag).is_some_and(|field| field.shape.is_switch()) || flag.name == "version"
}
