//! What the Admin API offers for each kind, and how a path names one of its resources.

use serde_json::{Map, Value, json};

use super::super::answer::Answer;
use super::super::index::id_text;
use crate::identity::TrustDomain;
use crate::model::{Id, Kind, ManagerType};

/// Where a resource's id comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IdRule {
    /// From the path, or from the body's `id`.
    Generic,
    /// The body's `username`.
    Username,
    /// The plugin's name, from the path.
    Plugin,
    /// As `Generic`; it is a trust domain's name.
    TrustDomain,
    /// From the path alone, below the manager's name.
    Manager,
}

/// What the Admin API offers for a kind.
pub(super) struct Row {
    pub(super) kind: Kind,
    /// The kind in sentences of APISIX.
    pub(super) name: &'static str,
    /// Its schema's name.
    pub(super) schema: &'static str,
    pub(super) id: IdRule,
    pub(super) post: bool,
    pub(super) patch: bool,
}

const fn row(kind: Kind, schema: &'static str, id: IdRule, post: bool, patch: bool) -> Row {
    Row { kind, name: kind.singular(), schema, id, post, patch }
}

pub(super) const TABLE: [Row; 18] = [
    row(Kind::Routes, "route", IdRule::Generic, true, true),
    row(Kind::Services, "service", IdRule::Generic, true, true),
    row(Kind::Upstreams, "upstream", IdRule::Generic, true, true),
    row(Kind::Consumers, "consumer", IdRule::Username, false, false),
    row(Kind::Credentials, "credential", IdRule::Generic, false, false),
    row(Kind::ConsumerGroups, "consumer_group", IdRule::Generic, false, true),
    row(Kind::PluginConfigs, "plugin_config", IdRule::Generic, false, true),
    row(Kind::GlobalRules, "global_rule", IdRule::Generic, false, true),
    row(Kind::PluginMetadata, "plugin_metadata", IdRule::Plugin, false, false),
    row(Kind::Ssls, "ssl", IdRule::Generic, true, true),
    row(Kind::Secrets, "secret", IdRule::Manager, false, true),
    row(Kind::Protos, "proto", IdRule::Generic, true, false),
    row(Kind::StreamRoutes, "stream_route", IdRule::Generic, true, false),
    row(Kind::IdentityPolicies, "identity_policy", IdRule::Generic, true, true),
    row(Kind::IdentityModes, "identity_mode", IdRule::Generic, true, true),
    row(Kind::Workloads, "workload", IdRule::Generic, true, true),
    row(Kind::TrustDomains, "trust_domain", IdRule::TrustDomain, false, true),
    row(Kind::Revocations, "revocation", IdRule::Generic, true, true),
];

pub(super) fn row_of(kind: Kind) -> &'static Row {
    TABLE.iter().find(|row| row.kind == kind).expect("every kind has a row: a test holds it")
}

/// What is asked about: a kind, maybe one of it, maybe a place inside.
pub(super) struct Target<'a> {
    pub(super) row: &'static Row,
    /// What the id lies below: for credentials `<consumer>/credentials`, for secrets their manager.
    folder: Option<String>,
    pub(super) id: Option<&'a str>,
    pub(super) inside: &'a [&'a str],
}

