//! From bytes of the API server to objects of the model. Pure.
//!
//! Decodes borrowed text straight into the few fields that are used; text and wire types are dropped when a function here
//! returns. An object that cannot be decoded does not affect other objects.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use service_model::wire::{ConversionContext, Metadata, Object};
use service_model::{Invalid, ObjectName};

use crate::{MAX_TEXT, Problem};

/// Marks the bookmark that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One object and its problems.
#[derive(Debug)]
pub(super) struct Decoded<M> {
    pub(super) name: ObjectName,
    /// `metadata.resourceVersion`; empty if there is none.
    pub(super) version: String,
    /// `None`: the object exists, but is invalid.
    pub(super) model: Option<Arc<M>>,
    pub(super) problems: Vec<Problem>,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) version: String,
    /// The token that asks for the next page.
    pub(super) next: Option<String>,
    pub(super) items: Vec<&'a RawValue>,
}

/// An event of a watch.
#[derive(Debug)]
pub(super) enum Event<M> {
    /// ADDED or MODIFIED.
    Applied(Decoded<M>),
    Deleted {
        name: ObjectName,
        version: String,
    },
    /// BOOKMARK.
    Bookmark {
        version: String,
        /// The initial events are complete.
        initial_events_end: bool,
    },
    Error {
        code: u16,
        message: String,
    },
    /// A type that this program does not know.
    Unknown,
}

/// Reads a page. The error is for an operator.
pub(super) fn page(bytes: &[u8]) -> Result<Page<'_>, String> {
    #[derive(Deserialize)]
    struct List<'a> {
        metadata: ListMetadata,
        #[serde(borrow, default)]
        items: Option<Vec<&'a RawValue>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMetadata {
        #[serde(default)]
        resource_version: Option<String>,
        #[serde(default)]
        r#continue: Option<String>,
    }
    let list: List<'_> =
        serde_json::from_slice(bytes).map_err(|error| unreadable("list", &error))?;
    Ok(Page {
        version: list.metadata.resource_version.unwrap_or_default(),
        next: list.metadata.r#continue.filter(|token| !token.is_empty()),
        items: list.items.unwrap_or_default(),
    })
}

/// Reads an event. The error, for an operator, is about the stream, never about an object in it.
pub(super) fn event<O: Object>(
    line: &[u8],
    context: &mut ConversionContext,
) -> Result<Event<O::Model>, String> {
    if let Some(decoded) = change::<O>(line, context) {
        return Ok(Event::Applied(decoded));
    }
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(line).map_err(|error| unreadable("event", &error))?;
    let text = envelope.object.get();
    Ok(match envelope.kind.as_ref() {
        "ADDED" | "MODIFIED" => Event::Applied(object::<O>(text, context)),
        "DELETED" => {
            let metadata = metadata(text);
            Event::Deleted {
                name: metadata.object_name(O::KIND),
                version: metadata.resource_version.unwrap_or_default(),
            }
        }
        "BOOKMARK" => bookmark(text)?,
        "ERROR" => error(text),
        _ => Event::Unknown,
    })
}

/// Reads an item of a list, as if it had come as an event.
pub(super) fn item<O: Object>(
    text: &[u8],
    context: &mut ConversionContext,
) -> Result<Event<O::Model>, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    Ok(Event::Applied(object::<O>(text, context)))
}

/// Decodes the usual event, ADDED or MODIFIED with an object of the kind, in one pass. `None`: another event, or an object
/// whose fault is to be named.
fn change<O: Object>(line: &[u8], context: &mut ConversionContext) -> Option<Decoded<O::Model>> {
    #[derive(Deserialize)]
    struct Change<'a, O> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        object: O,
    }
    let change: Change<'_, O> = serde_json::from_slice(line).ok()?;
    matches!(change.kind.as_ref(), "ADDED" | "MODIFIED").then(|| decoded(change.object, context))
}

/// Decodes and converts an object.
pub(super) fn object<O: Object>(text: &str, context: &mut ConversionContext) -> Decoded<O::Model> {
    match serde_json::from_str::<O>(text) {
        Ok(wire) => decoded(wire, context),
        Err(_) => undecodable::<O>(text),
    }
}

