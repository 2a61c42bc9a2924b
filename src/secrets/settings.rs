//! What a process is told about secrets that resources refer to.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

/// Secrets that resources refer to (`$secret://`, `$env://`), for roles sidecar and ingress. See `docs/secrets.md`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecretSettings {
    /// The environment variables that `$env://` may read: names, or `PREFIX_*`. None when not given, so that whoever writes
    /// configuration cannot read the environment of every process.
    pub environment: Vec<String>,
    /// Who vouches for the servers of secret managers: a PEM file; the system's authorities when not given.
    pub ca: Option<PathBuf>,
    /// Secret managers may be asked over plain `http://` elsewhere than on loopback. Their secrets and the token for them can be
    /// read on the way then.
    pub plain_http: bool,
    /// Seconds after which a secret is asked for again; what has changed by then is put into force.
    #[schemars(range(min = 1, max = 86400))]
    pub refresh_seconds: u64,
    /// Seconds between two attempts while a manager does not answer, at most; the first comes after one second.
    #[schemars(range(min = 1, max = 86400))]
    pub retry_seconds: u64,
    /// Seconds that a manager gets for an answer.
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u64,
}

impl Default for SecretSettings {
    fn default() -> Self {
        Self {
            environment: Vec::new(),
            ca: None,
            plain_http: false,
            refresh_seconds: 300,
            retry_seconds: 60,
            timeout_seconds: 5,
        }
    }
}

impl SecretSettings {
    /// Judges the settings.
    ///
    /// # Errors
    /// The first one that makes no sense, with what was expected.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (field, seconds, most) in [
            ("secrets.refresh_seconds", self.refresh_seconds, 86_400),
            ("secrets.retry_seconds", self.retry_seconds, 86_400),
            ("secrets.timeout_seconds", self.timeout_seconds, 300),
        ] {
            if !(1..=most).contains(&seconds) {
                return Err((field, format!("{seconds}; expected 1 to {most}")));
            }
        }
        for name in &self.environment {
            let bare = name.strip_suffix('*').unwrap_or(name);
            let lawful = bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            // A bare asterisk would be the whole environment.
            if bare.is_empty() || !lawful {
                let problem = format!("{name:?}; expected a variable's name, or PREFIX_*");
                return Err(("secrets.environment", problem));
            }
        }
        Ok(())
    }

    pub(super) const fn refresh(&self) -> Duration {
        Duration::from_secs(self.refresh_seconds)
    }

    pub(super) const fn retry(&self) -> Duration {
        Duration::from_secs(self.retry_seconds)
    }

    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let with = |change: fn(&mut SecretSettings)| {
            let mut settings = SecretSettings::default();
            change(&mut settings);
            settings.check().map_err(|(field, _)| field)
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(
            with(|settings| settings.environment = vec!["A_1".into(), "B_*".into()]),
            Ok(())
        );
        for name in ["*", "", "A-B", "A*B"] {
            let environment = vec![name.into()];
            let settings = SecretSettings { environment, ..SecretSettings::default() };
            assert_eq!(settings.check().unwrap_err().0, "secrets.environment", "{name}");
        }
        assert_eq!(with(|settings| settings.refresh_seconds = 0), Err("secrets.refresh_seconds"));
        assert_eq!(with(|settings| settings.timeout_seconds = 301), Err("secrets.timeout_seconds"));
    }
}
