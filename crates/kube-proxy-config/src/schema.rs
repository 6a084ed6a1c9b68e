//! Settings as data: what a document may hold, of which shape, with which default, and whether Portolan uses it.
//!
//! The tables are in [`crate::tables`]. Invariant: a value that [`Shape::check`] lets pass can be read by the typed
//! getters of [`Settings`] without further errors.

use std::collections::BTreeMap;

use crate::go;
use crate::problem::{Origin, Problem};
use crate::value::Value;

/// Says why a text is not accepted, and what is.
pub(crate) type Check = fn(&str) -> Result<(), String>;

/// What a setting's value may be. Flags and files write the same shapes differently.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Bool,
    /// A whole number within these bounds.
    Int(i64, i64),
    /// A number of klog's verbosity: decimal only.
    Level,
    Float,
    /// Empty text is always accepted: it is "not given", or "off" where that has a meaning.
    Text(Check),
    /// One of a few words; YAML's `on` and `off` are words here.
    Word(&'static [&'static str]),
    /// At least this number of nanoseconds.
    Duration(i64),
    /// A duration, or a whole number of nanoseconds.
    Nanoseconds,
    /// A list of texts; a flag takes them separated by commas, and appends.
    Texts(Check),
    /// A list of texts that may hold commas: a flag takes one, and appends.
    Lines(Check),
    /// Names with booleans.
    Gates,
    /// klog's patterns with levels.
    Rules,
}

/// A setting.
#[derive(Debug)]
pub(crate) struct Field {
    /// Dotted path in its document.
    pub(crate) path: &'static str,
    pub(crate) shape: Shape,
    pub(crate) preset: Preset,
    /// Go's zero value counts: the field is a pointer there, or a flag.
    pub(crate) zero_counts: bool,
    /// Portolan uses it.
    pub(crate) used: bool,
    /// Not written when it is zero.
    pub(crate) omit_empty: bool,
}

/// A default, as a constant can hold it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Preset {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'static str),
    Seconds(i64),
    List,
    Map,
}

impl Field {
    pub(crate) const fn new(path: &'static str, shape: Shape, preset: Preset) -> Field {
        Field {
            path,
            shape,
            preset,
            zero_counts: false,
            used: true,
            omit_empty: false,
        }
    }

    /// `null` means the default, and zero means zero.
    pub(crate) const fn pointer(mut self) -> Field {
        self.zero_counts = true;
        self
    }

    pub(crate) const fn unused(mut self) -> Field {
        self.used = false;
        self
    }

    pub(crate) const fn omit_empty(mut self) -> Field {
        self.omit_empty = true;
        self
    }

    pub(crate) fn default(&self) -> Value {
        match self.preset {
            Preset::Null => Value::Null,
            Preset::Bool(value) => Value::Bool(value),
            Preset::Int(value) => Value::Int(value),
            Preset::Float(value) => Value::Float(value),
            Preset::Text(text) => Value::Text(text.to_owned()),
            Preset::Seconds(seconds) => Value::Duration(seconds * go::SECOND as i64),
            Preset::List => Value::List(Vec::new()),
            Preset::Map => Value::Map(Vec::new()),
        }
    }
}

impl Shape {
    /// Whether a flag of this shape may be given without a value.
    pub(crate) fn is_switch(&self) -> bool {
        matches!(self, Shape::Bool)
    }

    /// Whether a repeated flag adds to what was given before.
    pub(crate) fn appends(&self) -> bool {
        matches!(
            self,
            Shape::Texts(_) | Shape::Lines(_) | Shape::Gates | Shape::Rules
        )
    }

