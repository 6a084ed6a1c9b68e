//! Faults of servers and networks, and what a source does about them.

use std::time::{Duration, Instant};

use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use lab::fake_api::{Fault, Injection, Resource, Seen, StreamingList, Verb};
use service_model::ObjectKind;

use super::harness::{Bench, quick, service, watches};
use crate::api::request::Extent;
use crate::api::{ApiConfig, Limits};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn five_services() -> Bench {
    let bench = Bench::new();
    bench.api.apply_all(NAMES.map(service)).unwrap();
    bench
}

/// Length of a whole list of Services, as pages or as a stream with its end.
async fn list_length(bench: &mut Bench, mode: StreamingList) -> usize {
    let client = bench.client().await;
    let limit = Duration::from_secs(5);
    let path = Request::new(Resource::Services.path());
    if mode == StreamingList::Refused {
        let request = path.list(&ListParams::default()).unwrap();
        let limits = Limits {
            silence: limit,
            total: limit,
        };
        return client.call(request, limits).await.unwrap().len();
    }
    let parameters = WatchParams {
        send_initial_events: true,
        ..WatchParams::default()
    };
    let request = path.watch(&parameters, "").unwrap();
    let mut lines = client.lines(request, Extent::Whole, limit).await.unwrap();
    let mut length = 0;
    loop {
        let line = lines
            .next(tokio::time::Instant::now() + limit)
            .await
            .unwrap()
            .unwrap();
        length += line.len() + 1;
        if line.starts_with(br#"{"type":"BOOKMARK"#) {
            return length;
        }
    }
}

#[tokio::test]
async fn a_list_cut_at_any_byte_delivers_nothing() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = five_services();
        bench.api.set_streaming_list(mode);
        let length = list_length(&mut bench, mode).await;
        // A streaming list that failed is followed by pages: those fail here in another way.
        let cut = if mode == StreamingList::Served {
            Verb::Watch
        } else {
            Verb::List
        };
        let other = Fault::status(500);
        // The last byte is the end of the line, which a list of pages can do without.
        let offsets = (0..length - 2)
            .step_by(length / 20)
            .chain([1, 2, length - 3]);
        for offset in offsets {
            for fault in [Fault::CutAfter(offset), Fault::EndAfter(offset)] {
                let before = bench.api.seen().len();
                bench.inject(Injection::always(fault).of(Resource::Services, cut));
                if cut == Verb::Watch {
                    bench.inject(Injection::always(other).of(Resource::Services, Verb::List));
                }
                bench.start(quick()).await;
                let asked = |api: &lab::fake_api::FakeApi| {
                    let seen = api.seen();
                    seen.iter()
                        .skip(before)
                        .filter(|seen| seen.resource == Resource::Services)
                        .count()
                };
                bench.until_seen("attempts", |api| asked(api) > 2).await;
                bench.until_outage(ObjectKind::Service).await;
                let resets = bench.view.resets.get(&ObjectKind::Service);
                assert_eq!(resets, None, "{mode:?} {fault:?} of {length}");

                bench.api.heal();
                bench.until_listed(NAMES.len()).await;
                assert_eq!(bench.view.lists, [NAMES]);
            }
        }
    }
}

#[tokio::test]
async fn every_list_is_whole_whatever_happens_to_its_pages() {
    for seed in 0..6 {
        let mut bench = five_services();
        if seed % 2 == 0 {
            bench.api.set_streaming_list(StreamingList::Refused);
        }
        bench.api.inject_randomly(seed, 0.4);
        let config = ApiConfig {
            page_size: 2,
            silence: Duration::from_millis(50),
            ..quick()
        };
        bench.start(config).await;
        for round in 1..4 {
            bench
                .until("a list", |view| view.lists.len() >= round)
                .await;
            bench.api.expire_watches();
        }
        bench.api.apply(service("last")).unwrap();
        bench
            .until("the last object", |view| view.services.contains("last"))
            .await;
        for list in &bench.view.lists {
            assert!(
                list.starts_with(&NAMES.map(str::to_owned)),
                "seed {seed}: {list:?}"
            );
        }
    }
}

