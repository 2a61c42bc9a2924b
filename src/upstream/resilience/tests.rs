use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::advance;

use super::*;
use crate::rt::Tasks;
use crate::upstream::health::Condition;

fn compile(value: Value, roster: &Roster) -> Result<Arc<Cluster>, Invalid> {
    let upstream = serde_json::from_value(value).unwrap();
    Cluster::compile("upstreams/1", &upstream, None, roster)
}

fn cluster(value: Value) -> Arc<Cluster> {
    compile(value, &Roster::attending()).unwrap()
}

fn resilience(cluster: &Cluster) -> &Resilience {
    cluster.resilience().unwrap()
}

/// How often each port is picked.
fn picks(cluster: &Cluster, count: usize) -> BTreeMap<u16, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let endpoint = cluster.pick(b"k", &mut Tried::default()).unwrap();
        *seen.entry(endpoint.port).or_default() += 1;
    }
    seen
}

fn endpoint(cluster: &Cluster, port: u16) -> Arc<Endpoint> {
    cluster.endpoints().into_iter().find(|endpoint| endpoint.port == port).unwrap()
}

/// As often as it takes by default.
fn fail(cluster: &Cluster, port: u16, seen: Seen) {
    for _ in 0..5 {
        resilience(cluster).note(&endpoint(cluster, port), seen);
    }
}

fn checked(nodes: &Value) -> Value {
    json!({"nodes": nodes, "checks": {"active": {}, "passive": {}}})
}

#[test]
fn an_upstream_without_any_of_it_has_nothing() {
    assert!(cluster(json!({"nodes": {"10.0.0.1:1": 1}})).resilience().is_none());
    let off = Roster::attending().without_checks();
    let upstream = checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1}));
    assert!(compile(upstream, &off).unwrap().resilience().is_none());
}

#[test]
fn requests_mark_a_node_and_it_gets_no_more_until_they_succeed() {
    let cluster = cluster(checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 0})));
    fail(&cluster, 1, Seen::Status(503));
    assert_eq!(picks(&cluster, 10), BTreeMap::from([(2, 10)]));
    // It was on its way before.
    fail(&cluster, 1, Seen::Status(200));
    assert_eq!(picks(&cluster, 10), BTreeMap::from([(1, 5), (2, 5)]));
    fail(&cluster, 2, Seen::Unreachable);
    assert_eq!(picks(&cluster, 10), BTreeMap::from([(1, 10)]));
}

#[test]
fn a_retry_goes_to_a_usable_node_or_nowhere() {
    let cluster = cluster(checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 1})));
    fail(&cluster, 2, Seen::Unreachable);
    let mut tried = Tried::default();
    let order: Vec<u16> =
        std::iter::from_fn(|| cluster.pick(b"", &mut tried).map(|node| node.port)).collect();
    assert_eq!(order.len(), 2);
    assert!(!order.contains(&2));
}

#[test]
fn when_none_is_healthy_all_are_used_whatever_the_balancer() {
    for balance in [
        json!({"type": "roundrobin"}),
        json!({"type": "chash", "key": "uri"}),
        json!({"type": "least_conn"}),
    ] {
        let mut upstream = checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 1}));
        upstream.as_object_mut().unwrap().extend(balance.as_object().unwrap().clone());
        let cluster = cluster(upstream);
        fail(&cluster, 1, Seen::Late);
        fail(&cluster, 1, Seen::Late);
        fail(&cluster, 2, Seen::Unreachable);
        assert_eq!(picks(&cluster, 6), BTreeMap::from([(3, 6)]), "{balance}");
        fail(&cluster, 3, Seen::Unreachable);
        let mut tried = Tried::default();
        let all = std::iter::from_fn(|| cluster.pick(b"", &mut tried)).count();
        assert_eq!(all, 3, "{balance}");
    }
}

#[test]
fn a_lower_level_serves_while_the_higher_one_is_unhealthy() {
    let cluster = cluster(checked(&json!([
        {"host": "10.0.0.1", "port": 1, "weight": 1, "priority": 1},
        {"host": "10.0.0.2", "port": 2, "weight": 1}])));
    assert_eq!(picks(&cluster, 4), BTreeMap::from([(1, 4)]));
    fail(&cluster, 1, Seen::Unreachable);
    assert_eq!(picks(&cluster, 4), BTreeMap::from([(2, 4)]));
}

#[test]
fn the_only_node_is_used_however_it_is() {
    let cluster = cluster(checked(&json!({"10.0.0.1:1": 1})));
    fail(&cluster, 1, Seen::Unreachable);
    assert_eq!(picks(&cluster, 3), BTreeMap::from([(1, 3)]));
}

