//! Looks at a process' settings and surroundings without starting it: what `wardgate check` reports.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::data_plane::stand_ins_aside;
use super::error::Error;
use super::feed::FeedConnect;
use super::feeding::policy_keys;
use super::process::{enrolled_file, identity_source, last_good, standalone};
use super::settings::{IdentitySettings, Role, Settings};
use crate::identity::{Identity, IdentitySource, SpiffeId};
use crate::issuer::EnrolSource;
use crate::model::{Body, Change, Kind, Rejected, Ssl, SslType, Strictness};
use crate::observe::Registry;
use crate::policy::Modes;
use crate::rt::{Clock, Live, causes, unix_seconds};
use crate::secrets::{SecretSettings, doubts};
use crate::snapshot::Keeper;
use crate::sync::last_good::Pen;
use crate::sync::subscriber::Connect as _;
use crate::sync::{Batch, Feed as _};

/// How a look at something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// In order.
    Good,
    /// Works, and should be looked at.
    Warning,
    /// Does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    /// `settings`, `identity`, `feed`, `policy`, `certificates` or, of a running process, `trust`.
    pub section: &'static str,
    /// How it went.
    pub grade: Grade,
    /// What was found.
    pub text: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Seconds of validity below which a public certificate is worth a warning.
const SOON: i64 = 14 * 24 * 3600;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        section: &'static str,
        grade: Grade,
        text: impl Into<String>,
        fix: Option<&str>,
    ) {
        self.0.push(Finding { section, grade, text: text.into(), fix: fix.map(str::to_owned) });
    }

    fn good(&mut self, section: &'static str, text: impl Into<String>) {
        self.add(section, Grade::Good, text, None);
    }
}

/// Looks at everything that the roles of these settings rest on.
pub async fn inspect(settings: &Settings, asked: Option<Role>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let roles = match settings.roles(asked) {
        Ok(roles) => roles,
        Err(error) => {
            findings.add("settings", Grade::Problem, error.to_string(), None);
            return findings.0;
        }
    };
    let names: Vec<String> = roles.iter().map(ToString::to_string).collect();
    findings.good(
        "settings",
        format!("role {}, trust domain {}", names.join(" and "), settings.trust_domain),
    );
    look_at_state(settings, &mut findings);
    look_at_edge(settings, &roles, &mut findings);
    let carries = roles.iter().any(|role| matches!(role, Role::Sidecar | Role::Ingress));
    let source = look_at_identity(settings, &roles, &mut findings).await;
    if carries {
        let identity = source.as_ref().map(|source| source.identity());
        let batch = look_at_feed(settings, &roles, identity.as_ref(), &mut findings).await;
        let ports = mesh_ports(settings, &roles);
        let me = identity.map(|identity| identity.load().id().clone());
        let keeper = Keeper::new(crate::plugins::ALL, me, Registry::new());
        let mut keeper = keeper.with_router(settings.router).trusting_references();
        match settings.cache_zones() {
            Ok(zones) => keeper = keeper.with_cache_zones(zones),
            Err(error) => findings.add("settings", Grade::Problem, error.to_string(), None),
        }
        match policy_keys(settings) {
            Ok(keys) => keeper = keeper.with_policy_keys(keys),
            Err(error) => findings.add("policy", Grade::Problem, error.to_string(), None),
        }
        let told = (keeper, &settings.secrets);
        look_at_configuration(batch, &roles, told, &ports, &mut findings);
    }
    findings.0
}

fn look_at_edge(settings: &Settings, roles: &[Role], findings: &mut Findings) {
    let Some(ingress) = settings.ingress.as_ref().filter(|_| roles.contains(&Role::Ingress)) else {
        return;
    };
    let doors = (ingress.http.is_some(), ingress.https.is_some());
    let acme = ingress.acme.as_ref().map_or(Ok(()), |acme| acme.check(doors.0, doors.1));
    let problems = [
        ingress.edge().err().map(|error| error.to_string()),
        acme.err().map(|error| format!("setting ingress.acme: {error}")),
    ];
    for problem in problems.into_iter().flatten() {
        findings.add("settings", Grade::Problem, problem, None);
    }
}

fn look_at_state(settings: &Settings, findings: &mut Findings) {
    let dir = &settings.state_dir;
    let probe = dir.join(format!(".check-{}", std::process::id()));
    match std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&probe, b"")) {
        Ok(()) => {
            let _ = std::fs::remove_file(&probe);
            findings.good("settings", format!("state is kept in {}", dir.display()));
        }
        Err(error) => findings.add(
            "settings",
            Grade::Problem,
            format!("state cannot be kept in {}: {error}", dir.display()),
            Some("set state_dir to a folder that this user may write"),
        ),
    }
}

/// The identity that the first of the roles got when it enrolled. To enrol here would use up its token.
fn enrolled(settings: &Settings, roles: &[Role]) -> Result<Option<Box<dyn IdentitySource>>, Error> {
    let domain = settings.trust_domain()?;
    for role in roles.iter().filter(|role| **role != Role::Issuer) {
        let state = enrolled_file(settings, &role.to_string());
        if let Some(source) = EnrolSource::kept(&state, &domain, &Clock::system())? {
            return Ok(Some(Box::new(source)));
        }
    }
    Ok(None)
}

