//! Do settings make sense? All that can be told without a socket, a disk or the network: `wardgate check --offline`, and
//! before a running process takes settings over.

use super::collection::NAMES;
use super::control_plane::FeedRules;
use super::data_plane::app_route;
use super::issuer::upkeep;
use super::settings::{Error, IdentitySettings, Role, Settings};
use crate::audit::OutputSettings;
use crate::issuer::RegistrationEntry;
use crate::observe::LogSettings;

impl Settings {
    /// Judges the settings as a start does that is asked for this role.
    ///
    /// # Errors
    /// The first thing that a start would refuse, by the setting's name.
    pub fn check(&self, asked: Option<Role>) -> Result<(), Error> {
        let wrong = |field, problem: &str| Err(Error::Setting { field, problem: problem.into() });
        let domain = self.trust_domain()?;
        let roles = self.roles(asked)?;
        self.verification.check()?;
        self.limits.limits(self.proof.limits()?)?;
        let secrets = self.secrets.check();
        secrets.map_err(|(field, problem)| Error::Setting { field, problem })?;
        if let Some(ingress) = &self.ingress {
            ingress.proxy_protocol.introductions()?;
            ingress.senders()?;
            ingress.edge()?;
            ingress.passthrough_doors()?;
        }
        if let Some(sidecar) = &self.sidecar {
            sidecar.proxy_protocol.introductions()?;
            sidecar.tcp_doors()?;
        }
        check_log(&self.log)?;
        OutputSettings::check_all(&self.audit.outputs)?;
        let taken = self.audit.outputs.iter().find(|one| NAMES.contains(&&*one.name));
        if let Some(OutputSettings { name, .. }) = taken {
            return wrong("audit.outputs", &format!("{name}: the name is central collection's"));
        }
        if let Err(error) = self.decision_log.check() {
            return Err(match error {
                crate::observe::Error::Setting { field, problem } => {
                    Error::Setting { field, problem }
                }
                other => Error::Setting { field: "decision_log", problem: other.to_string() },
            });
        }
        if let Some(control_api) = &self.control_api {
            control_api.check()?;
        }
        if self.proof.list_connections
            && self.status.is_some_and(|address| !address.ip().is_loopback())
        {
            return wrong(
                "proof.list_connections",
                "needs a status port on loopback: it tells who is connected to whom",
            );
        }
        if let Some(IdentitySettings::Issuer { spiffe_id }) = &self.identity {
            if !roles.contains(&Role::Issuer) {
                return wrong("identity", "source issuer needs role issuer in the same process");
            }
            if let Some(text) = spiffe_id
                && let Err(error) = text.parse::<crate::identity::SpiffeId>()
            {
                return wrong("identity.spiffe_id", &format!("{text:?}: {error}"));
            }
        }
        let carries = roles.iter().any(|role| matches!(role, Role::Sidecar | Role::Ingress));
        match (&self.resources, &self.control_plane) {
            (Some(_), Some(_)) => {
                return wrong("resources", "give either resources or control_plane");
            }
            (None, None) if carries => {
                return wrong(
                    "control_plane",
                    "missing; expected control_plane.address, or a resources file",
                );
            }
            _ => {}
        }
        if let Some(control) = &self.control_plane {
            control.places()?;
        }
        if let Some(text) = self.control_plane.as_ref().and_then(|one| one.spiffe_id.as_ref())
            && let Err(error) = text.parse::<crate::identity::SpiffeId>()
        {
            return wrong("control_plane.spiffe_id", &format!("{text:?}: {error}"));
        }
        for role in &roles {
            self.check_role(*role)?;
        }
        if let Some(issuer) = self.issuer.as_ref().filter(|_| roles.contains(&Role::Issuer)) {
            for workload in &issuer.entries {
                if let Err(error) = RegistrationEntry::new(workload, &domain) {
                    return wrong("issuer.entries", &error.to_string());
                }
            }
        }
        Ok(())
    }