#[tokio::test]
async fn repeated_410_costs_one_list_per_step_of_backoff() {
    for (gone, fault) in [
        ("event", Fault::ErrorEvent(410)),
        ("status", Fault::status(410)),
    ] {
        let mut bench = five_services();
        bench.api.set_streaming_list(StreamingList::Refused);
        bench.inject(Injection::always(fault).of(Resource::Services, Verb::Watch));
        let config = ApiConfig {
            retry_limit: Duration::from_millis(60),
            ..quick()
        };
        let (began, steps) = (Instant::now(), 20);
        bench.start(config).await;
        bench
            .until_seen("watches", |api| watches(api) >= steps)
            .await;
        // A list by pages is followed by a watch that fails, and that by a pause.
        let lists = bench.seen(Resource::Services, Verb::List).len();
        assert!(lists <= watches(&bench.api), "{gone}");
        // Mean of a pause is 30 ms; the first few are shorter.
        assert!(
            began.elapsed() > Duration::from_millis(120),
            "{gone}: {:?}",
            began.elapsed()
        );
        assert!(bench.view.lists.iter().all(|list| list == &NAMES), "{gone}");
        bench.api.heal();
        bench.api.apply(service("after")).unwrap();
        bench
            .until("the change after the errors", |view| {
                view.services.contains("after")
            })
            .await;
    }
}

#[tokio::test]
async fn a_deletion_during_an_outage_arrives_after_it() {
    for compacted in [false, true] {
        let mut bench = five_services();
        bench.start(quick()).await;
        bench.until_listed(NAMES.len()).await;
        bench.api.set_reachable(false);
        bench.until_outage(ObjectKind::Service).await;
        bench.api.delete(Resource::Services, "default", "b");
        bench.api.apply(service("f")).unwrap();
        if compacted {
            bench.api.compact();
        }
        let connections = bench.api.counts().connections;
        bench
            .until_seen("attempts", |api| api.counts().connections > connections + 4)
            .await;
        assert_eq!(
            bench.view.services.len(),
            NAMES.len(),
            "an outage takes nothing away"
        );
        bench.api.set_reachable(true);
        bench
            .until("the changes", |view| {
                view.services.contains("f") && !view.services.contains("b")
            })
            .await;
        assert_eq!(
            bench.view.resets[&ObjectKind::Service],
            if compacted { 2 } else { 1 }
        );
        bench
            .until("the all-clear", |view| {
                view.connections.last().is_some_and(|(_, s)| s.is_ok())
            })
            .await;
    }
}

