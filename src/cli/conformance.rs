//! `wardgate conformance`: which rules does a proxy hold? This one, or any other.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::conformance::{CASES, Case, Feature, Fixtures, Inbound, Outbound, Report, Row, Seen};
use crate::model::Listeners;
use crate::roles::{Running, Settings, loopback};
use crate::rt::{Sockets, Tasks};

/// Which rules does a proxy hold?
#[derive(Args, Debug)]
pub(super) struct ConformanceArgs {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The rules of the SPIFFE specifications for whoever verifies an X.509-SVID
    Spiffe(SpiffeArgs),
}

/// The rules of the SPIFFE specifications for whoever verifies an X.509-SVID
///
/// Each case is one certificate, presented in a handshake of its own; what the proxy does with it is compared with what the
/// rule expects. Exit code 1 when a rule that the specification calls a MUST is broken.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  wardgate conformance spiffe --self                             a Wardgate sidecar that is started for it
  wardgate conformance spiffe init --dir fixtures                trust bundles, and an SVID for the proxy under test
  wardgate conformance spiffe --dir fixtures --target 127.0.0.1:15006
  wardgate conformance spiffe --dir fixtures --target 127.0.0.1:15006 --outbound 127.0.0.1:15001 --listen 127.0.0.1:9443

How to configure the proxy is in docs/conformance-runner.md.")]
struct SpiffeArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The proxy's inbound listener, which asks for certificates
    #[arg(long, value_name = "HOST:PORT", required_unless_present_any = ["own", "outbound"])]
    target: Option<String>,
    /// Start a Wardgate sidecar in this process and run against it
    #[arg(long = "self", conflicts_with_all = ["target", "outbound", "listen", "dir"])]
    own: bool,
    /// The fixtures that `init` made
    #[arg(long, value_name = "DIR", default_value = "conformance")]
    dir: PathBuf,
    /// The path of the requests
    #[arg(long, value_name = "PATH", default_value = "/")]
    http_path: String,
    /// The Host of the requests
    #[arg(long, value_name = "NAME", default_value = "conformance.test")]
    http_host: String,
    /// The server name to send in inbound handshakes; none when not given
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The proxy's outbound listener, which takes plain HTTP and connects to --listen
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    outbound: Option<String>,
    /// Where the runner's server listens, as spiffe://conformance.test/server
    #[arg(long, value_name = "ADDRESS:PORT", requires = "outbound")]
    listen: Option<SocketAddr>,
    /// The proxy has the revocation lists of the fixtures: run the cases about them as well
    #[arg(long)]
    revocation: bool,
    /// Only these rules, as 23 or 23a; may be given several times
    #[arg(long, value_name = "RULE")]
    only: Vec<String>,
    /// Seconds that one case may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    patience: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write the fixtures: trust bundles in each form, revocation lists, an SVID for the proxy, settings for Wardgate
    Init {
        /// Where they go; made when missing, never overwritten
        #[arg(long, value_name = "DIR", default_value = "conformance")]
        dir: PathBuf,
    },
}

/// Does what the arguments say.
///
/// # Errors
/// Fixtures cannot be read or written, or the proxy does not even take a good certificate.
pub(super) async fn run(args: &ConformanceArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Suite::Spiffe(args) = &args.suite;
    match &args.verb {
        Some(Verb::Init { dir }) => init(dir, out),
        None if args.own => Box::pin(against_ourselves(args, out)).await,
        None => {
            let fixtures = Fixtures::open(&args.dir)
                .context("no usable fixtures; `wardgate conformance spiffe init` makes them")?;
            let inbound = match &args.target {
                Some(target) => Some(args.inbound(resolve(target).await?)?),
                None => None,
            };
            let outbound = match (&args.outbound, args.listen) {
                (Some(proxy), Some(listen)) => {
                    let proxy = resolve(proxy).await?;
                    Some(args.server(listen).await?.through(proxy))
                }
                _ => None,
            };
            let report = args.report(&fixtures, inbound.as_ref(), outbound.as_ref()).await?;
            args.tell(&report, out)
        }
    }
}

