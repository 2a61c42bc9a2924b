//! `Ssls`: the `ssl` resources as declared, and the sites that are made of those for public clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Id, Invalid, Ssl, SslType};
use crate::mtls::{EdgeTls, Site, Sites, check_pairs};
use crate::rt::causes;

/// The certificates of a data plane.
#[derive(Debug, Default)]
pub(super) struct Ssls {
    tls: Arc<EdgeTls>,
    declared: BTreeMap<Id, Arc<Ssl>>,
    sites: Arc<Sites>,
}

impl Ssls {
    /// None yet; what public clients are offered is `tls`.
    pub(super) fn new(tls: Arc<EdgeTls>) -> Self {
        Self { tls, ..Self::default() }
    }

    /// A resource as it was declared, of either type.
    pub(super) fn get(&self, id: &Id) -> Option<&Arc<Ssl>> {
        self.declared.get(id)
    }

    /// Is there one of this id that is shown to upstreams?
    pub(super) fn is_client(&self, id: &Id) -> bool {
        self.get(id).is_some_and(|ssl| ssl.ssl_type == SslType::Client)
    }

    /// What answers public clients: the same `Arc` as long as nothing of it changes.
    pub(super) fn sites(&self) -> &Arc<Sites> {
        &self.sites
    }

    /// Would this resource be taken?
    pub(super) fn trial(&self, id: &Id, ssl: &Ssl) -> Result<(), Invalid> {
        self.compile(id, ssl).map(drop)
    }

    /// Takes a resource in. A refused one leaves its previous version as it is; where there is none, nobody answers for its names.
    pub(super) fn put(&mut self, id: &Id, ssl: Ssl) -> Result<(), Invalid> {
        // The same once more, as after a lost connection to the control plane: sessions and stapled answers stay.
        if self.get(id).is_some_and(|held| **held == ssl) {
            return Ok(());
        }
        let site = match self.compile(id, &ssl) {
            Ok(site) => site,
            Err(invalid) => {
                self.close(id, &ssl);
                return Err(invalid);
            }
        };
        match site {
            Some(site) if ssl.is_served() => Arc::make_mut(&mut self.sites).insert(&Arc::new(site)),
            _ => self.withdraw(id),
        }
        self.declared.insert(id.clone(), ssl.into());
        Ok(())
    }

    /// Takes a resource in whose references somebody else will know. It is named, and never served here.
    pub(super) fn trust(&mut self, id: &Id, ssl: Ssl) {
        self.declared.insert(id.clone(), ssl.into());
    }

    pub(super) fn delete(&mut self, id: &Id) {
        self.declared.remove(id);
        self.withdraw(id);
    }

    fn close(&mut self, id: &Id, ssl: &Ssl) {
        if self.get(id).is_some() || !ssl.is_served() {
            return;
        }
        if let Some(site) = Site::closed(id, ssl, &self.tls) {
            Arc::make_mut(&mut self.sites).insert(&Arc::new(site));
        }
    }

    fn withdraw(&mut self, id: &Id) {
        if self.sites.of(id.as_str()).is_some() {
            Arc::make_mut(&mut self.sites).remove(id.as_str());
        }
    }

    /// A disabled one is judged as well: it may be enabled by a word.
    fn compile(&self, id: &Id, ssl: &Ssl) -> Result<Option<Site>, Invalid> {
        let invalid = |error| Invalid(causes(&error));
        if ssl.ssl_type == SslType::Client {
            return check_pairs(ssl).map(|()| None).map_err(invalid);
        }
        if ssl.sni.is_some() == ssl.snis.is_some() {
            return Err(Invalid::new("sni: exactly one of sni and snis is expected"));
        }
        if ssl.names().iter().next().is_none() {
            return Err(Invalid::new("snis: at least one name is expected"));
        }
        let held = self.get(id);
        let before = held.and_then(|held| Some((&**held, &**self.sites.of(id.as_str())?)));
        Site::compile(id, ssl, &self.tls, before).map(Some).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    /// At 10,000 one more costs as much as here: 0.2 ms without optimisation.
    const MANY: usize = 1000;

    #[test]
    fn where_one_cannot_be_compiled_nobody_answers_for_its_names() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let ssl = |sni: &str, cert: &str| -> Ssl {
            serde_json::from_value(json!({"sni": sni, "cert": cert, "key": key})).unwrap()
        };
        let [wild, own] = ["wild", "own"].map(|id| Id::parse(id).unwrap());
        let mut ssls = Ssls::default();
        ssls.put(&wild, ssl("*.test", &cert)).unwrap();
        let is_closed = |ssls: &Ssls, name: &str| ssls.sites().find(name).unwrap().is_closed();
        assert!(ssls.put(&own, ssl("a.test", "unreadable")).is_err());
        assert!(is_closed(&ssls, "a.test") && !is_closed(&ssls, "b.test"));
        ssls.put(&own, ssl("a.test", &cert)).unwrap();
        assert!(!is_closed(&ssls, "a.test"));
        assert!(ssls.put(&own, ssl("a.test", "unreadable")).is_err());
        assert!(!is_closed(&ssls, "a.test"), "the version before stays in force");
        ssls.delete(&own);
        assert!(ssls.put(&own, ssl("a.test", "unreadable")).is_err());
        ssls.delete(&own);
        assert_eq!(ssls.sites().find("a.test").unwrap().id(), "wild");
    }

    #[test]
    fn among_many_certificates_a_change_touches_one() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let ssl = |number: usize, label: &str| -> Ssl {
            let value = json!({
                "sni": format!("n{number}.test"), "cert": cert, "key": key, "labels": {"a": label},
            });
            serde_json::from_value(value).unwrap()
        };
        let id = |number: usize| Id::parse(&number.to_string()).unwrap();
        let mut ssls = Ssls::default();
        let begun = Instant::now();
        for number in 0..MANY {
            ssls.put(&id(number), ssl(number, "old")).unwrap();
        }
        let all = begun.elapsed();
        let before = ssls.sites().clone();
        let begun = Instant::now();
        ssls.put(&id(77), ssl(77, "new")).unwrap();
        let one = begun.elapsed();
        let begun = Instant::now();
        for number in 0..MANY {
            let name = format!("n{number}.test");
            let same = Arc::ptr_eq(before.find(&name).unwrap(), ssls.sites().find(&name).unwrap());
            assert_eq!(same, number != 77, "{number}");
        }
        // For whoever runs it with --nocapture.
        let looks = begun.elapsed();
        std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{MANY}: {all:?}, one more: {one:?}, as many looks twice: {looks:?}\n"),
        )
        .unwrap();
        // All others are the same objects; so is the whole when nothing changes.
        let before = ssls.sites().clone();
        ssls.put(&id(77), ssl(77, "new")).unwrap();
        assert!(Arc::ptr_eq(&before, ssls.sites()));
    }
}