fn decoded<O: Object>(wire: O, context: &mut ConversionContext) -> Decoded<O::Model> {
    let name = wire.object_name();
    let version = wire.metadata().resource_version.clone().unwrap_or_default();
    let field = |invalid| Problem::Field { at: None, invalid };
    let (model, problems) = match wire.into_model(context) {
        Ok(converted) => {
            let warnings = converted.warnings.into_iter();
            (
                Some(Arc::new(converted.object)),
                warnings.map(field).collect(),
            )
        }
        Err(invalid) => (None, vec![Problem::Object { at: None, invalid }]),
    };
    Decoded {
        name,
        version,
        model,
        problems,
    }
}

/// Names an object that does not have the form of its kind. Decodes a second time to find the field.
fn undecodable<O: Object>(text: &str) -> Decoded<O::Model> {
    let metadata = metadata(text);
    let name = metadata.object_name(O::KIND);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let (field, reason) = match serde_path_to_error::deserialize::<_, O>(&mut deserializer) {
        Ok(_) => (".".to_owned(), "cannot be decoded".to_owned()),
        Err(error) => (error.path().to_string(), error.inner().to_string()),
    };
    let invalid = Invalid {
        kind: O::KIND,
        object: name.clone(),
        field: printable(&field),
        reason: printable(&reason),
    };
    Decoded {
        name,
        version: metadata.resource_version.unwrap_or_default(),
        model: None,
        problems: vec![Problem::Object { at: None, invalid }],
    }
}

/// Name and version of an object that may be malformed in every other respect: out-of-range numbers and deep nesting
/// elsewhere do no harm.
fn metadata(text: &str) -> Metadata {
    #[derive(Deserialize, Default)]
    struct Object<'a> {
        #[serde(borrow, default)]
        metadata: Fields<'a>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Fields<'a> {
        #[serde(borrow)]
        name: Option<&'a RawValue>,
        #[serde(borrow)]
        namespace: Option<&'a RawValue>,
        #[serde(borrow)]
        resource_version: Option<&'a RawValue>,
    }
    let object: Object<'_> = serde_json::from_str(text).unwrap_or_default();
    let Fields {
        name,
        namespace,
        resource_version,
    } = object.metadata;
    let text = |value: Option<&RawValue>| serde_json::from_str(value?.get()).ok();
    Metadata {
        name: text(name).unwrap_or_default(),
        namespace: text(namespace),
        resource_version: text(resource_version),
        ..Metadata::default()
    }
}

