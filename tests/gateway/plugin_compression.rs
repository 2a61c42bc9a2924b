//! `gzip` and `brotli` over real sockets.

use std::io::Read as _;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;

use super::plugins::Edge;
use super::world::{Answer, App};

fn read(answer: &Answer) -> String {
    let mut text = String::new();
    match answer.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
        }
        Some("br") => {
            brotli::Decompressor::new(&answer.body[..], 4096).read_to_string(&mut text).unwrap();
        }
        _ => text = answer.text(),
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_for_those_who_take_it_and_for_nobody_else() {
    let edge = Edge::new();
    let app = App::serving(|request: Request<hyper::body::Incoming>| async move {
        let path = request.uri().path().to_owned();
        let body =
            "what comes again and again ".repeat(if path.ends_with("short") { 1 } else { 2000 });
        let mut response = Response::builder().header("ETag", "\"1\"");
        response = match path.rsplit('/').next().unwrap() {
            "json" => response.header("Content-Type", "application/json"),
            "plain" => response.header("Content-Type", "text/plain"),
            "coded" => {
                response.header("Content-Type", "text/html").header("Content-Encoding", "zstd")
            }
            "kept" => {
                response.header("Content-Type", "text/html").header("Cache-Control", "no-transform")
            }
            _ => response.header("Content-Type", "text/html; charset=utf-8"),
        };
        response.body(Full::new(Bytes::from(body))).unwrap()
    });
    let upstream = json!({ "nodes": { app.address.to_string(): 1 } });
    let route = async |id: &str, plugins: serde_json::Value| {
        let route = json!({ "uri": format!("/{id}/*"), "upstream": upstream, "plugins": plugins });
        edge.put(&format!("/routes/{id}"), &route).await;
    };
    let gzip = json!({ "types": ["text/html", "application/json"], "comp_level": 9, "min_length": 100, "vary": true,
        "buffers": { "number": 4, "size": 1024 }, "http_version": 1.1 });
    route("gzip", json!({ "gzip": gzip })).await;
    let brotli = json!({ "types": "*", "comp_level": 4, "min_length": 100, "vary": true, "mode": 1, "lgwin": 18,
        "lgblock": 18, "http_version": 1.0 });
    route("br", json!({ "brotli": brotli })).await;
    route("both", json!({ "gzip": {}, "brotli": {} })).await;
    // The body that a rewrite makes is compressed behind it; what is cached is not compressed.
    let cache = json!({ "cache_strategy": "memory", "cache_zone": "memory_cache" });
    route("cached", json!({ "gzip": {}, "proxy-cache": cache })).await;
    for (path, accept, coding, vary) in [
        ("/gzip/html", "gzip", Some("gzip"), true),
        ("/gzip/html", "br, gzip;q=0.1", Some("gzip"), true),
        ("/gzip/html", "br", None, true),
        ("/gzip/html", "gzip;q=0", None, true),
        ("/gzip/html", "", None, true),
        ("/gzip/json", "gzip", Some("gzip"), true),
        ("/gzip/plain", "gzip", None, false),
        ("/gzip/short", "gzip", None, false),
        ("/gzip/coded", "gzip", Some("zstd"), false),
        ("/gzip/kept", "gzip", None, false),
        ("/br/plain", "br", Some("br"), true),
        ("/br/short", "br", None, false),
        ("/br/html", "gzip", None, true),
        ("/both/html", "gzip, br", Some("br"), false),
        ("/both/html", "gzip", Some("gzip"), false),
        ("/cached/html", "gzip", Some("gzip"), false),
        ("/cached/html", "br", None, false),
        ("/cached/html", "gzip", Some("gzip"), false),
    ] {
        let answer = edge.ask("GET", path, &[("accept-encoding", accept)]).await;
        let told = format!("{path} {accept}");
        assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{told}");
        assert_eq!(answer.header("vary").is_some(), vary, "{told}");
        let is_ours = matches!(coding, Some("gzip" | "br"));
        assert_eq!(
            answer.header("etag"),
            Some(if is_ours { "W/\"1\"" } else { "\"1\"" }),
            "{told}"
        );
        let body = read(&answer);
        assert!(body.starts_with("what comes again") && body.ends_with("again "), "{told}");
        assert_eq!(body.len(), if path.ends_with("short") { 27 } else { 54_000 }, "{told}");
        assert!(!is_ours || answer.body.len() < 2000, "{told}: {}", answer.body.len());
    }
    let head = edge.ask("HEAD", "/gzip/html", &[("accept-encoding", "gzip")]).await;
    assert_eq!((head.status, head.header("content-encoding"), head.body.len()), (200, None, 0));
    // An old caller, whom one of the settings lets have it.
    for (path, is_compressed) in [("/gzip/html", false), ("/br/html", true)] {
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: a\r\nAccept-Encoding: gzip, br\r\n\r\n");
        let mut stream =
            tokio::net::TcpStream::connect(edge.ingress.address("ingress")).await.unwrap();
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let head = String::from_utf8_lossy(&answer).to_lowercase();
        assert_eq!(head.contains("content-encoding"), is_compressed, "{path}");
    }
    edge.refuses(
        "gzip",
        &[
            (json!({ "comp_level": 10 }), "comp_level"),
            (json!({ "types": [] }), "types"),
            (json!({ "buffers": { "size": 0 } }), "size"),
        ],
    )
    .await;
    edge.refuses(
        "brotli",
        &[
            (json!({ "comp_level": 12 }), "comp_level"),
            (json!({ "lgwin": 9 }), "lgwin"),
            (json!({ "lgblock": 1 }), "lgblock"),
            (json!({ "mode": 3 }), "mode"),
        ],
    )
    .await;
}