async fn look_at_identity(
    settings: &Settings,
    roles: &[Role],
    findings: &mut Findings,
) -> Option<Box<dyn IdentitySource>> {
    if let Some(IdentitySettings::Issuer { .. }) = &settings.identity {
        findings.good("identity", "comes from the issuer in the same process");
        return None;
    }
    if settings.identity.is_none()
        && !roles.contains(&Role::Sidecar)
        && !roles.contains(&Role::Control)
    {
        findings.good("identity", "none is needed");
        return None;
    }
    let asked = Instant::now();
    let found = match &settings.identity {
        Some(IdentitySettings::Enrol(enrol)) => match enrolled(settings, roles) {
            Ok(Some(source)) => Ok(source),
            Ok(None) => {
                let text = format!("not enrolled yet with the issuer at {}", enrol.issuer);
                findings.good("identity", text);
                return None;
            }
            Err(error) => Err(error),
        },
        _ => identity_source(settings, "check", None).await,
    };
    match found {
        Ok(source) => {
            let identity = source.identity().load();
            let left = identity.svid.not_after - unix_seconds();
            let life = (identity.svid.not_after - identity.svid.not_before).max(1);
            let text = format!(
                "{} serial {} ends in {}, found in {} ms",
                identity.id(),
                identity.svid.serial,
                span(left),
                asked.elapsed().as_millis()
            );
            // Renewal comes at half of the life: one that is older than two thirds was not renewed.
            if left * 3 < life {
                let fix =
                    "it is older than two thirds of its life: see why its source does not renew it";
                findings.add("identity", Grade::Warning, text, Some(fix));
            } else {
                findings.good("identity", text);
            }
            for bundle in identity.trust.bundles.iter() {
                findings.good(
                    "identity",
                    format!("trust domain {}: {} roots", bundle.domain, bundle.roots.len()),
                );
            }
            Some(source)
        }
        Err(error) => {
            let fix = "check identity in the settings, and that its source answers this user";
            findings.add("identity", Grade::Problem, causes(&error), Some(fix));
            None
        }
    }
}

/// Does the control plane at `place` answer, and is it the one that is expected?
async fn look_at_place(
    place: &String,
    identity: &Live<Identity>,
    expected: &SpiffeId,
    findings: &mut Findings,
) {
    let asked = Instant::now();
    let connect = FeedConnect::new(std::slice::from_ref(place), identity.clone(), expected);
    match tokio::time::timeout(Duration::from_secs(5), connect.connect()).await {
        Ok(Ok(_)) => {
            let took = asked.elapsed().as_millis();
            findings.good("feed", format!("{place} is {expected}, mTLS in {took} ms"));
        }
        Ok(Err(error)) => {
            let fix = "the last good configuration stays in force; see that the control plane runs and is the one expected";
            findings.add("feed", Grade::Problem, format!("{place}: {error}"), Some(fix));
        }
        Err(_) => {
            findings.add("feed", Grade::Problem, format!("{place}: no answer in 5 s"), None);
        }
    }
}

async fn look_at_feed(
    settings: &Settings,
    roles: &[Role],
    identity: Option<&Live<Identity>>,
    findings: &mut Findings,
) -> Option<Batch> {
    if let Some(path) = &settings.resources {
        return match standalone(path) {
            Ok(mut feed) => {
                let batch = feed.next().await;
                findings
                    .good("feed", format!("{}: {} resources", path.display(), batch.changes.len()));
                Some(batch)
            }
            Err(error) => {
                findings.add(
                    "feed",
                    Grade::Problem,
                    causes(&error),
                    Some("correct the file that resources names"),
                );
                None
            }
        };
    }
    let Some(control) = &settings.control_plane else {
        let fix = "set control_plane.address, or resources to a file";
        findings.add("feed", Grade::Problem, "no source of configuration", Some(fix));
        return None;
    };
    match (
        identity,
        control
            .spiffe_id
            .as_deref()
            .map_or_else(|| settings.own_id("control").ok(), |id| id.parse().ok()),
    ) {
        (Some(identity), Some(expected)) => {
            for place in control.places().unwrap_or_default() {
                look_at_place(place, identity, &expected, findings).await;
            }
        }
        (None, _) => findings.add(
            "feed",
            Grade::Warning,
            "not tried: there is no identity to show there",
            None,
        ),
        (_, None) => {
            findings.add("feed", Grade::Problem, "control_plane.spiffe_id is no SPIFFE ID", None);
        }
    }
    let part = if roles.contains(&Role::Ingress) { "ingress" } else { "sidecar" };
    let (place, saved) = last_good(settings, part, &Pen::default())?;
    if let Some(damage) = place.damage() {
        findings.add("feed", Grade::Problem, damage.to_string(), None);
    }
    match saved {
        Some(saved) => {
            let age = unix_seconds() - saved.saved_at;
            findings.good(
                "feed",
                format!("last good copy: revision {}, {} old", saved.revision, span(age)),
            );
            Some(saved.batch())
        }
        None => {
            findings.add(
                "feed",
                Grade::Warning,
                "no last good copy yet: a start without control plane would refuse everything",
                None,
            );
            None
        }
    }
}