    /// The value of a flag or variable, by the grammar of pflag and Go's flag.
    pub(crate) fn parse_flag(&self, text: &str) -> Result<Value, String> {
        match self {
            Shape::Bool => {
                let value = go::parse_bool(text).map(Value::Bool);
                value.ok_or_else(|| "must be a boolean: true or false".to_owned())
            }
            Shape::Int(first, last) => {
                let value = go::parse_int(text).map(Value::Int);
                value.ok_or_else(|| format!("must be a whole number from {first} to {last}"))
            }
            Shape::Level => {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let value = digits.then(|| text.parse().ok().map(Value::Int)).flatten();
                value.ok_or_else(|| "must be a whole number from 0 to 2147483647".to_owned())
            }
            Shape::Float => {
                let value = text.parse().ok().map(Value::Float);
                value.ok_or_else(|| "must be a number".to_owned())
            }
            Shape::Text(_) | Shape::Word(_) => Ok(Value::Text(text.to_owned())),
            Shape::Duration(_) | Shape::Nanoseconds => {
                let value = go::parse_duration(text).map(Value::Duration);
                value.ok_or_else(|| NO_DURATION.to_owned())
            }
            Shape::Texts(_) => {
                let fields = go::parse_csv(text).ok_or_else(|| {
                    "must be a comma-separated list; a quote is out of place".to_owned()
                })?;
                let texts = fields
                    .iter()
                    .map(|field| Value::Text(field.trim().to_owned()));
                Ok(Value::List(texts.collect()))
            }
            Shape::Lines(_) => Ok(Value::List(vec![Value::Text(text.to_owned())])),
            Shape::Gates => gates(text),
            Shape::Rules => rules(text),
        }
    }

    /// Bounds and forms, the same for flags and files.
    pub(crate) fn check(&self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Shape::Int(first, last), Value::Int(value)) if value < first || value > last => {
                Err(format!("must be a whole number from {first} to {last}"))
            }
            (Shape::Level, Value::Int(value)) if !(0..=i64::from(i32::MAX)).contains(value) => {
                Err("must be a whole number from 0 to 2147483647".to_owned())
            }
            (Shape::Duration(least), Value::Duration(value)) if value < least => match least {
                0 => Err("must be 0s or more".to_owned()),
                _ => Err("must be more than 0s".to_owned()),
            },
            (Shape::Nanoseconds, Value::Duration(value)) if *value <= 0 => {
                Err("must be more than 0s".to_owned())
            }
            (Shape::Text(check), Value::Text(text)) if !text.is_empty() => check(text),
            (Shape::Word(words), Value::Text(text)) if !text.is_empty() => {
                let known = words.contains(&text.as_str());
                known
                    .then_some(())
                    .ok_or_else(|| format!("must be one of {}", words.join(", ")))
            }
            (Shape::Texts(check) | Shape::Lines(check), Value::List(items)) => {
                items.iter().try_for_each(|item| match item {
                    Value::Text(text) => check(text),
                    _ => Ok(()),
                })
            }
            _ => Ok(()),
        }
    }
}

pub(crate) const NO_DURATION: &str = "must be a duration with units, such as 30s, 1.5h or 24h0m0s";

/// `Name=true,Other=false`
fn gates(text: &str) -> Result<Value, String> {
    let mut gates = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let value = pair.split_once('=').and_then(|(name, value)| {
            Some((
                name.trim().to_owned(),
                Value::Bool(go::parse_bool(value.trim())?),
            ))
        });
        gates.push(value.ok_or_else(|| "must be pairs such as Name=true,Other=false".to_owned())?);
    }
    Ok(Value::Map(gates))
}

/// `pattern=N,other=M`
fn rules(text: &str) -> Result<Value, String> {
    let mut rules = Vec::new();
    for rule in text.split(',').filter(|rule| !rule.is_empty()) {
        let parsed = rule.split_once('=').and_then(|(pattern, level)| {
            let level: u32 = level
                .parse()
                .ok()
                .filter(|level| *level <= i32::MAX as u32)?;
            (!pattern.is_empty()).then(|| self::rule(pattern, i64::from(level)))
        });
        rules.push(
            parsed.ok_or_else(|| {
                "must be patterns with levels such as proxier=4,server=2".to_owned()
            })?,
        );
    }
    Ok(Value::List(rules))
}

/// One item of `logging.vmodule`.
pub(crate) fn rule(pattern: &str, level: i64) -> Value {
    Value::Map(vec![
        ("filePattern".to_owned(), Value::Text(pattern.to_owned())),
        ("verbosity".to_owned(), Value::Int(level)),
    ])
}

/// A document's settings that are given; the others have their defaults.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) table: &'static [Field],
    given: BTreeMap<&'static str, (Value, Origin)>,
}

impl Settings {
    pub(crate) fn new(table: &'static [Field]) -> Settings {
        let given = BTreeMap::new();
        Settings { table, given }
    }