impl<'a> Target<'a> {
    /// Reads the path below `/apisix/admin`; `None` when it names no kind.
    pub(super) fn of(segments: &'a [&'a str]) -> Option<Self> {
        let (row, folder, rest) = match segments {
            ["consumers", consumer, "credentials", rest @ ..] => {
                (row_of(Kind::Credentials), Some(format!("{consumer}/credentials")), rest)
            }
            ["secrets", rest @ ..] => {
                let (manager, rest) = match rest {
                    [manager, rest @ ..] => (Some((*manager).to_owned()), rest),
                    [] => (None, rest),
                };
                (row_of(Kind::Secrets), manager, rest)
            }
            [name, rest @ ..] => {
                let kind = Kind::named(name).filter(|kind| *kind != Kind::Credentials)?;
                (row_of(kind), None, rest)
            }
            [] => return None,
        };
        let id = rest.first().copied();
        Some(Self { row, folder, id, inside: rest.get(1..).unwrap_or_default() })
    }

    /// The consumer, when it is about credentials.
    pub(super) fn consumer(&self) -> Option<&str> {
        let folder = self.folder.as_deref().filter(|_| self.row.kind == Kind::Credentials)?;
        folder.split('/').next()
    }

    /// What of the kind a list shows: the keys below the prefix begin so.
    pub(super) fn listed(&self) -> String {
        match (&self.folder, self.row.kind) {
            (Some(folder), Kind::Credentials) => format!("/consumers/{folder}/"),
            (Some(folder), _) => format!("/{}/{folder}/", self.row.kind.name()),
            (None, _) => format!("/{}/", self.row.kind.name()),
        }
    }

    /// The whole id; `None` when there can be no such.
    pub(super) fn full_id(&self, id: &str) -> Option<Id> {
        if id.contains('/') {
            return None;
        }
        match &self.folder {
            Some(folder) => Id::parse(&format!("{folder}/{id}")),
            None => Id::parse(id),
        }
        .ok()
    }

    /// The id by the kind's rule, from the path or the body; the body then bears it.
    pub(super) fn id_of(&self, fields: &mut Map<String, Value>) -> Result<Id, Answer> {
        match self.row.id {
            IdRule::Username => {
                // The schema judges it before it is used.
                let username = fields.get("username").and_then(Value::as_str).unwrap_or_default();
                Ok(Id::parse(username).unwrap_or_else(|_| Id::from(0)))
            }
            IdRule::Plugin => {
                let id = self.id.ok_or_else(|| Answer::bad("missing plugin name"))?;
                fields.insert("id".into(), json!(id));
                self.full_id(id).ok_or_else(|| Answer::bad("invalid plugin name"))
            }
            IdRule::Manager => self.managed(fields),
            IdRule::Generic | IdRule::TrustDomain => self.generic(fields),
        }
    }

    fn generic(&self, fields: &mut Map<String, Value>) -> Result<Id, Answer> {
        let name = self.row.name;
        let inside = fields.get("id").map(|id| id_text(id).ok_or_else(unlawful)).transpose()?;
        let id = match (self.id, &inside) {
            (Some(id), None) => id.to_owned(),
            (Some(id), Some(inside)) if id == inside => id.to_owned(),
            (Some(_), Some(_)) => return Err(Answer::bad(format!("wrong {name} id"))),
            (None, Some(inside)) => inside.clone(),
            (None, None) => return Err(Answer::bad(format!("missing {name} id"))),
        };
        if let Some(id) = self.id {
            fields.insert("id".into(), json!(id));
        }
        if self.row.id == IdRule::TrustDomain {
            id.parse::<TrustDomain>().map_err(|why| {
                let text = "invalid configuration: property \"id\" validation failed: ";
                Answer::bad(format!("{text}{id:?} is not a trust domain's name: {why}"))
            })?;
        } else if id.len() > 64 {
            return Err(unlawful());
        }
        self.full_id(&id).ok_or_else(unlawful)
    }

    /// A manager's id is `<manager>/<id>`, in the body as well.
    fn managed(&self, fields: &mut Map<String, Value>) -> Result<Id, Answer> {
        let (Some(manager), Some(id)) = (&self.folder, self.id) else {
            return Err(Answer::bad("missing secret id"));
        };
        let whole = format!("{manager}/{id}");
        if let Some(inside) = fields.get("id")
            && id_text(inside).as_ref() != Some(&whole)
        {
            return Err(Answer::bad("wrong secret id"));
        }
        fields.insert("id".into(), json!(whole));
        if ManagerType::named(manager).is_none() {
            return Err(Answer::bad(format!("invalid secret manager: {manager}")));
        }
        self.full_id(id).ok_or_else(unlawful)
    }
}

fn unlawful() -> Answer {
    let text = "invalid configuration: property \"id\" validation failed: object matches none of the required";
    Answer::bad(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_row() {
        for kind in Kind::ALL {
            assert_eq!(row_of(kind).kind, kind);
        }
        assert_eq!(TABLE.len(), Kind::ALL.len());
    }

    #[test]
    fn no_id_climbs_into_another_kind_or_folder() {
        for segments in [
            &["routes", "a/credentials/b"][..],
            &["routes", "vault/1"],
            &["consumers", "bob/credentials/x", "credentials", "y"],
            &["consumers", "bob", "credentials", "a/credentials/b"],
            &["secrets", "vault", "../x"],
            &["secrets", "elsewhere", "1"],
            &["upstreams", ".."],
        ] {
            let target = Target::of(segments).unwrap();
            let id = target.full_id(target.id.unwrap());
            let lawful = id.is_none_or(|id| Kind::split_key(&target.row.kind.key(&id)).is_some());
            assert!(lawful, "{segments:?}");
        }
        let target = Target::of(&["secrets", "vault", "1", "token"]).unwrap();
        assert_eq!(target.full_id("1").unwrap().as_str(), "vault/1");
        assert_eq!((target.inside, target.listed()), (&["token"][..], "/secrets/vault/".into()));
        assert!(Target::of(&["credentials", "1"]).is_none() && Target::of(&["x"]).is_none());
    }
}
