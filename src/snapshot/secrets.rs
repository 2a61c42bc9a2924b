//! What stands behind references to secrets, put in their place while a resource is compiled. What is kept of a resource beside
//! that is what was declared: the reference.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::model::{Borne, Invalid, Redacted, SecretReference, Ssl, Upstream};

/// Tells what a reference stands for at the moment, or the sentence why that is not known. Does no I/O.
pub type Clear =
    Arc<dyn Fn(&SecretReference) -> Result<Arc<Redacted<String>>, String> + Send + Sync>;

/// As much of a value as must not be seen in a sentence: shorter pieces are no secret any more.
const PIECE: usize = 8;

/// Who knows what references stand for.
#[derive(Clone, Default)]
pub(super) enum Secrets {
    /// Nobody: whatever bears a reference is refused.
    #[default]
    Unknown,
    /// Whoever will carry out what is only judged here.
    Trusted,
    /// We do.
    Known(Clear),
}

/// What the references of one value stand for.
pub(super) enum Cleared {
    /// There are none.
    Plain,
    /// Somebody else will know.
    Trusted,
    /// These.
    Known(Vec<(SecretReference, Arc<Redacted<String>>)>),
}

impl Secrets {
    fn of(&self, borne: Vec<Borne>) -> Result<Cleared, Invalid> {
        if borne.is_empty() {
            return Ok(Cleared::Plain);
        }
        let mut known = Vec::new();
        for Borne { field, reference } in borne {
            let reference = reference.map_err(|why| {
                Invalid(format!("{field}: the reference cannot be resolved: {why}"))
            })?;
            let unresolved = |why: &str| {
                Invalid(format!("{field}: the reference {reference} cannot be resolved{why}"))
            };
            match self {
                Self::Unknown => return Err(unresolved("")),
                Self::Trusted => {}
                Self::Known(clear) => {
                    let value = clear(&reference).map_err(|why| unresolved(&format!(": {why}")))?;
                    known.push((reference, value));
                }
            }
        }
        Ok(match self {
            Self::Known(_) => Cleared::Known(known),
            Self::Unknown | Self::Trusted => Cleared::Trusted,
        })
    }

    /// Puts what references stand for into settings or metadata of a plugin.
    pub(super) fn put_into(&self, value: &mut Value) -> Result<Cleared, Invalid> {
        let cleared = self.of(SecretReference::all_in(value))?;
        if let Cleared::Known(_) = &cleared {
            SecretReference::replace_in(value, &mut |text| cleared.text(text));
        }
        Ok(cleared)
    }

    /// The same for what is only looked at.
    pub(super) fn put_into_copy<'v>(
        &self,
        value: &'v Value,
    ) -> Result<(Cow<'v, Value>, Cleared), Invalid> {
        if SecretReference::first_in(value).is_none() {
            return Ok((Cow::Borrowed(value), Cleared::Plain));
        }
        let mut value = value.clone();
        let cleared = self.put_into(&mut value)?;
        Ok((Cow::Owned(value), cleared))
    }

    /// An `ssl` resource with what its references stand for; `None` when somebody else will know.
    pub(super) fn ssl<'s>(&self, ssl: &'s Ssl) -> Result<Option<Cow<'s, Ssl>>, Invalid> {
        let cleared = self.of(ssl.references())?;
        match &cleared {
            Cleared::Plain => return Ok(Some(Cow::Borrowed(ssl))),
            Cleared::Trusted => return Ok(None),
            Cleared::Known(_) => {}
        }
        let mut ssl = ssl.clone();
        ssl.replace(&mut |text| cleared.text(text));
        Ok(Some(Cow::Owned(ssl)))
    }

    /// An upstream with what its references stand for. When somebody else will know, it shows no certificate here.
    pub(super) fn upstream<'u>(
        &self,
        upstream: Cow<'u, Upstream>,
    ) -> Result<(Cow<'u, Upstream>, Cleared), Invalid> {
        let cleared = self.of(upstream.references())?;
        let upstream = match &cleared {
            Cleared::Plain => upstream,
            Cleared::Known(_) => {
                let mut upstream = upstream.into_owned();
                upstream.replace(&mut |text| cleared.text(text));
                Cow::Owned(upstream)
            }
            Cleared::Trusted => {
                let mut upstream = upstream.into_owned();
                if let Some(tls) = &mut upstream.tls {
                    (tls.client_cert, tls.client_key) = (None, None);
                }
                Cow::Owned(upstream)
            }
        };
        Ok((upstream, cleared))
    }
}

