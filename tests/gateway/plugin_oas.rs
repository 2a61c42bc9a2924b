//! `oas-validator` over real sockets: a document in the settings, and one that is fetched.

use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use super::plugins::Edge;
use super::world::{App, eventually_async};

/// A document that knows `/items/{id}` with a number, and `/items` with a JSON body.
fn document(least: u32) -> Value {
    let number = json!({ "type": "integer", "minimum": least });
    let item = json!({ "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } } });
    json!({ "openapi": "3.0.3", "info": { "title": "shop", "version": "1" }, "paths": {
        "/items/{id}": { "get": { "responses": {}, "parameters": [
            { "name": "id", "in": "path", "required": true, "schema": number },
            { "name": "page", "in": "query", "schema": number },
            { "name": "X-Tenant", "in": "header", "schema": { "type": "string", "maxLength": 3 } },
        ] } },
        "/items": { "post": { "responses": {}, "requestBody": { "required": true, "content": {
            "application/json": { "schema": item } } } } },
    } })
}

/// A server of one document, which may be missing; what it was asked with.
struct Shelf {
    app: App,
    document: Arc<Mutex<Option<Value>>>,
    asked: Arc<Mutex<Vec<Option<String>>>>,
}

impl Shelf {
    fn new() -> Self {
        let document = Arc::<Mutex<Option<Value>>>::default();
        let asked = Arc::<Mutex<Vec<Option<String>>>>::default();
        let (given, heard) = (document.clone(), asked.clone());
        let app = App::serving(move |request: Request<hyper::body::Incoming>| {
            let token = request.headers().get("x-token");
            heard.lock().unwrap().push(token.map(|token| token.to_str().unwrap().to_owned()));
            let (status, text) = match &*given.lock().unwrap() {
                Some(document) => (200, document.to_string()),
                None => (404, String::new()),
            };
            let answer = Response::builder().status(status);
            let answer = answer.body(Full::new(Bytes::from(text))).unwrap();
            async move { answer }
        });
        Self { app, document, asked }
    }

    fn put(&self, document: Option<Value>) {
        *self.document.lock().unwrap() = document;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_what_the_document_says() {
    let edge = Edge::new();
    let spec = document(1).to_string();
    let with = |more: Value| {
        let mut settings = json!({ "spec": spec });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "oas-validator": settings, "proxy-rewrite": { "uri": "/" } })
    };
    let route = async |id: &str, host: &str, plugins: Value| {
        let route =
            json!({ "uri": "/*", "host": host, "upstream": edge.upstream(), "plugins": plugins });
        edge.put(&format!("/routes/{id}"), &route).await;
    };
    route("1", "strict.test", with(json!({ "verbose_errors": true, "rejection_status_code": 422, "max_req_body_size": 64 }))).await;
    let lenient = json!({ "reject_if_not_match": false, "skip_path_params_validation": true, "skip_query_param_validation": true,
        "skip_request_header_validation": true, "skip_request_body_validation": true });
    route("2", "lenient.test", with(lenient)).await;
    let json_type = ("content-type", "application/json");
    for (method, path, header, body, says) in [
        ("GET", "/items/7?page=1", ("x-tenant", "abc"), "", None),
        ("GET", "/items/x", ("x-a", "b"), "", Some("parameter 'id' in path")),
        ("GET", "/items/7?page=0", ("x-a", "b"), "", Some("parameter 'page' in query")),
        ("GET", "/items/7", ("x-tenant", "abcd"), "", Some("parameter 'X-Tenant' in header")),
        ("GET", "/other", ("x-a", "b"), "", Some("no such path and method")),
        ("DELETE", "/items/7", ("x-a", "b"), "", Some("no such path and method")),
        ("POST", "/items", json_type, r#"{"name": "a"}"#, None),
        ("POST", "/items", json_type, r#"{"name": 1}"#, Some("the body: /name")),
        ("POST", "/items", json_type, "", Some("a body is required")),
        ("POST", "/items", ("content-type", "text/plain"), "a", Some("is not expected")),
    ] {
        let seen = edge.app.requests();
        let ask = async |host: &str| {
            let address = edge.ingress.address("ingress");
            super::world::send(address, method, path, &[header, ("host", host)], body.to_owned())
                .await
        };
        let answer = ask("strict.test").await;
        match says {
            None => assert_eq!(answer.status, 200, "{path}: {}", answer.text()),
            Some(says) => {
                let message = answer.json()["message"].as_str().unwrap().to_owned();
                assert!(
                    message.starts_with("failed to validate request. ") && message.contains(says),
                    "{message}"
                );
                assert_eq!((answer.status, edge.app.requests()), (422, seen), "{path}");
            }
        }
        assert_eq!(ask("lenient.test").await.status, 200, "{path}");
    }
    let address = edge.ingress.address("ingress");
    let large = format!("{{\"name\": \"{}\"}}", "a".repeat(100));
    let headers = [json_type, ("host", "strict.test")];
    let answer = super::world::send(address, "POST", "/items", &headers, large).await;
    assert_eq!(answer.status, 413);
    edge.refuses(
        "oas-validator",
        &[
            (json!({}), "oas-validator"),
            (json!({ "spec": "{}", "spec_url": "http://a" }), "oas-validator"),
            (json!({ "spec": 1 }), "spec"),
            (json!({ "spec": "" }), "spec"),
            (json!({ "spec": "openapi: 3.1.0" }), "spec: it is no JSON"),
            (json!({ "spec_url": "ftp://a" }), "spec_url"),
            (
                json!({ "spec_url": "http://a", "spec_url_request_headers": { "a": 1 } }),
                "spec_url_request_headers",
            ),
            (json!({ "spec_url": "http://a", "ssl_verify": "no" }), "ssl_verify"),
            (json!({ "spec_url": "http://a", "timeout": 999 }), "timeout"),
            (json!({ "spec": spec, "verbose_errors": 1 }), "verbose_errors"),
            (
                json!({ "spec": spec, "skip_path_params_validation": 1 }),
                "skip_path_params_validation",
            ),
            (
                json!({ "spec": spec, "skip_query_param_validation": 1 }),
                "skip_query_param_validation",
            ),
            (
                json!({ "spec": spec, "skip_request_header_validation": 1 }),
                "skip_request_header_validation",
            ),
            (
                json!({ "spec": spec, "skip_request_body_validation": 1 }),
                "skip_request_body_validation",
            ),
            (json!({ "spec": spec, "reject_if_not_match": 1 }), "reject_if_not_match"),
            (json!({ "spec": spec, "rejection_status_code": 399 }), "rejection_status_code"),
            (json!({ "spec": spec, "max_req_body_size": 0 }), "max_req_body_size"),
            (json!({ "spec": spec, "unknown": 0 }), "unknown"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_fetched_kept_and_fetched_again() {
    let edge = Edge::new();
    let shelf = Shelf::new();
    edge.put("/plugin_metadata/oas-validator", &json!({ "spec_url_ttl": 1 })).await;
    let url = format!("http://{}/openapi.json", shelf.app.address);
    let settings = json!({ "spec_url": url, "spec_url_request_headers": { "X-Token": "t" }, "ssl_verify": false, "timeout": 20_000 });
    edge.route("1", "/*", json!({ "oas-validator": settings })).await;
    // Without a document nothing passes.
    let none = edge.get("/items/7").await;
    assert_eq!(
        (none.status, none.json()),
        (500, json!({ "error_msg": "the OpenAPI document cannot be had" }))
    );
    shelf.put(Some(document(5)));
    eventually_async("it is there", || async {
        (edge.get("/items/7").await.status == 200).then_some(())
    })
    .await;
    let refused = edge.get("/items/4").await;
    assert_eq!(
        (refused.status, refused.json()),
        (400, json!({ "message": "failed to validate request." }))
    );
    assert!(shelf.asked.lock().unwrap().iter().all(|token| token.as_deref() == Some("t")));
    // Another one holds when the time of the first is over.
    shelf.put(Some(document(1)));
    eventually_async("the new one holds", || async {
        (edge.get("/items/4").await.status == 200).then_some(())
    })
    .await;
    // What cannot be fetched takes nothing away.
    shelf.put(None);
    let asked = shelf.asked.lock().unwrap().len();
    eventually_async("it is asked again", || async {
        assert_eq!(edge.get("/items/4").await.status, 200);
        assert_eq!(edge.get("/items/0").await.status, 400);
        (shelf.asked.lock().unwrap().len() > asked + 1).then_some(())
    })
    .await;
    let answer = edge
        .admin
        .ask("PUT", "/plugin_metadata/oas-validator", Some(&json!({ "spec_url_ttl": 0 })))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}
