//! A value of a setting, as flags and files give it and as the configuration is written out again.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::go;
use crate::problem::shown;

/// A value; what it may be is said by the [`crate::schema::Shape`] of its setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Not given: a field that kube-proxy writes as `null`.
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Nanoseconds; written as Go writes a duration (`1h0m0s`).
    Duration(i64),
    /// Any text.
    Text(String),
    /// Values in order.
    List(Vec<Value>),
    /// Keys in order.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// Whether the value is Go's zero value.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Int(value) | Value::Duration(value) => *value == 0,
            Value::Float(value) => *value == 0.0,
            Value::Text(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    /// The value in a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Duration(nanoseconds) => go::format_duration(*nanoseconds),
            Value::Text(text) => text.clone(),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(Value::describe).collect();
                items.join(",")
            }
            Value::Map(entries) => {
                let entry = |(key, value): &(String, Value)| format!("{key}={}", value.describe());
                entries.iter().map(entry).collect::<Vec<_>>().join(",")
            }
        }
    }

    /// [`Value::describe`], bounded and quoted where that is needed.
    pub(crate) fn shown(&self) -> String {
        shown(&self.describe())
    }

    /// Puts a value at a dotted path below this map.
    pub(crate) fn insert(&mut self, path: &str, value: Value) {
        let Value::Map(entries) = self else { return };
        let Some((group, rest)) = path.split_once('.') else {
            entries.push((path.to_owned(), value));
            return;
        };
        let at = entries.iter().position(|(key, _)| key == group);
        let at = at.unwrap_or_else(|| {
            entries.push((group.to_owned(), Value::Map(Vec::new())));
            entries.len() - 1
        });
        if let Some((_, below)) = entries.get_mut(at) {
            below.insert(rest, value);
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            // As Go writes it: 5, not 5.0.
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                serializer.serialize_i64(*value as i64)
            }
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Duration(nanoseconds) => {
                serializer.serialize_str(&go::format_duration(*nanoseconds))
            }
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => items.serialize(serializer),
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
