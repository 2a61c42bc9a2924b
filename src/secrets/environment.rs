//! The process' environment, as far as the operator lets resources read it.

use std::env::VarError;
use std::sync::Arc;

use super::Error;
use super::fetched::Fetched;
use crate::model::{Redacted, SecretReference};

/// Reads a variable.
type Lookup = Arc<dyn Fn(&str) -> Result<String, VarError> + Send + Sync>;

/// The variables that may be read.
#[derive(Clone)]
pub(super) struct Environment {
    allowed: Arc<[String]>,
    lookup: Lookup,
}

impl Environment {
    /// The process' own; `allowed` are names, or beginnings of names with an asterisk behind.
    pub(super) fn of_process(allowed: &[String]) -> Self {
        Self::with(allowed, |name| std::env::var(name))
    }

    pub(super) fn with(
        allowed: &[String],
        lookup: impl Fn(&str) -> Result<String, VarError> + Send + Sync + 'static,
    ) -> Self {
        Self { allowed: allowed.into(), lookup: Arc::new(lookup) }
    }

    /// The variable, or the field of the JSON object in it.
    pub(super) fn read(
        &self,
        name: &str,
        key: Option<&str>,
    ) -> Result<Arc<Redacted<String>>, Error> {
        let allows = |allowed: &String| match allowed.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => *allowed == name,
        };
        // Before it is looked for: whether it is set is not for everybody to know either.
        if !self.allowed.iter().any(allows) {
            return Err(Error::NotAllowed(name.to_owned()));
        }
        let text = (self.lookup)(name).map_err(|error| match error {
            VarError::NotPresent => Error::NotSet(name.to_owned()),
            VarError::NotUnicode(_) => Error::NotText(name.to_owned()),
        })?;
        Fetched::Text(Redacted::new(text)).pick(key)
    }

    /// A manager's own secret: a text, or the variable that it refers to.
    pub(super) fn own(&self, field: &'static str, text: &str) -> Result<Redacted<String>, Error> {
        let wrong = |why: String| Error::Field { field, why };
        match SecretReference::of(text) {
            None => Ok(Redacted::new(text.to_owned())),
            Some(Ok(SecretReference::Environment { name, key })) => {
                let read = self.read(&name, key.as_deref());
                let value = read.map_err(|error| wrong(error.to_string()))?;
                Ok(Redacted::clone(&value))
            }
            Some(Ok(SecretReference::Managed { .. })) => Err(wrong(
                "a manager's own secrets are given as they are, or as $env://NAME".into(),
            )),
            Some(Err(why)) => Err(wrong(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_read_and_the_error_names_the_setting() {
        let allowed = ["KEY".to_owned(), "GATE_*".to_owned()];
        let lookup = |name: &str| match name {
            "KEY" | "GATE_A" | "HOME" => Ok(format!("value of {name}")),
            "GATE_JSON" => Ok(r#"{"a": "deep", "n": 7, "o": {}}"#.to_owned()),
            _ => Err(VarError::NotPresent),
        };
        let environment = Environment::with(&allowed, lookup);
        let read = |text: &str| {
            let own = environment.own("token", text);
            own.map(|value| value.reveal().clone()).map_err(|error| error.to_string())
        };
        assert_eq!(read("plain"), Ok("plain".into()));
        assert_eq!(read("$ENV://KEY"), Ok("value of KEY".into()));
        assert_eq!(read("$env://GATE_A"), Ok("value of GATE_A".into()));
        assert_eq!(read("$env://GATE_JSON/a"), Ok("deep".into()));
        assert_eq!(read("$env://GATE_JSON/n"), Ok("7".into()));
        for (reference, says) in [
            (
                "$env://HOME",
                "the environment variable HOME is not among those of the setting secrets.environment",
            ),
            ("$env://NOBODY", "NOBODY is not among those of the setting secrets.environment"),
            ("$env://GATE_B", "the environment variable GATE_B is not set"),
            ("$env://GATE_JSON/o", "the field \"o\" of the secret is no text"),
            ("$env://GATE_JSON/b", "the secret has no field \"b\""),
            ("$env://KEY/a", "the secret is no JSON object"),
            ("$secret://vault/1/a/b", "or as $env://NAME"),
        ] {
            let why = read(reference).unwrap_err();
            assert!(why.starts_with("token: ") && why.contains(says), "{reference}: {why}");
            assert!(!why.contains("value of"), "{why}");
        }
    }
}