#[tokio::test]
async fn retry_after_is_honored() {
    for code in [429, 503] {
        // A new server each time: a source that is being stopped could receive the fault meant for the next one.
        let mut bench = five_services();
        let fault = Fault::Status {
            code,
            retry_after: Some(1),
        };
        bench.inject(Injection::once(fault).on(Resource::Services));
        bench.start(quick()).await;
        bench.until_listed(NAMES.len()).await;
        assert!(bench.view.failures(ObjectKind::Service)[0].contains(&format!("answered {code}")));
        let all = bench.api.seen();
        let mut asked = all
            .iter()
            .filter(|seen| seen.resource == Resource::Services);
        let first = asked.find(|seen| seen.verb == Verb::Watch).unwrap().at;
        // The stream was refused for a while, not for good: after another error than 429, which pages would get as well, the
        // next attempt may be either.
        let second = all
            .iter()
            .find(|seen| seen.resource == Resource::Services && seen.at > first)
            .unwrap();
        assert!(code != 429 || second.verb == Verb::Watch);
        let second = second.at;
        assert!(
            second - first >= Duration::from_secs(1),
            "{code}: {:?}",
            second - first
        );
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up_in_time() {
    let silence = Duration::from_millis(150);
    // In the answer to a list; in the middle of one; in a watch.
    for fault in [
        Fault::Hang,
        Fault::HangAfter(300),
        Fault::HangAfter(100_000),
    ] {
        for mode in [StreamingList::Served, StreamingList::Refused] {
            let mut bench = five_services();
            bench.api.set_streaming_list(mode);
            bench.inject(Injection::once(fault).on(Resource::Services));
            let config = ApiConfig {
                silence,
                watch_silence: silence,
                ..quick()
            };
            bench.start(config).await;
            bench.until_listed(NAMES.len()).await;
            let before = watches(&bench.api);
            bench.inject(Injection::once(Fault::HangAfter(0)).of(Resource::Services, Verb::Watch));
            bench.api.break_connections();
            bench
                .until_seen("a watch that hangs", |api| watches(api) > before)
                .await;
            bench.api.apply(service("late")).unwrap();
            bench
                .until("the change", |view| view.services.contains("late"))
                .await;
        }
    }
    let ApiConfig {
        silence,
        watch_silence,
        ..
    } = ApiConfig::default();
    assert!(silence <= Duration::from_secs(45) && watch_silence <= Duration::from_secs(90));
}

#[tokio::test]
async fn an_idle_watch_is_renewed_when_its_time_is_over_only() {
    let mut bench = five_services();
    bench.api.set_bookmark_interval(Duration::from_millis(100));
    let config = ApiConfig {
        watch_silence: Duration::from_millis(500),
        watch_seconds: 2..=2,
        ..quick()
    };
    bench.start(config).await;
    bench.until_listed(NAMES.len()).await;
    bench
        .until_seen("two renewals", |api| watches(api) >= 4)
        .await;
    // Without those that are lists.
    let seen = bench.api.seen().into_iter();
    let of_services: Vec<Seen> = seen
        .filter(|seen| seen.resource == Resource::Services)
        .filter(|seen| !seen.parameters.contains_key("sendInitialEvents"))
        .collect();
    let watches: Vec<Instant> = of_services
        .iter()
        .filter(|seen| seen.verb == Verb::Watch)
        .map(|seen| seen.at)
        .collect();
    assert!(of_services.len() - watches.len() <= 1, "{of_services:?}");
    for pair in watches.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart > Duration::from_millis(1_800), "{apart:?}");
    }
    // With these times, an idle node sends no more than kube-proxy, which renews each watch after 300 to 600 s.
    let ours = ApiConfig::default();
    let shortest = f64::from(*ours.watch_seconds.start());
    let an_hour = 4.0 * 3600.0 / shortest + 3600.0 / ours.verify_every.as_secs_f64();
    assert!(an_hour < 4.0 * 3600.0 / 450.0, "{an_hour} requests an hour");
    assert!(ours.watch_silence > Duration::from_secs(65));
}

#[tokio::test]
async fn a_slow_list_is_read_and_an_endless_one_given_up() {
    let mut bench = five_services();
    bench.api.set_streaming_list(StreamingList::Refused);
    let slow = |bytes| Fault::Slow {
        bytes,
        pause: Duration::from_millis(1),
    };
    bench.inject(Injection::once(slow(7)).of(Resource::Services, Verb::List));
    let config = ApiConfig {
        silence: Duration::from_millis(500),
        ..quick()
    };
    bench.start(config).await;
    bench
        .until("the slow list", |view| view.services.len() == NAMES.len())
        .await;

    bench.inject(Injection::always(slow(1)).of(Resource::Services, Verb::List));
    let config = ApiConfig {
        list_limit: Duration::from_millis(50),
        ..quick()
    };
    bench.start(config).await;
    bench.until_outage(ObjectKind::Service).await;
    assert!(!bench.view.resets.contains_key(&ObjectKind::Service));
    bench.api.heal();
    bench.until_listed(NAMES.len()).await;
}

#[tokio::test]
async fn a_server_restored_from_a_backup_is_listed_again() {
    let mut bench = five_services();
    let backup = bench.api.backup();
    bench.api.delete(Resource::Services, "default", "a");
    bench.api.apply_all(["f", "g"].map(service)).unwrap();
    let now = ["b", "c", "d", "e", "f", "g"];
    bench.start(quick()).await;
    bench
        .until("the list", |view| view.services.len() == now.len())
        .await;
    bench.api.restore(&backup);
    bench.api.break_connections();
    bench.until("the past", |view| view.lists.len() == 2).await;
    assert_eq!(bench.view.lists, [&now[..], &NAMES[..]]);
    bench.api.apply(service("h")).unwrap();
    bench
        .until("the future", |view| view.services.contains("h"))
        .await;
}