    pub(crate) fn field(&self, path: &str) -> Option<&'static Field> {
        self.table.iter().find(|field| field.path == path)
    }

    pub(crate) fn set(&mut self, path: &'static str, value: Value, origin: Origin) {
        self.given.insert(path, (value, origin));
    }

    /// The value that is given, and where.
    pub(crate) fn given(&self, path: &str) -> Option<&(Value, Origin)> {
        debug_assert!(self.field(path).is_some(), "{path} is in no table");
        self.given.get(path)
    }

    pub(crate) fn is_given(&self, path: &str) -> bool {
        self.given(path).is_some()
    }

    /// The value that counts.
    pub(crate) fn value(&self, path: &str) -> Value {
        match self.given(path) {
            Some((value, _)) => value.clone(),
            None => self.field(path).map_or(Value::Null, Field::default),
        }
    }

    pub(crate) fn bool(&self, path: &str) -> bool {
        matches!(self.value(path), Value::Bool(true))
    }

    pub(crate) fn int(&self, path: &str) -> i64 {
        match self.value(path) {
            Value::Int(value) => value,
            _ => 0,
        }
    }

    /// An integer that the shape bounds to this type.
    pub(crate) fn number<T: TryFrom<i64> + Default>(&self, path: &str) -> T {
        T::try_from(self.int(path)).unwrap_or_default()
    }

    pub(crate) fn text(&self, path: &str) -> String {
        match self.value(path) {
            Value::Text(text) => text,
            _ => String::new(),
        }
    }

    /// The text, unless it is empty.
    pub(crate) fn some_text(&self, path: &str) -> Option<String> {
        Some(self.text(path)).filter(|text| !text.is_empty())
    }

    pub(crate) fn texts(&self, path: &str) -> Vec<String> {
        let Value::List(items) = self.value(path) else {
            return Vec::new();
        };
        let text = |item| match item {
            Value::Text(text) => Some(text),
            _ => None,
        };
        items.into_iter().filter_map(text).collect()
    }

    pub(crate) fn nanoseconds(&self, path: &str) -> i64 {
        match self.value(path) {
            Value::Duration(value) => value,
            _ => 0,
        }
    }

    pub(crate) fn duration(&self, path: &str) -> std::time::Duration {
        let nanoseconds = u64::try_from(self.nanoseconds(path)).unwrap_or_default();
        std::time::Duration::from_nanos(nanoseconds)
    }

    /// A problem of the value that counts.
    pub(crate) fn problem(&self, path: &str, reason: impl Into<String>) -> Problem {
        Problem {
            setting: path.to_owned(),
            value: Some(self.value(path).describe()),
            origin: self.given(path).map(|(_, origin)| origin.clone()),
            reason: reason.into(),
        }
    }

    /// Where the value that counts was given, for a message: `--flag=value`, or `path: value (line N)`.
    pub(crate) fn source(&self, path: &str) -> String {
        let value = self.value(path).shown();
        match self.given(path) {
            Some((_, Origin::Flag(flag))) => format!("{flag}={value}"),
            Some((_, Origin::Environment(name))) => format!("{name}={value}"),
            Some((_, Origin::File { line })) => format!("{path}: {value} (line {line})"),
            None => format!("{path}: {value} (default)"),
        }
    }

    /// Fields of the file that are given and that Portolan has no use for.
    pub(crate) fn unused(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.table.iter().filter_map(|field| {
            let (value, origin) = self.given.get(field.path)?;
            let is_default = *value == field.default();
            let is_in_file = matches!(origin, Origin::File { .. });
            (!field.used && is_in_file && !is_default).then_some(field.path)
        })
    }

    /// The settings as their document has them: all but empty ones that Go leaves out.
    pub(crate) fn document(&self, api_version: String, kind: &str) -> Value {
        let mut root = Value::Map(vec![
            ("apiVersion".to_owned(), Value::Text(api_version)),
            ("kind".to_owned(), Value::Text(kind.to_owned())),
        ]);
        for field in self.table {
            let value = self.value(field.path);
            if !(field.omit_empty && value.is_zero()) {
                root.insert(field.path, value);
            }
        }
        root
    }
}
