//! What readers see of Services that the kernel refuses.

use std::collections::BTreeMap;
use std::sync::Mutex;

use service_model::{Disposition, Frontend, ObjectName, ServiceIntent};

use super::recreated::over_budget;
use super::*;
use crate::status::Quarantined;

/// Why `web` is quarantined, and what it has meanwhile.
fn quarantined(control: &Control<Fake>) -> Option<Quarantined> {
    let status = control.reports.status.load();
    status.quarantined.get(&service().name).cloned()
}

/// Replaces the endpoints of `web`.
fn endpoints(control: &mut Control<Fake>, slices: Vec<EndpointSlice>) {
    control.event(SourceEvent::EndpointSlice(all(slices)));
    turn_at_once(control);
}

/// A control loop whose kernel refuses a Service without endpoints, and has refused `web` for that.
fn refusing() -> Control<Fake> {
    let mut control = synced();
    let backend = control.dataplane.backend_mut();
    backend.refuse(|set, _| *set == "no_endpoints", Errno::ENOSPC);
    endpoints(&mut control, vec![]);
    control
}

#[test]
fn a_refused_service_is_listed_with_its_last_good_rules() {
    let mut control = refusing();
    let quarantined = quarantined(&control).unwrap();
    assert!(quarantined.reason.contains("ENOSPC"), "{quarantined:?}");
    let last_good = quarantined.last_good.unwrap();
    let is_balanced = |frontend: &Frontend| matches!(frontend.disposition, Disposition::Balance(_));
    assert!(last_good.frontends.iter().all(is_balanced));
    // What does not concern the Service makes no new list.
    let before = control.quarantine.services();
    control.foreign_change(Notice::Overrun);
    turn_at_once(&mut control);
    assert!(Arc::ptr_eq(&before, &control.quarantine.services()));
}

/// What observers have been told last of each Service.
#[derive(Default)]
struct Told(Arc<Mutex<BTreeMap<ObjectName, Option<Arc<ServiceIntent>>>>>);

impl Observer for Told {
    fn planned(&mut self, updates: &[Update]) {
        let mut told = self.0.lock().unwrap();
        let updates = updates.iter().cloned();
        told.extend(updates.map(|Update { service, intent }| (service, intent)));
    }
}

#[test]
fn observers_follow_what_a_refused_service_has() {
    let mut control = refusing();
    let told = Told::default();
    let last = told.0.clone();
    control.observers.push(Box::new(told));
    // Other endpoints are used, then none, which is refused.
    control.dataplane.backend_mut().refuse_nothing();
    endpoints(&mut control, vec![slice("10.244.0.6")]);
    let good = last.lock().unwrap()[&service().name].clone();
    assert!(good.is_some());
    let backend = control.dataplane.backend_mut();
    backend.refuse(|set, _| *set == "no_endpoints", Errno::ENOSPC);
    let planned = metric(&control, "portolan_services_planned_total ").unwrap();
    endpoints(&mut control, vec![]);
    assert!(quarantined(&control).is_some());
    assert_eq!(
        metric(&control, "portolan_services_planned_total "),
        Some(planned + 1)
    );
    assert_eq!(last.lock().unwrap()[&service().name], good);
    // One that never had any rules.
    let mut new = service();
    new.name = ObjectName::new("default", "new");
    new.cluster_ips = vec!["10.96.0.9".parse().unwrap()].into();
    new.ports.iter_mut().for_each(|port| port.node_port = None);
    let name = new.name.clone();
    control.event(SourceEvent::Service(ObjectEvent::Apply(Arc::new(new))));
    turn_at_once(&mut control);
    assert!(control.dataplane.quarantine().contains_key(&name));
    assert_eq!(last.lock().unwrap()[&name], None);
}

#[test]
fn a_service_that_a_retry_commits_is_not_quarantined() {
    let mut control = refusing();
    let backend = control.dataplane.backend_mut();
    backend.refuse_nothing();
    backend.fail_next(Errno::ENOBUFS);
    endpoints(&mut control, vec![slice("10.244.0.6")]);
    assert!(control.failed);
    turn_at_once(&mut control);
    assert!(!control.failed);
    assert_eq!(quarantined(&control), None);
    assert_eq!(elements(&control, "frontends_1"), 1);
}

#[test]
fn a_refused_service_over_its_budget_counts_once() {
    let mut control = refusing();
    let over = over_budget(service().created, "10.96.0.1");
    control.event(SourceEvent::Service(ObjectEvent::Apply(Arc::new(over))));
    turn_at_once(&mut control);
    assert!(control.view.is_over_budget(&service().name));
    assert_eq!(control.dataplane.quarantine().len(), 1);
    assert_eq!(metric(&control, "portolan_quarantined_services "), Some(1));
    assert_eq!(control.reports.status.load().notes.len(), 1);
    assert!(quarantined(&control).unwrap().last_good.is_some());
}
