//! Events of the cluster about Services: what somebody who looks at the object should see there.
//!
//! Best effort, as with any recorder: nothing waits for it, and where the API server or the right to create Events is
//! missing, the log has said it already.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use service_model::ObjectName;
use tokio::runtime::Handle;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note that the API takes (events.k8s.io/v1), in bytes.
const NOTE: usize = 1024;

/// Tells the cluster, where there is one.
#[derive(Clone)]
pub struct Recorder {
    api: Option<(Client, Handle)>,
    node: Arc<str>,
}

impl Recorder {
    /// On the runtime of the caller, which is the client's; without a client nothing is told.
    pub fn new(client: Option<Client>, node: Arc<str>) -> Self {
        Recorder {
            api: client.map(|client| (client, Handle::current())),
            node,
        }
    }

    /// Creates a warning about a Service, in the background.
    pub fn warn(
        &self,
        service: &ObjectName,
        reason: &'static str,
        action: &'static str,
        mut note: String,
    ) {
        let Some((client, runtime)) = &self.api else {
            return;
        };
        note.truncate(note.floor_char_boundary(NOTE));
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("portolan-{}-", self.node)),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            reporting_controller: Some("portolan".into()),
            reporting_instance: Some(self.node.to_string()),
            type_: Some("Warning".into()),
            reason: Some(reason.into()),
            action: Some(action.into()),
            note: Some(note),
            regarding: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Service".into()),
                namespace: Some(service.namespace.to_string()),
                name: Some(service.name.to_string()),
                ..ObjectReference::default()
            }),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(client.clone(), &service.namespace);
        runtime.spawn(async move {
            let how = PostParams::default();
            match tokio::time::timeout(TIMEOUT, events.create(&how, &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, reason, "no Event created"),
                Err(_) => tracing::debug!(reason, "no Event created: the API server is silent"),
            }
        });
    }
}
