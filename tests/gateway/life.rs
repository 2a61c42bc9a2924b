//! How a process begins, says how it is, and ends: probes, the grace before its doors close, signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mesh::{RawApp, Wire};
use crate::world::{App, Process, World, eventually_async, get, soon};

fn route_to(address: &str) -> Value {
    json!({ "routes": [{ "id": "r", "uri": "/*", "upstream": { "nodes": { address: 1 } } }] })
}

/// Asks again and again: what comes together with the first request is taken for the same.
async fn ended_at_once(process: &mut Process, signal: Signal) -> Option<i32> {
    eventually_async("the process ends", || async {
        process.signal(signal);
        process.has_ended().then_some(())
    })
    .await;
    process.wait().code()
}

#[tokio::test]
async fn a_process_that_is_asked_to_end_is_not_ready_at_once_and_serves_on_for_its_grace() {
    let world = World::new();
    let app = App::echo("app");
    let mut ingress = world
        .ingress()
        .set("status", &json!("127.0.0.1:0"))
        .set("drain_grace_seconds", &json!(3600))
        .resources(&route_to(&app.address.to_string()))
        .start();
    let status = ingress.address("status");
    assert_eq!(get(status, "/status/ready").await.status, 200);
    ingress.ask_to_end();
    let answer = eventually_async("not ready", || async {
        let answer = get(status, "/status/ready").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let body = answer.json();
    assert_eq!(body["status"], "error");
    assert_eq!(body["error"], "draining: the process was asked to end");
    assert_eq!(get(status, "/status").await.status, 200, "it lives");
    for _ in 0..3 {
        assert_eq!(get(ingress.address("ingress"), "/new").await.status, 200);
    }
    // Whoever does not want to wait asks again.
    assert_eq!(ended_at_once(&mut ingress, Signal::TERM).await, Some(143));
}

#[tokio::test]
async fn a_second_request_to_end_cuts_off_what_is_under_way_and_keeps_the_decision_log_whole() {
    let world = World::new();
    let app = RawApp::serving(|stream| {
        if stream.head().is_some() {
            stream.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
            stream.rest();
        }
    });
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut ingress = world
            .ingress()
            .named(&format!("ingress-{code}"))
            .set("drain_seconds", &json!(3600))
            .resources(&route_to(&app.address.to_string()))
            .start();
        let mut wire = Wire::to(ingress.address("ingress")).await;
        wire.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        ingress.signal(signal);
        ingress.logs("draining");
        assert_eq!(ended_at_once(&mut ingress, signal).await, Some(code));
        let log = ingress.audit_file();
        crate::world::run(["audit", "verify", log.to_str().unwrap()]).good();
        assert!(ingress.audit().iter().any(|record| record["path"] == "/x"));
    }
}

/// Connects as fast as it can, a request each, until nobody is there; how many were answered, and what was lost.
async fn knock(door: std::net::SocketAddr, answered: &AtomicUsize) -> Vec<String> {
    let mut lost = Vec::new();
    loop {
        let connect = tokio::net::TcpStream::connect(door);
        let Ok(tcp) = soon("a connection or a refusal", connect).await else { return lost };
        let mut wire = Wire::over(tcp);
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        match wire.response_to("GET").await {
            Some(answer) if answer.whole && answer.status == 200 => {
                answered.fetch_add(1, Ordering::SeqCst);
            }
            other => lost.push(format!("{other:?}")),
        }
    }
}

#[tokio::test]
async fn every_connection_that_was_made_before_the_doors_closed_is_served() {
    let world = World::new();
    let app = App::echo("app");
    for round in 0..3 {
        let mut ingress = world
            .ingress()
            .named(&format!("ingress-{round}"))
            .set("workers", &json!(2))
            .resources(&route_to(&app.address.to_string()))
            .start();
        let door = ingress.address("ingress");
        let answered = Arc::<AtomicUsize>::default();
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let answered = answered.clone();
                wardgate::rt::spawn(async move { knock(door, &answered).await })
            })
            .collect();
        eventually_async("some answers", || async {
            (answered.load(Ordering::SeqCst) > 50).then_some(())
        })
        .await;
        ingress.ask_to_end();
        for client in clients {
            assert_eq!(soon("the end of a client", client).await.unwrap(), Vec::<String>::new());
        }
        assert!(ingress.wait().success(), "{}", ingress.said());
    }
}