impl Cleared {
    pub(super) const fn is_trusted(&self) -> bool {
        matches!(self, Self::Trusted)
    }

    fn text(&self, text: &str) -> Option<String> {
        let Self::Known(known) = self else { return None };
        let reference = SecretReference::of(text)?.ok()?;
        let (_, value) = known.iter().find(|(other, _)| *other == reference)?;
        Some(value.reveal().clone())
    }

    /// A reason that shows a part of what a reference stands for is not told.
    pub(super) fn veil(&self, error: Invalid) -> Invalid {
        let Self::Known(known) = self else { return error };
        match known.iter().find(|(_, value)| shows(&error.0, value.reveal())) {
            None => error,
            Some((reference, _)) => Invalid(format!(
                "what {reference} stands for does not fit here; why is not told, as the reason would show a part of it"
            )),
        }
    }
}

fn shows(sentence: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    let escaped = format!("{value:?}");
    let escaped = escaped.trim_matches('"');
    if sentence.contains(value) || sentence.contains(escaped) {
        return true;
    }
    let pieces = sentence.as_bytes().windows(PIECE);
    let shown = |whole: &str, piece: &[u8]| memchr::memmem::find(whole.as_bytes(), piece).is_some();
    pieces.into_iter().any(|piece| shown(value, piece) || shown(escaped, piece))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sentence_never_shows_what_a_reference_stands_for() {
        let reference = SecretReference::of("$env://KEY").unwrap().unwrap();
        let value = "line one\n\"quoted\" line two";
        let known = vec![(reference, Arc::new(Redacted::new(value.to_owned())))];
        let cleared = Cleared::Known(known);
        let veiled = |text: String| cleared.veil(Invalid(text)).0;
        for shown in [
            format!("invalid value: {value}, expected hex"),
            format!("invalid value: {value:?}, expected hex"),
            "invalid value: quoted\\\" line t...".to_owned(),
        ] {
            assert!(veiled(shown).starts_with("what $env://KEY stands for does not fit here"));
        }
        assert_eq!(veiled("unknown field `kee`".into()), "unknown field `kee`");
    }

    #[test]
    fn what_is_not_known_is_refused_and_names_field_and_reference() {
        let clear: Clear = Arc::new(|reference| match reference.to_string().as_str() {
            "$env://A" => Ok(Arc::new(Redacted::new("a".into()))),
            _ => Err("nobody knows".into()),
        });
        let known = Secrets::Known(clear);
        let mut value = json!({"x": ["$ENV://A", "b"]});
        assert!(known.put_into(&mut value).is_ok());
        assert_eq!(value, json!({"x": ["a", "b"]}));
        let mut other = json!({"y": {"z": "$env://B"}});
        let why = known.put_into(&mut other).err().unwrap().0;
        assert_eq!(why, "y.z: the reference $env://B cannot be resolved: nobody knows");
        let why = Secrets::Unknown.put_into(&mut other).err().unwrap().0;
        assert_eq!(why, "y.z: the reference $env://B cannot be resolved");
        assert!(Secrets::Trusted.put_into(&mut other).unwrap().is_trusted());
        let mut odd = json!({"y": "$secret://x"});
        assert!(
            Secrets::Trusted
                .put_into(&mut odd)
                .err()
                .unwrap()
                .0
                .starts_with("y: the reference cannot be resolved: expected $")
        );
    }
}
