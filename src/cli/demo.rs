//! `wardgate demo`: everything in one process, one allowed call and two refused ones, with what can be proved about each.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Admin, Answer, send};
use super::command::asked_to_end;
use super::paint::Paint;
use crate::identity::{Identity, TrustBundles};
use crate::model::Listeners;
use crate::mtls::{Alpn, Connector, ExpectedPeers, refusal};
use crate::observe::find_denial;
use crate::roles::{Authority, Embedded, Plan, World, loopback};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::{Clock, Live, Tasks};

/// See it work, in one process and without anything installed
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// End when the calls are over; exit code 0 only when every outcome was as expected
    #[arg(long)]
    exit: bool,
}

const DOMAIN: &str = "demo.local";

/// State of the demo: gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!("wardgate-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The demo's world.
struct Demo {
    embedded: Embedded,
    key: String,
    audit: PathBuf,
    shop: SocketAddr,
    billing: SocketAddr,
    ingress: SocketAddr,
    shop_identity: Live<Identity>,
    paint: Paint,
    _apps: Tasks,
}

pub(super) async fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new()?;
    let started = Instant::now();
    let demo = Box::pin(Demo::start(&scratch)).await?;
    let expected = demo.tell(started).await?;
    if !args.exit {
        demo.invite()?;
        asked_to_end().await?;
    }
    demo.embedded.drain(Duration::from_secs(2)).await;
    drop(scratch);
    Ok(if expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Demo {
    async fn start(scratch: &Scratch) -> anyhow::Result<Self> {
        let world = World {
            trust_domain: DOMAIN.to_owned(),
            state_dir: scratch.0.clone(),
            keep_authority: false,
            admin_port: 0,
            status_port: None,
        };
        let mut embedded = Embedded::start(&world).await?;
        let mut apps = Tasks::new();
        let invoices = serve_invoices(&mut apps).await?;
        let free = Some(loopback(0));

        let plan = Plan {
            inbound: free,
            outbound: free,
            app: Some(format!("http://{invoices}")),
            ..Plan::default()
        };
        let billing = embedded.sidecar("billing", &plan)?;
        let billing = billing.address(Listeners::Inbound).context("billing has no inbound door")?;
        let plan = Plan { inbound: free, outbound: free, ..Plan::default() };
        let shop = embedded.sidecar("shop", &plan)?;
        let shop = shop.address(Listeners::Outbound).context("shop has no outbound door")?;
        let ingress = embedded.ingress(&Plan { http: free, ..Plan::default() })?;
        let ingress = ingress.address(Listeners::Ingress).context("the ingress has no door")?;

        let key = embedded.control.generated_key().context("no admin key was generated")?;
        let key = key.reveal().clone();
        let admin = Admin::new(&format!("http://{}", embedded.control.admin()), &key)?;
        declare(&admin, billing).await?;
        let listing = embedded.control.store().list("/apisix/").await?;
        if !embedded.converged(listing.revision, Duration::from_secs(5)).await {
            bail!("the data planes did not take the configuration within 5 s");
        }
        let id = embedded.workload_id("shop")?;
        let shop_identity = embedded.identity(id)?;
        let audit = scratch.0.join("audit.jsonl");
        Ok(Self {
            embedded,

            key,
            audit,
            shop,
            billing,
            ingress,
            shop_identity,
            paint: Paint::stdout(),
            _apps: apps,
        })
    }

    /// Makes the three calls and tells of them; `true` when all went as they should.
    async fn tell(&self, started: Instant) -> anyhow::Result<bool> {
        let paint = self.paint;
        let out = &mut std::io::stdout();
        let version = env!("CARGO_PKG_VERSION");
        let tick = paint.good("✓");
        let root = fingerprint(&self.embedded.authority);
        writeln!(
            out,
            " {} everything runs in this process, nothing is kept. Ctrl-C stops it.\n",
            paint.bold(&format!("wardgate {version} demo:"))
        )?;
        writeln!(out, " {tick} trust domain   {DOMAIN}   root {root} (this session only)")?;
        writeln!(
            out,
            " {tick} identities     shop  billing  ingress   X.509-SVID, ECDSA P-256, 1 h, renewed at half of it"
        )?;
        writeln!(
            out,
            " {tick} policy         billing-read: \"shop and ingress may GET /invoices/{{id}} of billing\"   default: deny"
        )?;
        writeln!(out, " {tick} ready          in {:.0} ms\n", millis(started))?;

        let allowed = self.allowed(out).await?;
        let denied = self.denied(out).await?;
        let refused = self.refused(out).await?;
        let expected = allowed && denied && refused;
        let total = format!("{:.0} ms from start to here", millis(started));
        let verdict = match expected {
            true => paint.good("all three outcomes as expected"),
            false => paint.bad("NOT every outcome was as expected"),
        };
        writeln!(out, " {verdict}, {total}")?;
        out.flush()?;
        Ok(expected)
    }

    async fn call(&self, method: &str) -> anyhow::Result<(Answer, f64)> {
        let started = Instant::now();
        let shop = self.shop.to_string();
        let answer = send(&shop, "billing", method, "/invoices/7", &[], None).await?;
        Ok((answer, millis(started)))
    }

    async fn allowed(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let (answer, first) = self.call("GET").await?;
        let (_, again) = self.call("GET").await?;
        let expected = answer.status == 200;
        let record = self.record("/outcome", "allow").await?;
        let facts = self.handshake_facts().await?;
        writeln!(
            out,
            " 1 {}   shop ──mTLS──▶ billing   GET /invoices/7",
            self.mark(expected, "ALLOWED")
        )?;
        writeln!(
            out,
            "     {} in {first:.1} ms (the first, with its handshake), {again:.1} ms (the next)   {facts}",
            answer.status
        )?;
        writeln!(
            out,
            "     peer  {}   serial {}",
            text(&record, "/src/spiffe_id"),
            short(&text(&record, "/src/cert/serial"))
        )?;
        writeln!(
            out,
            "     rule  {}/{}   revision {}\n",
            text(&record, "/policy_id"),
            text(&record, "/rule"),
            text(&record, "/policy_revision")
        )?;
        Ok(expected)
    }

    async fn denied(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let (answer, took) = self.call("DELETE").await?;
        let id = answer.header("x-wardgate-denial").unwrap_or_default().to_owned();
        let expected = answer.status == 403 && !id.is_empty();
        let record = self.denial(&id).await?;
        writeln!(
            out,
            " 2 {}    shop ──mTLS──▶ billing   DELETE /invoices/7",
            self.mark(expected, "DENIED")
        )?;
        writeln!(
            out,
            "     {} in {took:.1} ms   denial {id}   reason {}: no rule allows DELETE for {}",
            answer.status,
            text(&record, "/reason"),
            text(&record, "/src/spiffe_id")
        )?;
        writeln!(
            out,
            "     nearest rule  {}/{} (fails on: {})\n",
            text(&record, "/nearest/policy_id"),
            text(&record, "/nearest/rule"),
            text(&record, "/nearest/clause")
        )?;
        Ok(expected)
    }

    /// An intruder has an SVID in shop's name, from an authority of its own.
    async fn refused(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let domain = DOMAIN.parse().context("a valid trust domain")?;
        let rogue = Authority::in_memory(domain, Clock::system())?;
        let id = self.embedded.workload_id("shop")?;
        let svid = rogue.issue(&id, Duration::from_secs(3600), &[])?;
        let bundles: TrustBundles = [self.embedded.authority.bundle()].into_iter().collect();
        let intruder = Connector::new(Live::fixed(Identity::new(svid, bundles)));
        let started = Instant::now();
        let error = self.knock(&intruder).await.err();
        let took = millis(started);
        let expected = error.is_some();
        let record = self.record("/type", "handshake_refused").await?;
        writeln!(
            out,
            " 3 {}   intruder ──mTLS──▶ billing   an SVID in shop's name, signed by the intruder's own root",
            self.mark(expected, "REFUSED")
        )?;
        writeln!(
            out,
            "     at the handshake, in {took:.1} ms   reason {}   presented {}",
            text(&record, "/reason"),
            text(&record, "/src/presented_id")
        )?;
        let seen = error.unwrap_or_else(|| "nothing: it came in".to_owned());
        writeln!(out, "     the intruder sees: {seen}\n")?;
        Ok(expected)
    }

    /// Tries to get an answer from billing's door as whoever `as_whom` is.
    async fn knock(&self, as_whom: &Connector) -> Result<(), String> {
        let expected = self.embedded.workload_id("billing").map_err(|error| error.to_string())?;
        let expected = Arc::new(ExpectedPeers::exactly(&expected));
        let tcp = TcpStream::connect(self.billing).await.map_err(|error| error.to_string())?;
        let connected = as_whom.connect(tcp, &expected, Alpn::Http1).await;
        let (mut stream, _) = connected.map_err(|error| error.to_string())?;
        let seen = |error: std::io::Error| {
            refusal(&error).map_or_else(|| error.to_string(), |refusal| refusal.to_string())
        };
        stream
            .write_all(b"GET /invoices/7 HTTP/1.1\r\nhost: billing\r\n\r\n")
            .await
            .map_err(seen)?;
        let mut first = [0; 16];
        match stream.read(&mut first).await {
            Ok(0) => Err("the connection was closed".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(seen(error)),
        }
    }

    /// What a handshake between shop and billing agrees on.
    async fn handshake_facts(&self) -> anyhow::Result<String> {
        let connector = Connector::new(self.shop_identity.clone());
        let expected = Arc::new(ExpectedPeers::exactly(&self.embedded.workload_id("billing")?));
        let tcp = TcpStream::connect(self.billing).await?;
        let (stream, _) = connector.connect(tcp, &expected, Alpn::Http1).await?;
        let settled = stream.settled();
        let facts = [Some("TLSv1_3"), settled.suite, settled.group];
        Ok(facts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    fn mark(&self, expected: bool, word: &str) -> String {
        if expected { self.paint.good(word) } else { self.paint.bad(&format!("NOT {word}")) }
    }

    /// The newest record whose field at `pointer` is `value`; it is written within moments.
    async fn record(&self, pointer: &str, value: &str) -> anyhow::Result<Value> {
        for _ in 0..200 {
            let text = std::fs::read_to_string(&self.audit).unwrap_or_default();
            let records =
                text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut fitting = records
                .filter(|record| record.pointer(pointer).is_some_and(|found| found == value));
            if let Some(record) = fitting.next() {
                return Ok(record);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the decision log has no record with {pointer} = {value}")
    }

    async fn denial(&self, id: &str) -> anyhow::Result<Value> {
        for _ in 0..200 {
            if let Some(record) = find_denial(&self.audit, id)? {
                return Ok(record);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the decision log has no denial {id:?}")
    }

    fn invite(&self) -> anyhow::Result<()> {
        let out = &mut std::io::stdout();
        let admin = self.embedded.control.admin();
        let (key, audit) = (&self.key, self.audit.display());
        writeln!(out, "\n {}", self.paint.bold("Try, in another terminal:"))?;
        writeln!(
            out,
            "   export WARDGATE_ADMIN=http://{admin} WARDGATE_KEY={key} WARDGATE_AUDIT={audit}"
        )?;
        writeln!(
            out,
            "   curl -si http://{}/invoices/7            # through the ingress: allowed",
            self.ingress
        )?;
        writeln!(
            out,
            "   curl -si -X DELETE http://{}/invoices/7  # refused, with a denial id",
            self.ingress
        )?;
        writeln!(
            out,
            "   curl -s -H \"X-API-KEY: $WARDGATE_KEY\" $WARDGATE_ADMIN/apisix/admin/identity_policies"
        )?;
        writeln!(
            out,
            "   wardgate explain denial d-…              # why, and what would allow it"
        )?;
        writeln!(out, "   wardgate audit verify                    # nobody has changed the log")?;
        writeln!(out, " {}", self.paint.faint("Ctrl-C ends the demo and removes what it made."))?;
        out.flush()?;
        Ok(())
    }
}

/// Declares the demo's world through the Admin API, as an operator would.
async fn declare(admin: &Admin, billing: SocketAddr) -> anyhow::Result<()> {
    let to_billing = json!({
        "nodes": { billing.to_string(): 1 },
        "tls": { "identity": "svid", "spiffe_ids": [format!("spiffe://{DOMAIN}/billing")] },
    });
    admin.put("/upstreams/billing", &to_billing).await?;
    let outbound = json!({
        "uri": "/*", "host": "billing", "upstream_id": "billing",
        "workload_selector": { "listener": "outbound", "spiffe_ids": [format!("spiffe://{DOMAIN}/shop")] },
    });
    admin.put("/routes/shop-to-billing", &outbound).await?;
    admin
        .put("/routes/public-invoices", &json!({ "uri": "/invoices/*", "upstream_id": "billing" }))
        .await?;
    let policy = json!({
        "selector": { "workloads": [format!("spiffe://{DOMAIN}/billing")] },
        "action": "allow",
        "rules": [{
            "name": "read",
            "from": { "principals": [format!("spiffe://{DOMAIN}/shop"), format!("spiffe://{DOMAIN}/wardgate/ingress")] },
            "to": { "methods": ["GET"], "paths": ["/invoices/{id}"] },
        }],
    });
    admin.put("/identity_policies/billing-read", &policy).await?;
    Ok(())
}

/// The workload behind billing's sidecar: plain HTTP, no idea of identities.
async fn serve_invoices(tasks: &mut Tasks) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(loopback(0)).await?;
    let address = listener.local_addr()?;
    tasks.add(async move {
        let mut connections = Tasks::new();
        while let Ok((tcp, _)) = listener.accept().await {
            connections.add(async move {
                let service =
                    service_fn(|request| async move { Ok::<_, Infallible>(invoice(&request)) });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
    Ok(address)
}

fn invoice(request: &http::Request<Incoming>) -> http::Response<Full<Bytes>> {
    let number = request.uri().path().rsplit('/').next().unwrap_or_default();
    let caller = request.headers().get("x-forwarded-client-cert");
    let caller = caller.and_then(|value| value.to_str().ok()).unwrap_or("nobody");
    let body = json!({ "invoice": number, "total": "42.00 EUR", "asked_by": caller });
    let mut response = http::Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn text(record: &Value, pointer: &str) -> String {
    super::text::field(record, pointer).unwrap_or_else(|| "-".to_owned())
}

fn short(serial: &str) -> String {
    let head: String = serial.chars().take(8).collect();
    if serial.len() > 8 { format!("{head}…") } else { head }
}

/// The first and last bytes of the root's SHA-256.
fn fingerprint(authority: &Authority) -> String {
    let bundle = authority.bundle();
    let Some(root) = bundle.roots.first() else { return "-".to_owned() };
    let digest = digest(&SHA256, root);
    let hex = hex::encode(digest.as_ref());
    format!("{}:{}…{}", &hex[..2], &hex[2..4], &hex[hex.len() - 2..])
}
