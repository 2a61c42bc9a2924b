//! `BundleMap`: the bundles of several trust domains in one document (Trust Domain and Bundle, section 5).

use serde_json::Value;

use super::{BundleDocument, Error, TrustBundles, TrustDomain, strict_json};

/// A SPIFFE bundle map: `{"trust_domains": {"<name>": <bundle document>, ...}}`.
///
/// It is read as a whole or not at all (72), and each bundle stays its own domain's (54). The refresh hints of the bundles in it
/// say nothing about when to read the map again (73): whoever fetches a map has an interval of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleMap {
    /// The documents, one for each trust domain, in the order of the names.
    documents: Vec<BundleDocument>,
}

impl BundleMap {
    /// Reads a map. Members that are not known are passed over.
    ///
    /// # Errors
    /// It is not JSON, a member is there twice (71), it has no `trust_domains`, a name is no trust domain, or one bundle cannot be
    /// read.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let wrong = |detail: String| Error::BundleDocument { detail };
        let map = strict_json::parse(json).map_err(|error| wrong(error.to_string()))?;
        let domains = map.get("trust_domains").and_then(Value::as_object);
        let domains = domains.ok_or_else(|| wrong("`trust_domains` is not an object".into()))?;
        let mut documents = Vec::new();
        for (name, document) in domains {
            let domain: TrustDomain =
                name.parse().map_err(|_| Error::TrustDomain { name: name.clone() })?;
            let document = BundleDocument::from_value(domain.clone(), document)
                .map_err(|source| Error::BundleInMap { domain, source: Box::new(source) })?;
            documents.push(document);
        }
        documents.sort_by(|one, other| one.bundle.domain.cmp(&other.bundle.domain));
        Ok(Self { documents })
    }

    /// The documents, in the order of the names.
    pub fn documents(&self) -> &[BundleDocument] {
        &self.documents
    }

    /// The bundles alone.
    pub fn bundles(&self) -> TrustBundles {
        self.documents.iter().map(|document| document.bundle.clone()).collect()
    }

    /// The map as JSON.
    ///
    /// # Errors
    /// As [`BundleDocument::to_json`].
    pub fn to_json(&self) -> Result<Value, Error> {
        let mut domains = serde_json::Map::new();
        for document in &self.documents {
            domains.insert(document.bundle.domain.as_str().to_owned(), document.to_json()?);
        }
        Ok(serde_json::json!({ "trust_domains": domains }))
    }
}

impl FromIterator<BundleDocument> for BundleMap {
    /// Of several documents for one trust domain the last counts.
    fn from_iter<I: IntoIterator<Item = BundleDocument>>(documents: I) -> Self {
        let mut found: Vec<BundleDocument> = Vec::new();
        for document in documents {
            found.retain(|other| other.bundle.domain != document.bundle.domain);
            found.push(document);
        }
        found.sort_by(|one, other| one.bundle.domain.cmp(&other.bundle.domain));
        Self { documents: found }
    }
}