async fn resolve(place: &str) -> anyhow::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(place)
        .await
        .with_context(|| format!("{place:?}: expected host:port"))?;
    found.next().with_context(|| format!("{place} has no address"))
}

impl SpiffeArgs {
    fn inbound(&self, target: SocketAddr) -> anyhow::Result<Inbound> {
        let server_name = match &self.server_name {
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .with_context(|| format!("--server-name {name:?}: expected a DNS name"))?,
            ),
            None => None,
        };
        Ok(Inbound {
            target,
            path: self.http_path.clone(),
            host: self.http_host.clone(),
            server_name,
            patience: Duration::from_secs(self.patience),
        })
    }

    async fn server(&self, listen: SocketAddr) -> anyhow::Result<Outbound> {
        let patience = Duration::from_secs(self.patience);
        let (path, host) = (self.http_path.clone(), self.http_host.clone());
        Ok(Outbound::listen(listen, path, host, patience).await?)
    }

    /// Is this case wanted, and can the proxy know about it?
    fn wants(&self, case: &Case) -> bool {
        let asked = |only: &String| *only == case.id || *only == case.rule.to_string();
        (self.only.is_empty() || self.only.iter().any(asked))
            && (case.needs != Feature::Revocation || self.revocation)
    }

    async fn report(
        &self,
        fixtures: &Fixtures,
        inbound: Option<&Inbound>,
        outbound: Option<&Outbound>,
    ) -> anyhow::Result<Report> {
        if !CASES.iter().any(|case| self.wants(case)) {
            bail!("--only {}: there is no such case", self.only.join(" "));
        }
        let mut report = Report::default();
        if let Some(inbound) = inbound {
            inbound.baseline(fixtures).await?;
            for case in CASES.iter().filter(|case| case.is_inbound() && self.wants(case)) {
                report.rows.push(progress(inbound.try_case(case, fixtures).await?));
            }
        }
        if let Some(outbound) = outbound {
            outbound.baseline(fixtures).await?;
            for case in CASES.iter().filter(|case| case.is_outbound() && self.wants(case)) {
                report.rows.push(progress(outbound.try_case(case, fixtures).await?));
            }
        }
        Ok(report)
    }

    fn tell(&self, report: &Report, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        if self.json {
            writeln!(out, "{:#}", report.json())?;
        } else {
            write!(out, "{}", report.text())?;
        }
        Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// One line a case for whoever waits, away from the report.
fn progress(row: Row) -> Row {
    let mut err = std::io::stderr().lock();
    let mark = match row.seen {
        Seen::Accepted(_) => "accepted",
        Seen::Refused(_) => "refused",
        Seen::Unclear(_) => "unclear",
    };
    // Nobody may be reading it.
    let _ = writeln!(err, "{} {} {}: {mark}", row.side, row.case.id, row.case.what);
    row
}

fn init(dir: &Path, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let fixtures = Fixtures::create(dir)?;
    let place = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let sidecar = Sidecar {
        fixtures: &place,
        inbound: loopback(15006),
        outbound: loopback(15001),
        app: "http://127.0.0.1:8080",
        server: loopback(9443),
    };
    sidecar.write(fixtures.folder())?;
    let dir = dir.display();
    writeln!(out, "Fixtures in {dir}, usable for 90 days. Give the proxy under test:")?;
    writeln!(
        out,
        "  its SVID         {dir}/target/svid.pem and key.pem (spiffe://conformance.test/target)"
    )?;
    writeln!(
        out,
        "  bundles          {dir}/conformance.test.pem  federated.test.pem  192.0.2.7.pem  (or .json, or bundle-map.json)"
    )?;
    writeln!(
        out,
        "  revocation       {dir}/conformance.test-crl.pem, if it reads lists; then run with --revocation"
    )?;
    writeln!(out, "  who may call     everybody of the three trust domains")?;
    writeln!(
        out,
        "  outbound         Host conformance.test to the runner's --listen, which must be spiffe://conformance.test/server"
    )?;
    writeln!(out, "For Wardgate that is: wardgate run -c {dir}/wardgate.yaml")?;
    writeln!(out, "Then: wardgate conformance spiffe --dir {dir} --target HOST:PORT")?;
    Ok(ExitCode::SUCCESS)
}

/// A Wardgate sidecar, configured from the fixtures as any proxy is.
struct Sidecar<'a> {
    fixtures: &'a Path,
    inbound: SocketAddr,
    outbound: SocketAddr,
    app: &'a str,
    /// The runner's server.
    server: SocketAddr,
}

