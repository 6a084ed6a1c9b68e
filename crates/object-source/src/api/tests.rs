//! The source against the fake API server, fault by fault.

mod certificates;
mod faults;
mod fleet;
mod harness;
mod nodes;
mod reaching;

use std::time::Duration;

use lab::fake_api::{Fault, Injection, Resource, StreamingList, Verb};
use service_model::ObjectKind;

use super::ApiConfig;
use harness::{Bench, WatchView, quick, service, slice, unobserved};

#[tokio::test]
async fn a_list_arrives_as_one_reset_and_changes_follow() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = Bench::new();
        bench.api.set_streaming_list(mode);
        bench
            .api
            .apply_all((0..7).map(|i| service(&format!("s{i}"))))
            .unwrap();
        bench.api.apply(slice("s0-x", "s0")).unwrap();
        let config = ApiConfig {
            page_size: 3,
            ..quick()
        };
        bench.start(config).await;
        bench
            .until("four lists", |view| view.resets.len() == 4)
            .await;
        assert_eq!(bench.view.services.len(), 7);
        assert!(
            bench.view.resets.values().all(|&resets| resets == 1),
            "{:?}",
            bench.view.resets
        );
        assert_eq!(
            (bench.view.slices.len(), bench.view.nodes.as_slice()),
            (1, &["this".to_owned()][..])
        );

        bench.api.apply(service("new")).unwrap();
        bench.api.delete(Resource::Services, "default", "s3");
        bench
            .api
            .delete(Resource::EndpointSlices, "default", "s0-x");
        bench
            .until("changes", |view| {
                view.services.contains("new")
                    && !view.services.contains("s3")
                    && view.slices.is_empty()
            })
            .await;
        assert_eq!(bench.view.resets[&ObjectKind::Service], 1);
        assert_eq!(bench.api.counts().forbidden, 0);
    }
}

#[tokio::test]
async fn a_list_of_several_batches_is_complete() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = Bench::new();
        bench.api.set_streaming_list(mode);
        let names: Vec<String> = (0..700).map(|i| format!("s{i:03}")).collect();
        let services = names.iter().map(|name| service(name));
        bench.api.apply_all(services).unwrap();
        let mut bad = service("s400");
        bad["spec"]["ports"] = "none".into();
        bench.api.apply(bad).unwrap();
        let config = ApiConfig {
            page_size: 300,
            ..quick()
        };
        bench.start(config).await;
        bench
            .until("the problem", |view| view.problems.len() == 1)
            .await;
        let valid = names.iter().filter(|name| *name != "s400");
        assert!(bench.view.services.iter().eq(valid), "{mode:?}");
        assert_eq!(bench.view.invalid, ["s400"]);
        assert_eq!(bench.view.resets[&ObjectKind::Service], 1);
    }
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_asked_for_pages() {
    let mut bench = Bench::new();
    bench.api.set_streaming_list(StreamingList::Refused);
    bench.start(quick()).await;
    bench
        .until("a list", |view| {
            view.resets.contains_key(&ObjectKind::Service)
        })
        .await;
    bench.api.expire_watches();
    bench
        .until("a second list", |view| {
            view.resets[&ObjectKind::Service] == 2
        })
        .await;
    let streaming = bench.seen(Resource::Services, Verb::Watch);
    let streaming = streaming
        .iter()
        .filter(|seen| seen.parameters.contains_key("sendInitialEvents"));
    assert_eq!(streaming.count(), 1);
    assert!(
        bench
            .view
            .failures(ObjectKind::Service)
            .iter()
            .all(|error| !error.contains("answered 422"))
    );
}

#[tokio::test]
async fn a_server_that_ignores_send_initial_events_is_asked_for_pages() {
    let mut bench = Bench::new();
    bench.api.set_streaming_list(StreamingList::Ignored);
    bench.api.apply(service("a")).unwrap();
    let config = ApiConfig {
        silence: Duration::from_millis(100),
        ..quick()
    };
    bench.start(config).await;
    bench
        .until("a list", |view| view.services.contains("a"))
        .await;
    assert!(bench.seen(Resource::Services, Verb::List).len() == 1);
}