#[tokio::test]
async fn a_silent_restore_is_found_when_the_watch_is_renewed() {
    let mut bench = five_services();
    let backup = bench.api.backup();
    bench
        .api
        .apply_all((0..9).map(|i| service(&format!("s{i}"))))
        .unwrap();
    let config = ApiConfig {
        watch_seconds: 1..=1,
        verify_every: Duration::ZERO,
        ..quick()
    };
    bench.start(config).await;
    bench
        .until("the list", |view| view.services.len() == NAMES.len() + 9)
        .await;
    bench.api.restore(&backup);
    bench
        .until("the past", |view| view.services.len() == NAMES.len())
        .await;
    assert!(
        bench.view.failures(ObjectKind::Service).is_empty(),
        "this was no outage"
    );
}

#[tokio::test]
async fn events_out_of_order_lead_to_a_list_not_to_an_old_object() {
    let mut bench = five_services();
    bench.start(quick()).await;
    bench.until_listed(NAMES.len()).await;
    bench.inject(Injection::once(Fault::Replay).of(Resource::Services, Verb::Watch));
    let before = watches(&bench.api);
    bench.api.break_connections();
    bench
        .until_seen("the new watch", |api| watches(api) > before)
        .await;
    bench.api.apply(service("f")).unwrap();
    bench.api.delete(Resource::Services, "default", "f");
    bench.api.apply(service("g")).unwrap();
    bench
        .until("the end", |view| {
            view.services.contains("g") && !view.services.contains("f")
        })
        .await;
    let changes = bench.view.changes.iter().filter(|(name, _)| name == "f");
    let after_it_went = changes.skip_while(|(_, applied)| *applied);
    assert!(
        after_it_went.clone().count() > 0 && after_it_went.into_iter().all(|(_, applied)| !applied),
        "{:?}",
        bench.view.changes
    );
}

#[tokio::test]
async fn a_repeated_object_is_one_object() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = five_services();
        bench.api.set_streaming_list(mode);
        bench.inject(Injection::always(Fault::Duplicate));
        bench.start(quick()).await;
        bench.until_listed(NAMES.len()).await;
        bench.api.apply(service("f")).unwrap();
        bench
            .until("the change", |view| view.services.contains("f"))
            .await;
        assert_eq!(bench.view.lists, [NAMES]);
    }
}

#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_asked_with_pauses() {
    let mut bench = five_services();
    bench.api.set_streaming_list(StreamingList::Refused);
    bench.inject(Injection::always(Fault::EndAfter(0)).of(Resource::Services, Verb::Watch));
    let pause = Duration::from_millis(200);
    let config = ApiConfig {
        retry_base: pause,
        retry_limit: pause,
        ..quick()
    };
    bench.start(config).await;
    bench.until_listed(NAMES.len()).await;
    let began = Instant::now();
    let before = watches(&bench.api);
    bench
        .until_seen("more watches", |api| watches(api) >= before + 12)
        .await;
    // Twelve pauses of 100 ms in the mean.
    assert!(
        began.elapsed() > Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        bench.view.lists.len(),
        1,
        "an ended watch is no reason to list"
    );
}

#[tokio::test]
async fn refused_credentials_are_retried() {
    let mut bench = five_services();
    bench.start(quick()).await;
    bench.until_listed(NAMES.len()).await;
    bench.api.require_token(Some("planted"));
    bench.api.break_connections();
    bench
        .until("the complaint", |view| {
            view.failures(ObjectKind::Service)
                .iter()
                .any(|e| e.contains("answered 401"))
        })
        .await;
    bench.api.require_token(None);
    bench.api.apply(service("f")).unwrap();
    bench
        .until("the change", |view| view.services.contains("f"))
        .await;
    assert!(
        bench
            .view
            .connections
            .iter()
            .all(|(_, state)| !format!("{state:?}").contains("planted"))
    );
}
