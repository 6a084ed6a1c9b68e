//! The configuration file: kube-proxy's document, and Portolan's own after it.
//!
//! kube-proxy decodes strictly, and when that fails once more leniently with a line in its log. So unknown fields and
//! repeated keys are warnings here, each once, and wrong kinds of values are problems, all of them. kube-proxy reads the
//! first document only, so a file with a second one works for both.

use crate::problem::{Origin, Problem, shown};
use crate::schema::{Field, NO_DURATION, Settings, Shape, rule};
use crate::tables::portolan::{PORTOLAN_GROUP, PORTOLAN_KIND, PORTOLAN_VERSION};
use crate::value::Value;
use crate::yaml::{self, Content, Document, Entry, Node};
use crate::{go, suggest};

/// kube-proxy's group.
pub const KUBE_PROXY_GROUP: &str = "kubeproxy.config.k8s.io";
/// kube-proxy's only version.
pub const KUBE_PROXY_VERSION: &str = "v1alpha1";
/// kube-proxy's kind.
pub const KUBE_PROXY_KIND: &str = "KubeProxyConfiguration";

/// What reading a file has to report.
#[derive(Debug, Default)]
pub(crate) struct FileReport {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
    /// The file has kube-proxy's document.
    pub(crate) has_proxy: bool,
}

/// Reads a file into the settings of its two documents.
pub(crate) fn read(text: &str, proxy: &mut Settings, own: &mut Settings) -> FileReport {
    let mut report = FileReport::default();
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(broken) => {
            let reason = format!("not YAML: {}", broken.reason);
            let problem = Problem::field("configuration file", None, broken.line, reason);
            report.problems.push(problem);
            return report;
        }
    };
    if documents.is_empty() {
        let reason = format!("empty; a document of kind {KUBE_PROXY_KIND} is expected");
        report
            .problems
            .push(Problem::field("configuration file", None, 1, reason));
    }
    let mut has_own = false;
    for (at, document) in documents.iter().enumerate() {
        match kind_of(document, at == 0) {
            Claim::Proxy(_) if report.has_proxy => report.warnings.push(format!(
                "the second {KUBE_PROXY_KIND} (line {}) is ignored: kube-proxy reads the first document only",
                document.line
            )),
            Claim::Own(_) if has_own => {
                let reason = format!("a second {PORTOLAN_KIND}; put all fields in one document");
                let problem = Problem::field("kind", None, document.line, reason);
                report.problems.push(problem);
            }
            Claim::Proxy(entries) => {
                if at > 0 {
                    report.warnings.push(format!(
                        "{KUBE_PROXY_KIND} is not the first document (line {}): kube-proxy itself would not find it",
                        document.line
                    ));
                }
                report.has_proxy = true;
                let other = (PORTOLAN_KIND, own.table);
                Walk { settings: proxy, other, report: &mut report }.group(entries, "");
            }
            Claim::Own(entries) => {
                has_own = true;
                let other = (KUBE_PROXY_KIND, proxy.table);
                Walk { settings: own, other, report: &mut report }.group(entries, "");
            }
            Claim::Foreign(name) => report.warnings.push(format!(
                "the document {} (line {}) is ignored",
                shown(&name),
                document.line
            )),
            Claim::Refused(problem) => report.problems.push(problem),
        }
    }
    report
}

/// What a document claims to be.
enum Claim<'d> {
    Proxy(&'d [Entry]),
    Own(&'d [Entry]),
    /// A later document of another group.
    Foreign(String),
    Refused(Problem),
}

fn kind_of(document: &Document, is_first: bool) -> Claim<'_> {
    let Content::Map(entries) = &document.root.content else {
        let value = Some(document.root.describe());
        let reason = "must be a mapping with apiVersion and kind".to_owned();
        return Claim::Refused(Problem::field("document", value, document.line, reason));
    };
    let text = |name: &str| {
        let entry = entries.iter().rev().find(|entry| entry.key == name)?;
        (!entry.node.is_null()).then(|| (entry.node.describe(), entry.node.line))
    };
    let (Some((version, version_line)), Some((kind, kind_line))) =
        (text("apiVersion"), text("kind"))
    else {
        let missing = if text("kind").is_none() {
            "kind"
        } else {
            "apiVersion"
        };
        let reason = format!(
            "missing; expected apiVersion: {KUBE_PROXY_GROUP}/{KUBE_PROXY_VERSION} and kind: {KUBE_PROXY_KIND}"
        );
        return Claim::Refused(Problem::field(missing, None, document.line, reason));
    };
    let (group, number) = version.split_once('/').unwrap_or(("", &version));
    let (expected_number, expected_kind) = match group {
        KUBE_PROXY_GROUP => (KUBE_PROXY_VERSION, KUBE_PROXY_KIND),
        PORTOLAN_GROUP => (PORTOLAN_VERSION, PORTOLAN_KIND),
        _ if !is_first => return Claim::Foreign(format!("{version} {kind}")),
        _ => (KUBE_PROXY_VERSION, KUBE_PROXY_KIND),
    };
    let expected_group = if group == PORTOLAN_GROUP {
        PORTOLAN_GROUP
    } else {
        KUBE_PROXY_GROUP
    };
    if kind != expected_kind {
        let reason = format!("must be {expected_kind}");
        return Claim::Refused(Problem::field("kind", Some(kind), kind_line, reason));
    }
    if group != expected_group || number != expected_number {
        let reason = format!("must be {expected_group}/{expected_number}");
        return Claim::Refused(Problem::field(
            "apiVersion",
            Some(version),
            version_line,
            reason,
        ));
    }
    match group {
        PORTOLAN_GROUP => Claim::Own(entries),
        _ => Claim::Proxy(entries),
    }
}