fn look_at_configuration(
    batch: Option<Batch>,
    roles: &[Role],
    (mut keeper, secrets): (Keeper, &SecretSettings),
    mesh_ports: &[u16],
    findings: &mut Findings,
) {
    let Some(batch) = batch else { return };
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for change in &batch.changes {
        if let Change::Put(resource) = change {
            *counts.entry(resource.kind).or_default() += 1;
            if let Body::Ssl(ssl) = &resource.body
                && ssl.references().is_empty()
            {
                look_at_certificate(resource.id.as_str(), ssl, findings);
            }
        }
    }
    for Rejected { kind, id, reason, .. } in doubts(&batch.changes, secrets) {
        let fix = "declare the secret manager, or allow the variable by the setting secrets.environment; until then what bears the reference refuses";
        findings.add("policy", Grade::Problem, format!("{kind} {id}: {reason}"), Some(fix));
    }
    let stand_ins = keeper.stand_ins(&batch.unreadable);
    let changes = batch.changes.into_iter().chain(stand_ins).collect();
    let mut applied = keeper.apply(changes, batch.revision);
    stand_ins_aside(&mut applied.rejected, &batch.unreadable);
    for rejected in applied.rejected.iter().chain(&batch.unreadable) {
        let area = if rejected.kind == Kind::Ssls { "certificates" } else { "policy" };
        findings.add(
            area,
            Grade::Problem,
            format!("{} {}: {}", rejected.kind, rejected.id, rejected.reason),
            Some("correct the resource; until then its previous version holds, and without one it refuses"),
        );
    }
    look_at_modes(&applied.snapshot.modes, mesh_ports, findings);
    let rules = applied.snapshot.policy.rule_count();
    let policies = counts.get(&Kind::IdentityPolicies).copied().unwrap_or_default();
    let routes = counts.get(&Kind::Routes).copied().unwrap_or_default();
    if roles.contains(&Role::Sidecar) && rules == 0 {
        let fix = "write an identity policy that selects this workload and allows someone";
        findings.add(
            "policy",
            Grade::Warning,
            "no rule selects this workload: every peer is refused",
            Some(fix),
        );
    } else {
        findings.good(
            "policy",
            format!("{policies} policies, {rules} rules for this workload, {routes} routes"),
        );
    }
}

/// The ports at which callers prove who they are, or may.
fn mesh_ports(settings: &Settings, roles: &[Role]) -> Vec<u16> {
    let sidecar = settings.sidecar.as_ref().filter(|_| roles.contains(&Role::Sidecar));
    let Some(sidecar) = sidecar else { return Vec::new() };
    let tcp = sidecar.tcp.iter().map(|tcp| tcp.listen.port());
    std::iter::once(sidecar.inbound.port()).chain(tcp).collect()
}

fn look_at_modes(modes: &Modes, ports: &[u16], findings: &mut Findings) {
    for port in ports {
        let what = match modes.at(*port) {
            Strictness::Strict => continue,
            Strictness::Permissive => {
                "permissive: callers without an identity come in, and policy decides about them"
            }
            Strictness::Observe => "observe: nothing is refused, whatever identity and policy say",
        };
        let fix = "set the mode in identity_modes to strict when the decision log shows nobody who needs less";
        findings.add("policy", Grade::Warning, format!("port {port} is {what}"), Some(fix));
    }
}

fn look_at_certificate(id: &str, ssl: &Ssl, findings: &mut Findings) {
    let names: Vec<&str> = ssl.names().iter().collect();
    let names = match ssl.ssl_type {
        SslType::Server => names.join(", "),
        SslType::Client => "upstreams".to_owned(),
    };
    for (chain, _) in ssl.pairs() {
        let parsed = x509_parser::pem::parse_x509_pem(chain.as_bytes());
        let end = parsed.ok().and_then(|(_, pem)| {
            pem.parse_x509().ok().map(|x509| x509.validity().not_after.timestamp())
        });
        // What cannot be read is refused where everything is compiled.
        let Some(end) = end else { continue };
        let left = end - unix_seconds();
        let text = format!("ssl {id} for {names} ends in {}", span(left));
        match left {
            ..0 => findings.add(
                "certificates",
                Grade::Problem,
                format!("ssl {id} has expired"),
                Some("replace it"),
            ),
            0..SOON => findings.add("certificates", Grade::Warning, text, Some("renew it")),
            _ => findings.good("certificates", text),
        }
    }
}

/// Seconds for people.
fn span(seconds: i64) -> String {
    match seconds {
        ..0 => format!("{seconds} s (over)"),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