#[tokio::test]
async fn requests_say_who_asks_and_ask_for_no_more_than_is_needed() {
    let mut bench = Bench::new();
    bench.api.set_streaming_list(StreamingList::Refused);
    bench.start(quick()).await;
    bench
        .until("four lists", |view| view.resets.len() == 4)
        .await;
    let seen = bench.api.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.user_agent.starts_with("portolan/"))
    );
    let parameter = |resource, name: &str| {
        let of = seen.iter().filter(move |seen| seen.resource == resource);
        of.map(|seen| seen.parameters.get(name).cloned())
            .collect::<Vec<_>>()
    };
    let selector =
        "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless".to_owned();
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let selectors = parameter(resource, "labelSelector");
        assert!(
            selectors
                .iter()
                .all(|found| found.as_ref() == Some(&selector)),
            "{selectors:?}"
        );
    }
    let own = Some("metadata.name=this".to_owned());
    assert!(
        parameter(Resource::Nodes, "fieldSelector")
            .iter()
            .all(|found| *found == own)
    );
    assert_eq!(bench.view.nodes, ["this"]);
}

#[tokio::test]
async fn an_undecodable_object_is_named_and_others_are_delivered() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = Bench::new();
        bench.api.set_streaming_list(mode);
        let mut bad = service("bad");
        bad["spec"]["ports"] = "none\u{1b}[31m".into();
        bench
            .api
            .apply_all([service("a"), bad.clone(), service("z")])
            .unwrap();
        bench.start(quick()).await;
        bench
            .until("the problem", |view| view.problems.len() == 1)
            .await;
        assert_eq!(bench.view.services.iter().collect::<Vec<_>>(), ["a", "z"]);
        assert_eq!(bench.view.invalid, ["bad"]);
        let problem = bench.view.problems[0].clone();
        assert_eq!(
            (
                &*problem.invalid().unwrap().object.name,
                problem.invalid().unwrap().field.as_str()
            ),
            ("bad", "spec.ports")
        );
        assert!(problem.is_whole() && !problem.to_string().contains(char::is_control));

        bad["metadata"]["name"] = "a".into();
        bench.api.apply_all([bad, service("next")]).unwrap();
        bench
            .until("the neighbor", |view| view.services.contains("next"))
            .await;
        let invalid = bench.view.problems[1].invalid().unwrap();
        assert_eq!(&*invalid.object.name, "a");
        assert!(
            bench.view.services.contains("a"),
            "a problem takes nothing away"
        );
        bench.api.apply(service("bad")).unwrap();
        bench
            .until("the repaired object", |view| view.services.contains("bad"))
            .await;
    }
}

#[tokio::test]
async fn service_cidrs_are_optional_and_nothing_else_is() {
    let is_connected = |view: &WatchView| {
        let mut latest = view.connections.iter().rev();
        let found = latest.find(|(kind, _)| *kind == ObjectKind::ServiceCidr);
        found.map(|(_, state)| state.is_ok())
    };
    for absence in [404, 403] {
        let mut bench = Bench::new();
        let fault = Fault::status(absence);
        bench.inject(Injection::always(fault).on(Resource::ServiceCidrs));
        bench.inject(Injection::always(fault).on(Resource::Nodes));
        let config = ApiConfig {
            absent_retry: Duration::from_millis(50),
            ..quick()
        };
        bench.start(config).await;
        bench
            .until("lists and a complaint", |view| {
                view.resets.len() == 3 && !view.failures(ObjectKind::Node).is_empty()
            })
            .await;
        assert!(bench.view.resets.contains_key(&ObjectKind::ServiceCidr));
        assert!(bench.view.failures(ObjectKind::ServiceCidr).is_empty());
        assert!(bench.view.failures(ObjectKind::Node)[0].contains(&format!("answered {absence}")));
        bench
            .until("the absent kind", |view| is_connected(view) == Some(true))
            .await;
        // An outage of an absent kind ends when the server answers that it is still absent.
        bench.api.set_reachable(false);
        bench.until_outage(ObjectKind::ServiceCidr).await;
        assert_eq!(is_connected(&bench.view), Some(false));
        bench.api.set_reachable(true);
        bench
            .until("the end of the outage", |view| {
                is_connected(view) == Some(true)
            })
            .await;
        assert_eq!(bench.view.resets[&ObjectKind::ServiceCidr], 1);
        // The cluster is upgraded, or the role is corrected.
        bench.api.heal();
        bench.until("the node", |view| view.nodes == ["this"]).await;
        bench
            .until("the kind", |view| {
                view.resets[&ObjectKind::ServiceCidr] == 2
            })
            .await;
    }
}