/// A walk through one document.
struct Walk<'r> {
    settings: &'r mut Settings,
    /// The kind and the fields of the other document.
    other: (&'static str, &'static [Field]),
    report: &'r mut FileReport,
}

impl Walk<'_> {
    fn group(&mut self, entries: &[Entry], prefix: &str) {
        for (at, entry) in entries.iter().enumerate() {
            let path = format!("{prefix}{}", entry.key);
            if prefix.is_empty() && matches!(entry.key.as_str(), "apiVersion" | "kind") {
                continue;
            }
            let later = entries
                .iter()
                .skip(at + 1)
                .find(|other| other.key == entry.key);
            if let Some(later) = later {
                self.report.warnings.push(format!(
                    "{} (line {}) is given again on line {}: the last one counts",
                    shown(&path),
                    entry.line,
                    later.line
                ));
                continue;
            }
            match self.settings.field(&path) {
                Some(field) => self.leaf(field, &entry.node),
                None if self.is_group(&path) => self.below(entry, &path),
                None => self.unknown(entry, &path),
            }
        }
    }

    fn is_group(&self, path: &str) -> bool {
        let below = |field: &Field| {
            field
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        !path.is_empty() && self.settings.table.iter().any(below)
    }

    fn below(&mut self, entry: &Entry, path: &str) {
        match &entry.node.content {
            Content::Map(entries) => self.group(entries, &format!("{path}.")),
            _ if entry.node.is_null() => {}
            _ => self.problem(path, &entry.node, "must be a mapping".to_owned()),
        }
    }

    fn unknown(&mut self, entry: &Entry, path: &str) {
        let known = self.settings.table.iter().map(|field| field.path);
        let (kind, table) = self.other;
        let is_there = |field: &Field| {
            let rest = field.path.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let hint = match suggest::closest(path, known) {
            _ if table.iter().any(is_there) => {
                format!(": it belongs to the document of kind {kind}")
            }
            Some(name) => format!("; did you mean {name}?"),
            None => String::new(),
        };
        let path = shown(path);
        let line = entry.line;
        let warning = format!("unknown field {path} (line {line}) is ignored{hint}");
        self.report.warnings.push(warning);
    }

    fn leaf(&mut self, field: &'static Field, node: &Node) {
        if node.is_null() {
            return;
        }
        let value = match self.value(field, node) {
            Ok(value) => value,
            Err(reason) => return self.problem(field.path, node, reason),
        };
        if value.is_zero() && !field.zero_counts {
            return;
        }
        if let Err(reason) = field.shape.check(&value) {
            return self.report.problems.push(Problem::field(
                field.path,
                Some(value.describe()),
                node.line,
                reason,
            ));
        }
        let origin = Origin::File { line: node.line };
        self.settings.set(field.path, value, origin);
    }

    fn problem(&mut self, path: &str, node: &Node, reason: String) {
        let value = node.plain().map(|_| node.describe());
        let problem = Problem::field(path, value, node.line, reason);
        self.report.problems.push(problem);
    }

    /// A node as a value of the field's shape.
    fn value(&mut self, field: &Field, node: &Node) -> Result<Value, String> {
        match (&field.shape, node.plain()) {
            (Shape::Bool, Some(Value::Bool(value))) => Ok(Value::Bool(value)),
            (Shape::Bool, _) => Err("must be true or false, without quotes".to_owned()),
            (Shape::Int(..) | Shape::Level, plain) => {
                let whole = "must be a whole number, without quotes".to_owned();
                whole_number(plain).map(Value::Int).ok_or(whole)
            }
            (Shape::Float, Some(Value::Int(value))) => Ok(Value::Float(value as f64)),
            (Shape::Float, Some(Value::Float(value))) => Ok(Value::Float(value)),
            (Shape::Float, _) => Err("must be a number, without quotes".to_owned()),
            (Shape::Nanoseconds, Some(plain @ (Value::Int(_) | Value::Float(_)))) => {
                let value = whole_number(Some(plain)).map(Value::Duration);
                value.ok_or_else(|| NO_DURATION.to_owned())
            }
            (Shape::Duration(_), Some(Value::Int(0))) => Ok(Value::Duration(0)),
            (Shape::Duration(_) | Shape::Nanoseconds, plain) => {
                let nanoseconds = match plain {
                    Some(Value::Text(text)) => go::parse_duration(&text),
                    _ => None,
                };
                let value = nanoseconds.map(Value::Duration);
                value.ok_or_else(|| NO_DURATION.to_owned())
            }
            (Shape::Word(_), Some(_)) => Ok(Value::Text(node.describe())),
            (Shape::Text(_), Some(Value::Int(number)))
                if field.path.ends_with("infoBufferSize") =>
            {
                Ok(Value::Text(number.to_string()))
            }
            (Shape::Text(_), Some(Value::Text(text))) => Ok(Value::Text(text)),
            (Shape::Text(_), Some(_)) => Err("must be a string: put it in quotes".to_owned()),
            (Shape::Word(_) | Shape::Text(_), None) => Err("must be a string".to_owned()),
            (Shape::Texts(_) | Shape::Lines(_), _) => texts(node),
            (Shape::Gates, _) => gates(node),
            (Shape::Rules, _) => self.rules(field, node),
        }
    }

    /// The items of `logging.vmodule`.
    fn rules(&mut self, field: &Field, node: &Node) -> Result<Value, String> {
        let wrong = || "must be a list of mappings with filePattern and verbosity".to_owned();
        let Content::List(items) = &node.content else {
            return Err(wrong());
        };
        let mut rules = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let Content::Map(entries) = &item.content else {
                return Err(wrong());
            };
            let (mut pattern, mut level) = (None, Some(0));
            for entry in entries {
                match (entry.key.as_str(), entry.node.plain()) {
                    ("filePattern", Some(Value::Text(text))) => pattern = Some(text),
                    ("verbosity", Some(Value::Int(number))) => {
                        level = Some(number).filter(|n| (0..=i64::from(i32::MAX)).contains(n));
                    }
                    ("filePattern" | "verbosity", _) => return Err(wrong()),
                    _ => self.unknown(entry, &format!("{}[{at}].{}", field.path, entry.key)),
                }
            }
            let (Some(pattern), Some(level)) = (pattern, level) else {
                return Err(wrong());
            };
            rules.push(rule(&pattern, level));
        }
        Ok(Value::List(rules))
    }
}