impl Sidecar<'_> {
    /// Writes `wardgate.yaml` and `wardgate-resources.yaml`; the path of the first.
    fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join("wardgate.yaml");
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(&path, self.settings())?;
        write(&folder.join("wardgate-resources.yaml"), self.resources())?;
        Ok(path)
    }

    fn settings(&self) -> String {
        let dir = self.fixtures.display();
        let Self { inbound, outbound, app, .. } = self;
        format!(
            "\
role: sidecar
trust_domain: conformance.test
state_dir: {dir}/state
identity:
  source: files
  certificate: {dir}/target/svid.pem
  key: {dir}/target/key.pem
  bundle: {dir}/conformance.test.pem
  further_bundles:
    federated.test: {dir}/federated.test.pem
    192.0.2.7: {dir}/192.0.2.7.pem
sidecar:
  inbound: {inbound}
  outbound: {outbound}
  app: {app}
resources: {dir}/wardgate-resources.yaml
workers: 1
drain_seconds: 2
"
        )
    }

    fn resources(&self) -> String {
        let server = self.server;
        format!(
            "\
identity_policies:
  - id: everybody
    selector: {{ workloads: [\"spiffe://conformance.test/target\"] }}
    action: allow
    rules:
      - name: all
        from:
          principals: [\"spiffe://conformance.test/**\", \"spiffe://federated.test/**\", \"spiffe://192.0.2.7/**\"]
routes:
  - id: server
    uri: /*
    workload_selector: {{ listener: outbound }}
    upstream:
      nodes: {{ \"{server}\": 1 }}
      retries: 0
      tls: {{ identity: svid, spiffe_ids: [\"spiffe://conformance.test/server\"] }}
#END
"
        )
    }
}

/// A folder that is gone afterwards.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fixtures, an application and a sidecar, all in this process; then the same run as against any proxy.
async fn against_ourselves(args: &SpiffeArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let name = format!("wardgate-conformance-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let scratch = Scratch(std::env::temp_dir().join(name));
    let fixtures = Fixtures::create(&scratch.0)?;
    let (_app, app) = application().await?;
    let server = args.server(loopback(0)).await?;
    let sidecar = Sidecar {
        fixtures: &scratch.0,
        inbound: loopback(0),
        outbound: loopback(0),
        app: &format!("http://{app}"),
        server: server.address()?,
    };
    let settings = Settings::read(&sidecar.write(&scratch.0)?)?;
    let running = Box::pin(Running::start(&settings, None, Sockets::new())).await?;
    running.readiness().ready().await;
    let door = |wanted: Listeners| {
        let found = running.doors.iter().find(|(door, _)| *door == wanted);
        found.map(|(_, address)| *address).with_context(|| format!("no door {wanted:?}"))
    };
    let inbound = args.inbound(door(Listeners::Inbound)?)?;
    let outbound = server.through(door(Listeners::Outbound)?);
    let report = args.report(&fixtures, Some(&inbound), Some(&outbound)).await;
    Box::pin(running.drain()).await;
    args.tell(&report?, out)
}

/// An application that answers 200 to everything.
async fn application() -> anyhow::Result<(Tasks, SocketAddr)> {
    let listener = TcpListener::bind(loopback(0)).await.context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let mut tasks = Tasks::new();
    tasks.add(async move {
        let mut connections = Tasks::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            connections.add(async move {
                // One request a connection: its head is enough.
                let _ = tcp.read(&mut [0; 8192]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                let _ = tcp.write_all(answer).await;
                let _ = tcp.shutdown().await;
            });
        }
    });
    Ok((tasks, address))
}