#[test]
fn with_too_few_usable_nodes_all_are_used() {
    for (usable, total, threshold, panicked) in [
        (0, 4, 0, true),
        (1, 4, 0, false),
        (1, 4, 25, false),
        (1, 4, 26, true),
        (2, 4, 50, false),
        (2, 5, 50, true),
        (4, 4, 100, false),
        (3, 4, 100, true),
    ] {
        assert_eq!(panics(usable, total, threshold), panicked, "{usable}/{total} {threshold}%");
    }
    let mut upstream = checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 1}));
    upstream["resilience"] = json!({"panic_threshold": 60});
    let cluster = cluster(upstream);
    fail(&cluster, 1, Seen::Unreachable);
    assert_eq!(picks(&cluster, 6).len(), 2);
    fail(&cluster, 2, Seen::Unreachable);
    assert_eq!(picks(&cluster, 6).len(), 3);
}

#[test]
fn a_change_of_nodes_keeps_what_is_known_and_the_end_of_checks_forgets_it() {
    let roster = Roster::attending();
    let before = compile(checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1})), &roster).unwrap();
    fail(&before, 1, Seen::Unreachable);
    let after =
        compile(checked(&json!({"10.0.0.1:1": 3, "10.0.0.2:2": 1, "10.0.0.3:3": 1})), &roster)
            .unwrap();
    assert_eq!(picks(&after, 4), BTreeMap::from([(2, 2), (3, 2)]));
    // A trial changes nothing.
    let trial =
        compile(json!({"nodes": {"10.0.0.1:1": 1, "10.0.0.2:2": 1}}), &roster.for_trial()).unwrap();
    assert_eq!(picks(&trial, 4), BTreeMap::from([(1, 2), (2, 2)]));
    assert_eq!(picks(&after, 4), BTreeMap::from([(2, 2), (3, 2)]));

    let without = compile(json!({"nodes": {"10.0.0.1:1": 1, "10.0.0.2:2": 1}}), &roster).unwrap();
    assert_eq!(picks(&without, 4), BTreeMap::from([(1, 2), (2, 2)]));
    let again = compile(checked(&json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1})), &roster).unwrap();
    assert_eq!(picks(&again, 4), BTreeMap::from([(1, 2), (2, 2)]));
}

#[test]
fn a_node_that_joins_begins_slowly_and_those_of_the_start_do_not() {
    let roster = Roster::attending();
    let upstream = |nodes: Value, balance: &str| json!({"nodes": nodes, "type": balance, "resilience": {"slow_start": 36_000}});
    for balance in ["roundrobin", "least_conn"] {
        let roster = roster.clone();
        let first =
            compile(upstream(json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1}), balance), &roster).unwrap();
        if balance == "roundrobin" {
            assert_eq!(picks(&first, 10), BTreeMap::from([(1, 5), (2, 5)]));
        }
        let joined = compile(
            upstream(json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 1}), balance),
            &roster,
        )
        .unwrap();
        // Whoever has least to do is asked first: that is the new one, by far.
        let busy = [1, 2].map(|port| (0..3).map(|_| endpoint(&joined, port).busy()).collect());
        let _busy: [Vec<_>; 2] = busy;
        let seen = picks(&joined, 210);
        assert!((5..=25).contains(seen.get(&3).unwrap()), "{balance}: {seen:?}");
        // Alone it serves, slow or not.
        let alone =
            compile(upstream(json!({"10.0.0.3:3": 1, "10.0.0.4:4": 0}), balance), &roster).unwrap();
        assert_eq!(picks(&alone, 5), BTreeMap::from([(3, 5)]), "{balance}");
        endpoint(&joined, 3).condition().begin_anew();
        let mut tried = Tried::default();
        let all = std::iter::from_fn(|| joined.pick(b"", &mut tried)).count();
        assert_eq!(all, 3, "those that were passed over can still be tried");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_in_a_row_is_out_for_a_growing_time() {
    let roster = Roster::attending();
    let mut tasks = Tasks::new();
    tasks.add(roster.clone().run());
    let upstream = json!({"nodes": {"10.0.0.1:1": 1, "10.0.0.2:2": 1, "10.0.0.3:3": 1}, "resilience": {
        "outlier_detection": {"consecutive_5xx": 3, "interval": 1000, "max_ejection_time": 70}}});
    let cluster = compile(upstream, &roster).unwrap();
    let fail = |port, seen: &[Seen]| {
        seen.iter().for_each(|seen| resilience(&cluster).note(&endpoint(&cluster, port), *seen));
    };
    fail(1, &[Seen::Status(500), Seen::Late, Seen::Status(404), Seen::Status(500), Seen::Late]);
    assert_eq!(picks(&cluster, 6).len(), 3, "a success ended the row");
    for seconds in [30, 60, 70] {
        fail(1, &[Seen::Status(502), Seen::Unreachable, Seen::Late]);
        assert_eq!(picks(&cluster, 6).len(), 2);
        // A tenth of three nodes is one, and that one is out.
        fail(2, &[Seen::Unreachable; 3]);
        assert_eq!(picks(&cluster, 6).len(), 2);
        settle().await;
        advance(Duration::from_secs(seconds) - Duration::from_millis(10)).await;
        settle().await;
        assert_eq!(picks(&cluster, 6).len(), 2, "{seconds}");
        advance(Duration::from_millis(20)).await;
        settle().await;
        assert_eq!(picks(&cluster, 6).len(), 3, "{seconds}");
    }
    drop(tasks);
}