fn whole_number(plain: Option<Value>) -> Option<i64> {
    match plain {
        Some(Value::Int(value)) => Some(value),
        Some(Value::Float(value)) if value.fract() == 0.0 && value.abs() < 1e15 => {
            Some(value as i64)
        }
        _ => None,
    }
}

fn texts(node: &Node) -> Result<Value, String> {
    let Content::List(items) = &node.content else {
        return Err("must be a list of strings".to_owned());
    };
    let text = |item: &Node| match item.plain() {
        Some(Value::Text(text)) => Ok(Value::Text(text.trim().to_owned())),
        _ => Err(format!(
            "{} must be a string: put it in quotes",
            shown(&item.describe())
        )),
    };
    let items: Result<_, String> = items.iter().map(text).collect();
    Ok(Value::List(items?))
}

fn gates(node: &Node) -> Result<Value, String> {
    let Content::Map(entries) = &node.content else {
        return Err("must be a mapping of names to true or false".to_owned());
    };
    let gate = |entry: &Entry| match entry.node.plain() {
        Some(Value::Bool(value)) => Ok((entry.key.clone(), Value::Bool(value))),
        _ => Err(format!(
            "{} is {}: must be true or false, without quotes",
            shown(&entry.key),
            shown(&entry.node.describe())
        )),
    };
    let mut gates: Vec<(String, Value)> = entries.iter().map(gate).collect::<Result<_, _>>()?;
    gates.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Value::Map(gates))
}
