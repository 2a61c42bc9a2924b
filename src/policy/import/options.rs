//! What an import has to be told: the trust domain, and which workloads bear a label.

use std::collections::BTreeMap;

use crate::identity::{SpiffePattern, TrustDomain};

/// What the objects do not say themselves.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    pub(super) trust_domain: TrustDomain,
    pub(super) root_namespace: String,
    /// By namespace (empty: all), label and value: patterns of SPIFFE IDs.
    labels: BTreeMap<(String, String, String), Vec<String>>,
    /// Numbers of named ports.
    ports: BTreeMap<String, u16>,
}

impl ImportOptions {
    /// No label is known yet.
    pub fn new(trust_domain: TrustDomain, root_namespace: impl Into<String>) -> Self {
        let root_namespace = root_namespace.into();
        Self { trust_domain, root_namespace, labels: BTreeMap::new(), ports: BTreeMap::new() }
    }

    /// Notes which workloads bear a label (`app=billing=spiffe://td/ns/shop/sa/billing`, in one namespace with
    /// `shop/app=billing=…`), which a Kubernetes service is (`service=billing=…`), or a port's number (`port=http=8080`).
    ///
    /// # Errors
    /// A sentence: what was expected.
    pub fn map(&mut self, text: &str) -> Result<(), String> {
        let expected = "expected LABEL=VALUE=SPIFFE ID";
        let (label, rest) = text.split_once('=').ok_or(expected)?;
        let (value, id) = rest.split_once('=').ok_or(expected)?;
        if label == "port" {
            let port = id.parse::<u16>().ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| format!("\"{id}\" is no port"))?;
            self.ports.insert(value.to_owned(), port);
            return Ok(());
        }
        id.parse::<SpiffePattern>().map_err(|error| format!("\"{id}\" {error}"))?;
        // `app.kubernetes.io/name` has a slash of its own, and a dot before it; namespaces have none.
        let (namespace, label) = match label.split_once('/') {
            Some((namespace, label)) if !namespace.contains('.') => (namespace, label),
            _ => ("", label),
        };
        let key = (namespace.to_owned(), label.to_owned(), value.to_owned());
        self.labels.entry(key).or_default().push(id.to_owned());
        Ok(())
    }

    pub(super) fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).copied()
    }

    /// Patterns of the workloads that bear all these labels, as far as it was told. `None`: one of them is not known.
    pub(super) fn bearers(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<Vec<String>> {
        let known = labels.iter().map(|(label, value)| {
            let named = |namespace: &str| {
                let key = (namespace.to_owned(), label.clone(), value.clone());
                self.labels.get(&key)
            };
            named(namespace).or_else(|| named(""))
        });
        let mut all: Option<Vec<String>> = None;
        for ids in known {
            let ids = ids?;
            all = Some(match all {
                None => ids.clone(),
                Some(before) => before.into_iter().filter(|id| ids.contains(id)).collect(),
            });
        }
        // Nobody bears all of them: an empty list would mean everybody.
        all.filter(|ids| !ids.is_empty())
    }

    /// The pattern of all workloads of a namespace.
    pub(super) fn namespace(&self, namespace: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/*", self.trust_domain.as_str())
    }
}