#[test]
fn nobody_stays_out_when_there_is_no_detection_any_more() {
    let roster = Roster::attending();
    let nodes = json!({"10.0.0.1:1": 1, "10.0.0.2:2": 1});
    let upstream = json!({"nodes": nodes, "resilience": {"outlier_detection": {}}});
    let before = compile(upstream.clone(), &roster).unwrap();
    fail(&before, 1, Seen::Late);
    assert_eq!(picks(&before, 4), BTreeMap::from([(2, 4)]));
    // Somebody holds the endpoint all the time, and so its state.
    let held = endpoint(&before, 1);
    drop(before);
    // What was to be attended to is never begun here: it goes with the roster's book.
    roster.forget_waiting();
    let after = compile(upstream, &roster).unwrap();
    assert_eq!(held.state_key(), endpoint(&after, 1).state_key());
    assert_eq!(picks(&after, 4).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_succeeds_too_seldom_is_out_after_the_interval() {
    let roster = Roster::attending();
    let mut tasks = Tasks::new();
    tasks.add(roster.clone().run());
    let upstream = json!({"nodes": {"10.0.0.1:1": 1, "10.0.0.2:2": 1}, "resilience": {"outlier_detection": {
        "consecutive_5xx": 0, "min_success_rate": 80, "request_volume": 10, "interval": 5}}});
    let cluster = compile(upstream, &roster).unwrap();
    settle().await;
    let note = |port, good, bad| {
        let endpoint = endpoint(&cluster, port);
        for (count, status) in [(good, 200), (bad, 503)] {
            (0..count).for_each(|_| resilience(&cluster).note(&endpoint, Seen::Status(status)));
        }
    };
    let over = async || {
        advance(Duration::from_millis(5_100)).await;
        settle().await;
    };
    note(1, 7, 2);
    note(2, 10, 2);
    over().await;
    assert_eq!(picks(&cluster, 4).len(), 2, "too few requests, and enough successes");
    note(1, 7, 3);
    note(2, 9, 1);
    over().await;
    assert_eq!(picks(&cluster, 4), BTreeMap::from([(2, 4)]));
    advance(Duration::from_secs(30)).await;
    settle().await;
    assert_eq!(picks(&cluster, 4).len(), 2);
    drop(tasks);
}

/// Lets tasks do what they can do now.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn requests_are_admitted_up_to_the_limit() {
    let cluster = cluster(json!({"nodes": {"10.0.0.1:1": 1}, "resilience": {"limits": {
        "max_requests": 2, "max_pending_requests": 1, "max_connections": 1}}}));
    let resilience = resilience(&cluster);
    let held = [resilience.admit().unwrap(), resilience.admit().unwrap()];
    let overflow = resilience.admit().unwrap_err();
    assert_eq!(overflow.to_string(), "upstreams/1: resilience.limits.max_requests of 2 is reached");
    drop(held);
    assert!(resilience.admit().unwrap().is_some());

    let pending = resilience.pend().unwrap();
    assert_eq!(resilience.pend().unwrap_err().limit, Limit::PendingRequests);
    drop(pending);
    let slot = resilience.slot().unwrap();
    assert!(resilience.slot().is_none());
    let shared = slot.clone();
    drop(slot);
    assert!(resilience.slot().is_none(), "its clone is the same connection");
    drop(shared);
    assert!(resilience.slot().is_some());
}

#[test]
fn a_limit_holds_over_revisions() {
    let roster = Roster::attending();
    let upstream =
        |nodes: Value| json!({"nodes": nodes, "resilience": {"limits": {"max_requests": 1}}});
    let before = compile(upstream(json!({"10.0.0.1:1": 1})), &roster).unwrap();
    let held = resilience(&before).admit().unwrap();
    let after = compile(upstream(json!({"10.0.0.2:2": 1})), &roster).unwrap();
    drop(before);
    assert!(resilience(&after).admit().is_err());
    drop(held);
    assert!(resilience(&after).admit().is_ok());
}

#[test]
fn further_attempts_keep_to_the_budget() {
    let cluster = cluster(json!({"nodes": {"10.0.0.1:1": 1}, "resilience": {
        "retry_budget": {"percent": 50, "min_concurrency": 1}}}));
    let resilience = resilience(&cluster);
    let requests: Vec<_> = (0..4).map(|_| resilience.admit().unwrap().unwrap()).collect();
    let retries = [resilience.retry().unwrap(), resilience.retry().unwrap()];
    assert!(resilience.retry().is_none());
    drop(retries);
    drop(requests);
    let one = resilience.retry().unwrap();
    assert!(resilience.retry().is_none());
    drop(one);
    assert!(resilience.retry().is_some());
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    for (more, sentence) in [
        (json!({"slow_start": 0}), "resilience.slow_start: expected seconds above 0"),
        (json!({"hedging": {"delay": 0}}), "resilience.hedging.delay: expected seconds above 0"),
        (
            json!({"hedging": {"delay": 1, "max_attempts": 1}}),
            "resilience.hedging.max_attempts: expected 2 to 5, got 1",
        ),
        (
            json!({"limits": {"max_requests": 0}}),
            "resilience.limits.max_requests: expected 1 or more, got 0",
        ),
        (json!({"panic_threshold": 101}), "resilience.panic_threshold: expected 0 to 100"),
        (
            json!({"retry_budget": {"percent": 101}}),
            "resilience.retry_budget.percent: expected 0 to 100",
        ),
        (
            json!({"outlier_detection": {"interval": -1}}),
            "resilience.outlier_detection.interval: expected seconds above 0",
        ),
    ] {
        let upstream = json!({"nodes": {"10.0.0.1:1": 1}, "resilience": more});
        let error = compile(upstream, &Roster::default()).unwrap_err().0;
        assert!(error.starts_with(sentence), "{more}: {error}");
    }
    let ring = json!({"type": "chash", "key": "uri", "resilience": {"slow_start": 1}});
    let error = compile(ring, &Roster::default()).unwrap_err().0;
    assert!(error.starts_with("resilience.slow_start: chash"), "{error}");
}

#[test]
fn what_is_known_is_shown_as_apisix_shows_it() {
    let roster = Roster::attending();
    let registry = crate::observe::Registry::new();
    roster.show(&registry);
    let mut upstream = checked(&json!({"10.0.0.1:81": 1, "10.0.0.2:82": 1}));
    upstream["resilience"] = json!({"outlier_detection": {}});
    let cluster = compile(upstream, &roster).unwrap();
    let first = endpoint(&cluster, 81);
    resilience(&cluster).note(&first, Seen::Unreachable);
    resilience(&cluster).note(&first, Seen::Unreachable);
    resilience(&cluster).note(&endpoint(&cluster, 82), Seen::Late);
    let reports = roster.health();
    assert_eq!(
        serde_json::to_value(&reports).unwrap(),
        json!([{"name": "/apisix/upstreams/1", "type": "http", "nodes": [
            {"ip": "10.0.0.1", "port": 81, "hostname": "10.0.0.1", "status": "unhealthy",
             "counter": {"success": 0, "http_failure": 0, "tcp_failure": 2, "timeout_failure": 0},
             "ejected": false},
            {"ip": "10.0.0.2", "port": 82, "hostname": "10.0.0.2", "status": "mostly_healthy",
             "counter": {"success": 0, "http_failure": 0, "tcp_failure": 0, "timeout_failure": 1},
             "ejected": false}]}])
    );
    assert!(reports[0].is_of("upstreams", "1") && !reports[0].is_of("routes", "1"));
    let text = registry.render();
    for line in [
        "apisix_upstream_status{name=\"/apisix/upstreams/1\",ip=\"10.0.0.1\",port=\"81\"} 0\n",
        "apisix_upstream_status{name=\"/apisix/upstreams/1\",ip=\"10.0.0.2\",port=\"82\"} 1\n",
        "wardgate_upstream_nodes{upstream=\"upstreams/1\",state=\"unhealthy\"} 1\n",
        "wardgate_upstream_health_changes_total{upstream=\"upstreams/1\",to=\"unhealthy\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    drop((cluster, first));
    assert!(roster.health().is_empty());
    assert!(!registry.render().contains("10.0.0.1"));
}

#[test]
fn the_state_of_an_endpoint_is_small() {
    assert!(size_of::<Condition>() <= 48, "{}", size_of::<Condition>());
}