    fn check_role(&self, role: Role) -> Result<(), Error> {
        let missing = |field, problem: &str| Error::Setting { field, problem: problem.into() };
        match role {
            Role::Sidecar => {
                let sidecar = self.sidecar.as_ref().ok_or_else(|| {
                    missing("sidecar", "missing; role sidecar needs its settings")
                })?;
                if self.identity.is_none() {
                    let problem = "missing; expected source: workload_api, files, enrol or issuer";
                    return Err(missing("identity", problem));
                }
                sidecar.app.as_deref().map(app_route).transpose().map(drop)
            }
            Role::Ingress => match &self.ingress {
                Some(_) => Ok(()),
                None => Err(missing("ingress", "missing; role ingress needs its settings")),
            },
            Role::Control => {
                let control = self.control.as_ref().ok_or_else(|| {
                    missing("control", "missing; role control needs its settings")
                })?;
                let audit = control.audit.check();
                audit.map_err(|(field, problem)| Error::Setting { field, problem })?;
                if control.standalone.is_some() && control.store.is_some() {
                    let problem =
                        "give either standalone or store: what comes whole rests in memory";
                    return Err(missing("control.standalone", problem));
                }
                if control.history.revisions > 1000 {
                    let problem = format!("{}; expected 0 to 1000", control.history.revisions);
                    return Err(missing("control.history.revisions", &problem));
                }
                if let Some(canary) = &control.canary {
                    let problem = "needs control.history.revisions of 1 at least: what everybody has is taken from there";
                    canary.check().map_err(|(field, problem)| missing(field, &problem))?;
                    if control.standalone.is_some() {
                        return Err(missing(
                            "control.canary",
                            "not with control.standalone: nothing is remembered there",
                        ));
                    }
                    if control.history.revisions == 0 {
                        return Err(missing("control.canary", problem));
                    }
                }
                super::admin_door::check(control)?;
                FeedRules::of(self, control).map(drop)
            }
            Role::Issuer => {
                let issuer = self
                    .issuer
                    .as_ref()
                    .ok_or_else(|| missing("issuer", "missing; role issuer needs issuer.socket"))?;
                issuer.jwt.check().map_err(|why| missing("issuer.jwt", &why))?;
                if issuer.listen.is_none() && !issuer.kubernetes.is_empty() {
                    let problem = "given without issuer.listen: nobody could enrol";
                    return Err(missing("issuer.kubernetes", problem));
                }
                upkeep(issuer).map(drop)
            }
        }
    }
}

fn check_log(log: &LogSettings) -> Result<(), Error> {
    log.check().map_err(|problem| Error::Setting { field: "log.filter", problem })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::settings_file::SettingsFile;

    #[test]
    fn what_a_start_would_refuse_is_refused_before_it() {
        let folder = std::env::temp_dir().join(format!("wardgate-check-{}", std::process::id()));
        let good = "trust_domain: a.test\nresources: /r.yaml\n";
        let check = |text: &str| {
            let path: &Path = &folder;
            std::fs::write(path, format!("{good}{text}")).unwrap();
            let read = SettingsFile::read(path, &(Arc::new(|_: &str| None) as _));
            read.and_then(|file| file.settings.check(None)).map_err(|error| error.to_string())
        };
        assert_eq!(check("role: ingress\ningress: {}"), Ok(()));
        for (text, expected) in [
            ("", "setting role: missing"),
            ("role: ingress", "setting ingress: missing"),
            ("role: sidecar\nsidecar: {}", "setting identity: missing"),
            (
                "role: ingress\ningress: {}\ncontrol_plane: { address: \"a:1\" }",
                "setting resources",
            ),
            ("role: ingress\ningress: {}\nlog: { filter: \"a=loud\" }", "setting log.filter"),
            (
                "role: ingress\ningress: {}\nsecrets: { environment: [\"*\"] }",
                "setting secrets.environment",
            ),
            ("role: ingress\ningress: {}\nproof: { drain_within_seconds: -1 }", "setting proof."),
            (
                "role: ingress\ningress: {}\ncontrol_api: { listen: \"0.0.0.0:1\" }",
                "setting control_api",
            ),
            (
                "role: ingress\ningress: {}\nidentity: { source: issuer }",
                "setting identity: source issuer",
            ),
            ("role: control\ncontrol: { ingress_ids: [x] }", "setting control.ingress_ids"),
            (
                "role: control\ncontrol: { standalone: {}, store: { file: /s } }",
                "setting control.standalone: give either standalone or store",
            ),
            ("role: issuer\nissuer: { socket: /s, crl_seconds: 1 }", "setting issuer.crl_seconds"),
            (
                "role: ingress\ningress: {}\naudit: { outputs: [{ name: a, only: [x], http: { url: \"http://a/\" } }] }",
                "setting audit.outputs: a: only: \"x\" is no type of record",
            ),
        ] {
            let refused = check(text).unwrap_err();
            assert!(refused.starts_with(expected), "{text:?}: {refused}");
        }
        std::fs::remove_file(&folder).unwrap();
    }
}
