//! Kubernetes objects of a text.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::model::Id;
use crate::policy::files::{Flaw, Node, Place, documents};

/// One object.
pub(super) struct Object {
    pub(super) place: Place,
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) labels: BTreeMap<String, String>,
    spec: Option<Node>,
}

impl Object {
    /// `AuthorizationPolicy shop/billing`.
    pub(super) fn title(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    /// An id of ours: `istio-shop-billing`.
    pub(super) fn id(&self, prefix: &str) -> Result<Id, Flaw> {
        let id = format!("{prefix}-{}-{}", self.namespace, self.name);
        // Names of Kubernetes objects are longer than ids may be.
        Id::parse(&id).map_err(|error| self.flaw(format!("metadata.name: as an id, {error}")))
    }

    /// What it says. Fields that nobody here knows are refused: they may carry meaning.
    pub(super) fn spec<T: DeserializeOwned + Default>(&self) -> Result<T, Flaw> {
        match &self.spec {
            None => Ok(T::default()),
            Some(spec) if spec.is_null() => Ok(T::default()),
            Some(spec) => spec.read().map_err(|misfit| {
                let flaw = misfit.in_file(&self.place.file);
                Flaw { sentence: format!("{}: {}", self.title(), flaw.sentence), ..flaw }
            }),
        }
    }

    pub(super) fn flaw(&self, sentence: impl Into<String>) -> Flaw {
        let sentence = format!("{}: {}", self.title(), sentence.into());
        Flaw { place: self.place.clone(), sentence }
    }
}

/// The objects of all texts (name and text); lists of objects are taken apart.
pub(super) fn objects(texts: &[(String, String)]) -> Result<Vec<Object>, Vec<Flaw>> {
    let (mut objects, mut flaws) = (Vec::new(), Vec::new());
    for (file, text) in texts {
        let documents = match documents(file, text) {
            Ok(documents) => documents,
            Err(flaw) => {
                flaws.push(flaw);
                continue;
            }
        };
        for document in documents.iter().filter(|document| !document.is_null()) {
            let is_list = document.get("kind").and_then(Node::text).is_some_and(|kind| {
                kind == "List" || (kind.ends_with("List") && document.get("items").is_some())
            });
            let items = document.get("items").and_then(Node::items);
            match items.filter(|_| is_list) {
                Some(items) => {
                    items.iter().for_each(|item| add(file, item, &mut objects, &mut flaws));
                }
                None => add(file, document, &mut objects, &mut flaws),
            }
        }
    }
    if flaws.is_empty() { Ok(objects) } else { Err(flaws) }
}

fn add(file: &str, node: &Node, objects: &mut Vec<Object>, flaws: &mut Vec<Flaw>) {
    let text = |node: Option<&Node>| node.and_then(Node::text).map(str::to_owned);
    let metadata = node.get("metadata");
    let of_metadata = |field: &str| metadata.and_then(|metadata| metadata.get(field));
    let (Some(version), Some(kind), Some(name)) =
        (text(node.get("apiVersion")), text(node.get("kind")), text(of_metadata("name")))
    else {
        let sentence = "expected a Kubernetes object: apiVersion, kind and metadata.name";
        return flaws.push(Flaw::new(file, node.line(), sentence));
    };
    let texts = |field: &str| {
        let members = of_metadata(field).into_iter().flat_map(Node::members);
        members.filter_map(|(name, _, value)| Some((name.to_owned(), value.text()?.to_owned())))
    };
    objects.push(Object {
        place: Place { file: file.to_owned(), line: node.line() },
        group: version.split_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default(),
        kind,
        namespace: text(of_metadata("namespace")).unwrap_or_else(|| "default".to_owned()),
        name,
        annotations: texts("annotations").collect(),
        labels: texts("labels").collect(),
        spec: node.get("spec").cloned(),
    });
}
