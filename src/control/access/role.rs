//! What a caller may do: a role says which kinds it may write, a scope which resources of them it may see and touch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Id, Kind, Labels};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, admin keys as well.
    Admin,
    /// Reads, and writes what decides who may do what and by which secrets: policies, modes, workloads, trust domains,
    /// revocations, certificates, secret managers, consumers and their credentials.
    Security,
    /// Reads, and writes what moves traffic: routes, services, upstreams, plugins, consumers and the like.
    Operator,
    /// Reads.
    Viewer,
}

impl Role {
    /// As settings and answers spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Security => "security",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    /// May it write resources of this kind?
    pub fn may_write(self, kind: Kind) -> bool {
        // Each kind is named: a new one is nobody's but the admin's until somebody thinks about it.
        let (operator, security) = match kind {
            Kind::Routes
            | Kind::Services
            | Kind::Upstreams
            | Kind::ConsumerGroups
            | Kind::PluginConfigs
            | Kind::GlobalRules
            | Kind::PluginMetadata
            | Kind::Protos
            | Kind::StreamRoutes => (true, false),
            Kind::Consumers | Kind::Credentials => (true, true),
            Kind::Ssls
            | Kind::Secrets
            | Kind::IdentityPolicies
            | Kind::IdentityModes
            | Kind::Workloads
            | Kind::TrustDomains
            | Kind::Revocations => (false, true),
        };
        match self {
            Self::Admin => true,
            Self::Security => security,
            Self::Operator => operator,
            Self::Viewer => false,
        }
    }
}

/// Narrows what a role may see and touch. What is not given does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// These kinds alone, by their names in paths (`routes`, `upstreams`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Resources that bear all of these labels, before the change and after it. Kinds without labels are out of reach.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Resources whose ids begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_prefix: Option<String>,
}

impl Scope {
    /// Does it narrow nothing?
    pub fn is_open(&self) -> bool {
        self.kinds.is_empty() && self.labels.is_empty() && self.id_prefix.is_none()
    }

    /// Are its kinds kinds, and does it narrow where it says that it does?
    ///
    /// # Errors
    /// The sentence for the operator.
    pub fn check(&self) -> Result<(), String> {
        if let Some(stranger) = self.kinds.iter().find(|name| Kind::named(name).is_none()) {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            return Err(format!(
                "scope.kinds: {stranger:?} is no kind; expected some of {}",
                known.join(", ")
            ));
        }
        if self.id_prefix.as_ref().is_some_and(String::is_empty) {
            return Err("scope.id_prefix: it is empty, and would narrow nothing".into());
        }
        Ok(())
    }

    fn has_kind(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|name| name == kind.name())
    }

    fn has_id(&self, id: &Id) -> bool {
        self.id_prefix.as_ref().is_none_or(|prefix| id.as_str().starts_with(prefix))
    }

    fn has_labels(&self, value: &Value) -> bool {
        let borne = value.get("labels");
        self.labels.iter().all(|(name, wanted)| {
            borne.and_then(|labels| labels.get(name)).and_then(Value::as_str) == Some(wanted)
        })
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The key's name, or a SPIFFE ID.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// To what.
    pub scope: Scope,
}

impl Principal {
    /// Has it the role for all resources?
    pub fn is_unscoped(&self) -> bool {
        self.scope.is_open()
    }

    /// May it do everything?
    pub fn is_full_admin(&self) -> bool {
        self.role == Role::Admin && self.is_unscoped()
    }

    /// May it see resources of this kind at all?
    pub fn reads(&self, kind: Kind) -> bool {
        self.scope.has_kind(kind)
    }

    /// May it see this resource?
    pub fn sees(&self, kind: Kind, id: &Id, value: &Value) -> bool {
        self.scope.has_kind(kind) && self.scope.has_id(id) && self.scope.has_labels(value)
    }

