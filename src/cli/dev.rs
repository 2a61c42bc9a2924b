//! `wardgate dev`: a sidecar and an ingress before an application that runs already, with the Admin API live.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::client::Admin;
use super::command::asked_to_end;
use super::paint::Paint;
use crate::model::Listeners;
use crate::roles::{Embedded, Plan, World, loopback};

/// Put a sidecar and an ingress before an application that runs already
///
/// State is kept: stop it and start it again, and your routes and policies are still there.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  python3 -m http.server 8000 &
  wardgate dev --to http://127.0.0.1:8000")]
pub(super) struct DevArgs {
    /// The application: http://host:port, or grpc://host:port
    #[arg(long, value_name = "URL")]
    to: String,
    /// The ingress' port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 9080)]
    ingress_port: u16,
    /// The Admin API's port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 9180)]
    admin_port: u16,
    /// The sidecar's mTLS port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// The sidecar's port for the application's own calls; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    outbound_port: u16,
    /// The port for status and metrics; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 15020)]
    status_port: u16,
    /// Where state is kept
    #[arg(long, value_name = "DIR", default_value = ".wardgate")]
    state: PathBuf,
}

const DOMAIN: &str = "dev.local";

pub(super) async fn run(args: &DevArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.state)
        .with_context(|| format!("cannot make {}", args.state.display()))?;
    // What is in there is nobody else's business, and not for a repository.
    let ignore = args.state.join(".gitignore");
    if !ignore.exists() {
        std::fs::write(&ignore, "*\n")
            .with_context(|| format!("cannot write {}", ignore.display()))?;
    }
    let world = World {
        trust_domain: DOMAIN.to_owned(),
        state_dir: args.state.clone(),
        keep_authority: true,
        admin_port: args.admin_port,
        status_port: Some(args.status_port),
    };
    let hint = "another port can be chosen: --ingress-port, --admin-port, --inbound-port, --outbound-port, --status-port";
    let mut embedded = Embedded::start(&world).await.context(hint)?;
    let plan = Plan {
        inbound: Some(loopback(args.inbound_port)),
        outbound: Some(loopback(args.outbound_port)),
        app: Some(args.to.clone()),
        ..Plan::default()
    };
    let app = embedded.sidecar("app", &plan).context(hint)?;
    let inbound = app.address(Listeners::Inbound).context("no inbound door")?;
    let outbound = app.address(Listeners::Outbound).context("no outbound door")?;
    let ingress = embedded
        .ingress(&Plan { http: Some(loopback(args.ingress_port)), ..Plan::default() })
        .context(hint)?;
    let ingress = ingress.address(Listeners::Ingress).context("no ingress door")?;

    let key = admin_key(&embedded, &args.state)?;
    let admin_url = format!("http://{}", embedded.control.admin());
    let admin = Admin::new(&admin_url, &key)?;
    declare(&admin, inbound).await?;
    let revision = embedded.control.store().list("/apisix/").await?.revision;
    if !embedded.converged(revision, Duration::from_secs(10)).await {
        bail!("the data planes did not take the configuration within 10 s");
    }
    let reachable = reach(&args.to).await;
    let places = Places { inbound, outbound, ingress, status: embedded.status };
    tell(args, &places, &admin_url, reachable)?;
    asked_to_end().await?;
    embedded.drain(Duration::from_secs(5)).await;
    Ok(ExitCode::SUCCESS)
}

struct Places {
    inbound: SocketAddr,
    outbound: SocketAddr,
    ingress: SocketAddr,
    status: Option<SocketAddr>,
}

/// The admin key: generated at the first start and kept beside the state, readable for its owner alone.
fn admin_key(embedded: &Embedded, state: &Path) -> anyhow::Result<String> {
    let path = state.join("admin.key");
    if let Some(key) = embedded.control.generated_key() {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(file, "{}", key.reveal())?;
        return Ok(key.reveal().clone());
    }
    let key = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}; remove {} to have a new admin key generated",
            path.display(),
            state.join("admin-key.sha256").display()
        )
    })?;
    Ok(key.trim().to_owned())
}

/// What a fresh world needs; what is there already stays as its owner left it, but for the address of our own door.
async fn declare(admin: &Admin, inbound: SocketAddr) -> anyhow::Result<()> {
    let to_app = json!({
        "nodes": { inbound.to_string(): 1 },
        "tls": { "identity": "svid", "spiffe_ids": [format!("spiffe://{DOMAIN}/app")] },
    });
    admin.put("/upstreams/app", &to_app).await?;
    if !admin.has("/routes/app").await? {
        admin.put("/routes/app", &json!({ "uri": "/*", "upstream_id": "app" })).await?;
    }
    if !admin.has("/identity_policies/app").await? {
        let policy = json!({
            "desc": "made by wardgate dev: the ingress may call the application",
            "selector": { "workloads": [format!("spiffe://{DOMAIN}/app")] },
            "action": "allow",
            "rules": [{ "name": "ingress", "from": { "principals": [format!("spiffe://{DOMAIN}/wardgate/ingress")] } }],
        });
        admin.put("/identity_policies/app", &policy).await?;
    }
    Ok(())
}

/// Does the application answer? It may as well be started later.
async fn reach(to: &str) -> bool {
    let Some((_, place)) = to.split_once("://") else { return false };
    let connect = tokio::net::TcpStream::connect(place.trim_end_matches('/').to_owned());
    matches!(tokio::time::timeout(Duration::from_secs(1), connect).await, Ok(Ok(_)))
}

fn tell(args: &DevArgs, places: &Places, admin: &str, reachable: bool) -> anyhow::Result<()> {
    let paint = Paint::stdout();
    let out = &mut std::io::stdout();
    let tick = paint.good("✓");
    let state = args.state.display();
    let Places { inbound, outbound, ingress, status } = places;
    writeln!(out, " {} state in {state}/, Ctrl-C stops it\n", paint.bold("wardgate dev:"))?;
    writeln!(
        out,
        " {tick} ingress    http://{ingress}   ──mTLS──▶  sidecar {inbound}  ──▶  {}",
        args.to
    )?;
    writeln!(out, " {tick} outbound   http://{outbound}   for the application's own calls")?;
    writeln!(
        out,
        " {tick} identity   spiffe://{DOMAIN}/app   policy: only the ingress may call it"
    )?;
    writeln!(out, " {tick} Admin API  {admin}   as Apache APISIX's")?;
    if let Some(status) = status {
        writeln!(out, " {tick} metrics    http://{status}/metrics")?;
    }
    if !reachable {
        writeln!(
            out,
            " {} nobody answers at {} yet; requests get 502 until it does",
            paint.warn("!"),
            args.to
        )?;
    }
    writeln!(out, "\n {}", paint.bold("In another terminal, in this folder:"))?;
    writeln!(
        out,
        "export WARDGATE_ADMIN={admin} WARDGATE_KEY=$(cat {state}/admin.key) WARDGATE_AUDIT={state}/audit.jsonl"
    )?;
    writeln!(out, "curl -i http://{ingress}/")?;
    writeln!(out, "curl -s -H \"X-API-KEY: $WARDGATE_KEY\" $WARDGATE_ADMIN/apisix/admin/routes")?;
    writeln!(
        out,
        "curl -s -H \"X-API-KEY: $WARDGATE_KEY\" -X PUT $WARDGATE_ADMIN/apisix/admin/routes/app -d '{{\"uri\": \"/*\", \"upstream_id\": \"app\", \"plugins\": {{\"request-id\": {{}}}}}}'"
    )?;
    out.flush()?;
    Ok(())
}