fn bookmark<M>(text: &str) -> Result<Event<M>, String> {
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: BookmarkMetadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct BookmarkMetadata {
        resource_version: String,
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    let bookmark: Bookmark =
        serde_json::from_str(text).map_err(|error| unreadable("bookmark", &error))?;
    let annotations = bookmark.metadata.annotations.unwrap_or_default();
    Ok(Event::Bookmark {
        version: bookmark.metadata.resource_version,
        initial_events_end: annotations
            .get(INITIAL_EVENTS_END)
            .is_some_and(|end| end == "true"),
    })
}

fn error<M>(text: &str) -> Event<M> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Status {
        code: u16,
        message: String,
    }
    let status: Status = serde_json::from_str(text).unwrap_or_default();
    Event::Error {
        code: status.code,
        message: printable(&status.message),
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> String {
    printable(&format!("unreadable {what}: {error}"))
}

/// Text from outside, made safe for the log.
pub(super) fn printable(text: &str) -> String {
    service_model::printable(text, MAX_TEXT)
}

/// Whether a server at version `theirs` is behind `ours`. Versions are numbers by convention only; other versions count as
/// behind unless they are equal.
pub(super) fn is_behind(theirs: &str, ours: &str) -> bool {
    match (theirs.parse::<u64>(), ours.parse::<u64>()) {
        (Ok(theirs), Ok(ours)) => theirs < ours,
        _ => theirs != ours,
    }
}

#[cfg(test)]
mod tests {
    use service_model::wire;

    use super::*;

    #[test]
    fn mutated_lists_and_events_do_no_harm() {
        fn kind_of<M>(event: Result<Event<M>, String>) -> u8 {
            match event {
                Err(_) => 0,
                Ok(Event::Applied(decoded)) => 1 + u8::from(decoded.model.is_some()),
                Ok(Event::Deleted { .. }) => 3,
                Ok(Event::Bookmark {
                    initial_events_end, ..
                }) => 4 + u8::from(initial_events_end),
                Ok(Event::Error { .. }) => 6,
                Ok(Event::Unknown) => 7,
            }
        }
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/events");
        fuzz::fuzz(&corpus, [], |bytes| {
            let mut context = ConversionContext::default();
            let items = page(bytes).map(|page| page.items.len());
            if let Ok(page) = page(bytes) {
                for item in page.items {
                    object::<wire::EndpointSlice>(item.get(), &mut context);
                }
            }
            fuzz::outcome((
                items.unwrap_or(usize::MAX).min(9),
                kind_of(event::<wire::Service>(bytes, &mut context)),
                kind_of(event::<wire::EndpointSlice>(bytes, &mut context)),
                kind_of(event::<wire::Node>(bytes, &mut context)),
                kind_of(event::<wire::ServiceCidr>(bytes, &mut context)),
            ))
        });
    }

    fn named(text: &str) -> (String, String, String) {
        let decoded = object::<wire::Service>(text, &mut ConversionContext::default());
        assert!(decoded.model.is_none());
        let field = decoded.problems[0].invalid().unwrap().field.clone();
        (decoded.name.to_string(), decoded.version, field)
    }

    #[test]
    fn one_pass_and_two_read_the_same() {
        let objects = [
            r#"{"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"}, "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "other": [1, {}]}]}}"#,
            r#"{"metadata": {"name": "w\u0065b"}, "spec": {"ports": [{"port": 70000}]}}"#,
            r#"{"metadata": {"name": "web"}, "spec": {"ports": "none"}}"#,
            r#"{"metadata": null}"#,
        ];
        for text in objects {
            let whole = object::<wire::Service>(text, &mut ConversionContext::default());
            for line in [
                format!(r#"{{"type":"ADDED","object":{text}}}"#),
                format!(r#"{{"object": {text}, "other": [], "type": "MODIFI\u0045D"}}"#),
            ] {
                let context = &mut ConversionContext::default();
                let Ok(Event::Applied(event)) = event::<wire::Service>(line.as_bytes(), context)
                else {
                    panic!("{line}")
                };
                assert_eq!((&event.name, &event.version), (&whole.name, &whole.version));
                assert_eq!(event.model, whole.model);
                assert_eq!(event.problems, whole.problems);
            }
        }
    }

    #[test]
    fn an_object_is_named_whatever_else_it_holds() {
        let expect = |field: &str| ("shop/web".into(), "7".into(), field.to_owned());
        let deep = "[".repeat(500) + &"]".repeat(500);
        for (spec, field) in [
            (
                r#"{"ports": [{"port": 1e400}]}"#.to_owned(),
                "spec.ports[0].port",
            ),
            (format!(r#"{{"other": {deep}, "ports": 1}}"#), "spec.ports"),
        ] {
            let text = format!(
                r#"{{"metadata": {{"name": "web", "namespace": "shop", "resourceVersion": "7", "x": {deep}}}, "spec": {spec}}}"#
            );
            assert_eq!(named(&text), expect(field), "{spec}");
        }
    }

    #[test]
    fn a_name_that_is_not_text_is_empty() {
        let text = r#"{"metadata": {"name": 5, "namespace": "shop", "resourceVersion": "7"}}"#;
        let nameless = ("shop/".into(), "7".into(), "metadata.name".into());
        assert_eq!(named(text), nameless);
        let (name, version, field) = named(r#"{"metadata": "web"}"#);
        assert_eq!((name.as_str(), version.as_str()), ("default/", ""));
        assert_eq!(field, "metadata");
    }
}