    /// May it write resources of this kind at all?
    ///
    /// # Errors
    /// The sentence for the caller.
    pub fn writes(&self, kind: Kind) -> Result<(), String> {
        if !self.role.may_write(kind) {
            return Err(format!("role {} may not write {kind}", self.role.name()));
        }
        if !self.scope.has_kind(kind) {
            return Err(format!("{kind} are out of this key's scope"));
        }
        Ok(())
    }

    /// May it make `after` of `before`? `None` stands for a resource that is not there.
    ///
    /// # Errors
    /// The sentence for the caller.
    pub fn changes(
        &self,
        kind: Kind,
        id: &Id,
        before: Option<&Value>,
        after: Option<&Value>,
    ) -> Result<(), String> {
        self.writes(kind)?;
        if !self.scope.has_id(id) {
            let prefix = self.scope.id_prefix.as_deref().unwrap_or_default();
            return Err(format!(
                "{} {id} is out of this key's scope: ids that begin with {prefix:?}",
                kind.singular()
            ));
        }
        for (value, when) in [(before, "bears"), (after, "would bear")] {
            if let Some(value) = value
                && !self.scope.has_labels(value)
            {
                let labels: Vec<String> = self
                    .scope
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                return Err(format!(
                    "{} {id} {when} not the labels of this key's scope: {}",
                    kind.singular(),
                    labels.join(", ")
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn principal(role: Role, scope: Value) -> Principal {
        let scope = serde_json::from_value(scope).unwrap();
        Principal { name: "x".into(), role, scope }
    }

    #[test]
    fn roles_part_traffic_from_trust() {
        for kind in Kind::ALL {
            assert!(Role::Admin.may_write(kind) && !Role::Viewer.may_write(kind));
            let somebody = Role::Operator.may_write(kind) || Role::Security.may_write(kind);
            assert!(somebody, "{kind} is nobody's");
        }
        assert!(Role::Operator.may_write(Kind::Routes));
        assert!(!Role::Operator.may_write(Kind::IdentityPolicies));
        assert!(!Role::Operator.may_write(Kind::Ssls));
        assert!(Role::Security.may_write(Kind::Revocations));
        assert!(!Role::Security.may_write(Kind::Routes));
    }

    #[test]
    fn a_scope_narrows_by_kind_id_and_label_before_and_after() {
        let shop = principal(
            Role::Operator,
            json!({"kinds": ["routes"], "labels": {"team": "shop"}, "id_prefix": "shop-"}),
        );
        let (mine, id) =
            (json!({"labels": {"team": "shop", "x": "y"}}), Id::parse("shop-1").unwrap());
        let theirs = json!({"labels": {"team": "bank"}});
        let change = |kind, id: &Id, before, after| shop.changes(kind, id, before, after).is_ok();
        assert!(change(Kind::Routes, &id, None, Some(&mine)));
        assert!(change(Kind::Routes, &id, Some(&mine), None));
        assert!(!change(Kind::Routes, &id, Some(&theirs), Some(&mine)), "no taking over");
        assert!(!change(Kind::Routes, &id, Some(&mine), Some(&theirs)), "no giving away");
        assert!(!change(Kind::Routes, &id, None, Some(&json!({}))));
        assert!(!change(Kind::Routes, &Id::parse("bank-1").unwrap(), None, Some(&mine)));
        assert!(!change(Kind::Upstreams, &id, None, Some(&mine)));
        assert!(shop.sees(Kind::Routes, &id, &mine) && !shop.sees(Kind::Routes, &id, &theirs));
        assert!(!shop.is_unscoped() && principal(Role::Admin, json!({})).is_full_admin());
    }

    #[test]
    fn a_scope_that_narrows_nothing_it_names_is_refused() {
        let check = |scope: Value| serde_json::from_value::<Scope>(scope).unwrap().check();
        assert!(check(json!({"kinds": ["routes", "secrets"]})).is_ok());
        assert!(check(json!({"kinds": ["route"]})).unwrap_err().contains("\"route\" is no kind"));
        assert!(check(json!({"id_prefix": ""})).is_err());
    }
}