#[tokio::test]
async fn a_starting_server_is_asked_again_soon() {
    let mut bench = Bench::new();
    bench.api.set_streaming_list(StreamingList::Refused);
    bench.api.apply(service("a")).unwrap();
    // It has not read the roles yet.
    let fault = Fault::status(403);
    for resource in [Resource::Services, Resource::ServiceCidrs] {
        bench.inject(Injection::always(fault).times(8).on(resource));
    }
    // Doubled eight times, a pause would be of half a minute.
    let config = ApiConfig {
        retry_base: Duration::from_millis(120),
        retry_limit: Duration::from_secs(3600),
        absent_retry: Duration::from_secs(3600),
        ..quick()
    };
    bench.start(config).await;
    bench
        .until("all lists", |view| view.resets.len() == 4)
        .await;
    assert!(bench.view.services.contains("a"));
    let asked = bench.seen(Resource::ServiceCidrs, Verb::List);
    let streaming = bench.seen(Resource::ServiceCidrs, Verb::Watch);
    assert!(asked.len() + streaming.len() > 8, "{asked:?} {streaming:?}");
    // Refusals of a required kind are reported.
    assert!(bench.view.failures(ObjectKind::Service)[0].contains("answered 403"));
    assert!(bench.view.failures(ObjectKind::ServiceCidr).is_empty());
}

#[tokio::test]
async fn a_canceled_source_ends_in_the_middle_of_a_request() {
    let mut bench = Bench::new();
    bench.start(quick()).await;
    bench.until("a list", |view| !view.resets.is_empty()).await;
    bench.inject(Injection::always(Fault::Hang));
    bench.api.break_connections();
    bench.stop().await;
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named() {
    let source = super::ServerSource {
        kubeconfig: Some("/nowhere/kubeconfig".into()),
        ..super::ServerSource::default()
    };
    let error = super::connect(&source, unobserved()).await.err().unwrap();
    assert!(format!("{error:#}").contains("/nowhere/kubeconfig"));
}

#[tokio::test]
async fn outside_a_pod_the_error_names_the_flags() {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return;
    }
    let source = super::ServerSource::default();
    let error = super::connect(&source, unobserved())
        .await
        .err()
        .unwrap()
        .to_string();
    for part in ["KUBERNETES_SERVICE_HOST", "--kubeconfig", "--manifests"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_outage_names_the_address_the_reason_and_the_pause() {
    let mut bench = Bench::new();
    let address = bench.api.address();
    let client = bench.client().await;
    drop(bench);
    let request = http::Request::get("/api/v1/nodes").body(Vec::new());
    let limits = super::Limits {
        silence: Duration::from_secs(5),
        total: Duration::from_secs(5),
    };
    let error = client.call(request.unwrap(), limits).await.unwrap_err();
    let outage = crate::Outage {
        reason: error.to_string(),
        retry_after: Duration::from_millis(2040),
    };
    assert_eq!(
        outage.to_string(),
        format!(
            "cannot reach the API server at http://{address} (connection refused); retrying in 2.0 s"
        )
    );
}
