//! Where secrets are kept that resources only refer to (`secrets`), and how a resource refers to one.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{Id, Invalid, Redacted};

/// What an address of a manager looks like, as in APISIX.
const URL: &str = r"^https?://([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?";

/// Which protocol a manager speaks: the first half of a manager's id, `vault/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManagerType {
    /// HashiCorp Vault, OpenBao.
    Vault,
    /// AWS Secrets Manager.
    Aws,
    /// Google Secret Manager.
    Gcp,
}

impl ManagerType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vault, Self::Aws, Self::Gcp];

    /// Its name in ids and references.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// The type that an id of the kind `secrets` names: that of `vault/1` is [`ManagerType::Vault`].
    pub fn of(id: &Id) -> Option<Self> {
        Self::named(id.as_str().split_once('/')?.0)
    }

    /// What a resource of this type must look like.
    pub fn schema(self) -> Value {
        match self {
            Self::Vault => super::schema_of::<VaultSecrets>(),
            Self::Aws => super::schema_of::<AwsSecrets>(),
            Self::Gcp => super::schema_of::<GcpSecrets>(),
        }
    }
}

impl fmt::Display for ManagerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A secret manager (`secrets`). Which one follows from its fields, and must be what its id says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SecretManager {
    /// HashiCorp Vault, OpenBao.
    Vault(VaultSecrets),
    /// AWS Secrets Manager.
    Aws(AwsSecrets),
    /// Google Secret Manager.
    Gcp(Box<GcpSecrets>),
}

impl SecretManager {
    /// Its protocol.
    pub const fn manager(&self) -> ManagerType {
        match self {
            Self::Vault(_) => ManagerType::Vault,
            Self::Aws(_) => ManagerType::Aws,
            Self::Gcp(_) => ManagerType::Gcp,
        }
    }

    /// Its own secrets may stand in the environment of the data planes; in another manager they may not, which would be asked in
    /// a circle.
    ///
    /// # Errors
    /// A field bears another reference; the sentence names it.
    pub fn check(&self) -> Result<(), Invalid> {
        let own: Vec<(&str, &str)> = match self {
            Self::Vault(vault) => vec![("token", vault.token.reveal())],
            Self::Aws(aws) => vec![
                ("access_key_id", &aws.access_key_id),
                ("secret_access_key", aws.secret_access_key.reveal()),
                ("session_token", aws.session_token.as_ref().map_or("", |token| token.reveal())),
            ],
            Self::Gcp(gcp) => {
                let account = gcp.auth_config.as_ref();
                vec![(
                    "auth_config.private_key",
                    account.map_or("", |one| one.private_key.reveal()),
                )]
            }
        };
        for (field, text) in own {
            match SecretReference::of(text) {
                None | Some(Ok(SecretReference::Environment { .. })) => {}
                Some(Ok(SecretReference::Managed { .. })) => {
                    return Err(Invalid(format!(
                        "{field}: a manager's own secrets are given as they are, or as $env://NAME"
                    )));
                }
                Some(Err(why)) => return Err(Invalid(format!("{field}: {why}"))),
            }
        }
        Ok(())
    }
}

impl JsonSchema for SecretManager {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretManager".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // One closed object of all fields, that is one of the three.
        let three = ManagerType::ALL.map(ManagerType::schema);
        let fields: serde_json::Map<String, Value> = three
            .iter()
            .filter_map(|schema| schema["properties"].as_object().cloned())
            .flatten()
            .collect();
        schemars::json_schema!({
            "type": "object",
            "properties": fields,
            "additionalProperties": false,
            "oneOf": three,
        })
    }
}

impl<'de> Deserialize<'de> for SecretManager {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let has = |field: &str| value.get(field).is_some();
        // By their own fields, so that an error is about the manager that was meant.
        let read = if has("uri") || has("prefix") || has("token") {
            serde_json::from_value(value).map(Self::Vault)
        } else if has("access_key_id") || has("secret_access_key") {
            serde_json::from_value(value).map(Self::Aws)
        } else if has("auth_config") || has("auth_file") {
            serde_json::from_value(value).map(Self::Gcp)
        } else {
            return Err(de::Error::custom(
                "no fields of a secret manager: expected those of vault (uri, prefix, token), of aws \
                 (access_key_id, secret_access_key), or of gcp (auth_config or auth_file)",
            ));
        };
        read.map_err(de::Error::custom)
    }
}

/// Vault's key-value engine, version 1 or 2: `$secret://vault/<id>/<path>/<key>` is `<key>` of what lies at `<prefix>/<path>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VaultSecrets {
    /// Its id below `vault`; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// Where Vault is: `https://vault:8200`.
    #[schemars(regex(pattern = URL))]
    pub uri: String,
    /// What all paths begin with: the engine's mount, and folders below it. The `data/` of version 2 may be left out.
    pub prefix: String,
    /// The token, or `$env://NAME`.
    pub token: Redacted<String>,
    /// The namespace, where Vault has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

/// AWS Secrets Manager: `$secret://aws/<id>/<name>/<key>` is `<key>` of the JSON object in the secret `<name>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsSecrets {
    /// Its id below `aws`; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The access key's id, or `$env://NAME`.
    pub access_key_id: String,
    /// The access key, or `$env://NAME`.
    pub secret_access_key: Redacted<String>,
    /// The token of temporary credentials, or `$env://NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Redacted<String>>,
    /// The region.
    #[serde(default = "default_region")]
    pub region: String,
    /// In place of `https://secretsmanager.<region>.amazonaws.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = URL))]
    pub endpoint_url: Option<String>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

fn default_region() -> String {
    "us-east-1".into()
}

/// Google Secret Manager: `$secret://gcp/<id>/<name>/<key>` is `<key>` of the JSON object in the secret's newest version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["auth_config"]}, {"required": ["auth_file"]}]))]
pub struct GcpSecrets {
    /// Its id below `gcp`; the key in the store is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_config: Option<GcpAccount>,
    /// A file with the service account, as Google gives it, on the machine of each data plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<String>,
    /// Whether the servers' certificates are verified. They always are: `false` is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssl_verify: Option<Verified>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_time: Option<i64>,
    /// Written by the server, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_time: Option<i64>,
}

/// `true`, the only value of a switch that APISIX has for turning verification off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verified(bool);

impl<'de> Deserialize<'de> for Verified {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match bool::deserialize(deserializer)? {
            true => Ok(Self(true)),
            false => Err(de::Error::custom(
                "ssl_verify: servers of secrets are always verified; name their authority in the setting secrets.ca",
            )),
        }
    }
}

impl JsonSchema for Verified {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Verified".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "boolean", "enum": [true]})
    }
}

/// A Google service account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GcpAccount {
    /// Its name.
    pub client_email: String,
    /// Its RSA private key as PEM (PKCS#8), or `$env://NAME`.
    pub private_key: Redacted<String>,
    /// The project whose secrets are meant.
    pub project_id: String,
    /// Who exchanges our signed claim for an access token.
    #[serde(default = "default_token_uri")]
    #[schemars(regex(pattern = URL))]
    pub token_uri: String,
    /// What the token is for.
    #[serde(default = "default_scope")]
    pub scope: Vec<String>,
    /// Where secrets are read.
    #[serde(default = "default_entries_uri")]
    #[schemars(regex(pattern = URL))]
    pub entries_uri: String,
}

fn default_token_uri() -> String {
    "https://oauth2.googleapis.com/token".into()
}

fn default_scope() -> Vec<String> {
    vec!["https://www.googleapis.com/auth/cloud-platform".into()]
}

fn default_entries_uri() -> String {
    "https://secretmanager.googleapis.com/v1".into()
}

/// A text of a resource that stands for a secret kept elsewhere.
///
/// `$secret://<manager>/<id>/<path>/<key>`, or `$env://NAME` with an optional `/key` of the JSON object that the variable holds.
/// AWS and Google keep plain texts as well: `$secret://aws/<id>/<name>` is all of one. The scheme is read without regard to
/// case, as in APISIX (`$ENV://`).
/// ```
/// # use wardgate::model::SecretReference;
/// let reference = SecretReference::of("$secret://vault/1/jack/auth-key").unwrap().unwrap();
/// assert_eq!(reference.to_string(), "$secret://vault/1/jack/auth-key");
/// assert!(SecretReference::of("no reference").is_none());
/// assert!(SecretReference::of("$secret://nobody/1/jack/key").unwrap().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretReference {
    /// What a manager keeps.
    Managed {
        /// The manager's id, `vault/1`.
        manager: Id,
        /// What the manager calls the secret.
        path: String,
        /// The field of the secret when it is an object; all of its text when there is none.
        key: Option<String>,
    },
    /// A variable of the data plane's environment.
    Environment {
        /// The variable's name.
        name: String,
        /// The field, when the variable holds a JSON object.
        key: Option<String>,
    },
}

impl SecretReference {
    /// Reads a text; `None` when it is an ordinary one.
    ///
    /// # Errors
    /// It begins like a reference and is none; the sentence says what was expected.
    pub fn of(text: &str) -> Option<Result<Self, String>> {
        let rest = |scheme: &str| {
            let head = text.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
        };
        match (rest("$secret://"), rest("$env://")) {
            (Some(rest), _) => Some(Self::managed(rest).ok_or_else(|| {
                "expected $secret://<vault, aws or gcp>/<id>/<path>/<key>, or for aws and gcp \
                 $secret://<aws or gcp>/<id>/<name>"
                    .to_owned()
            })),
            (None, Some(rest)) => Some(
                Self::environment(rest)
                    .ok_or_else(|| "expected $env://NAME or $env://NAME/key".to_owned()),
            ),
            (None, None) => None,
        }
    }

    /// The first text anywhere in a value that begins like a reference.
    pub fn first_in(value: &Value) -> Option<&str> {
        match value {
            Value::String(text) => Self::of(text).map(|_| text.as_str()),
            Value::Array(items) => items.iter().find_map(Self::first_in),
            Value::Object(members) => members.values().find_map(Self::first_in),
            _ => None,
        }
    }

    fn managed(rest: &str) -> Option<Self> {
        let (manager, rest) = rest.split_once('/')?;
        let (id, rest) = rest.split_once('/')?;
        let (path, key) = match (ManagerType::named(manager)?, rest.rsplit_once('/')) {
            (_, Some((path, key))) => (path, Some(key)),
            // What Vault keeps is always an object.
            (ManagerType::Vault, None) => return None,
            (ManagerType::Aws | ManagerType::Gcp, None) => (rest, None),
        };
        let manager = Id::parse(&format!("{manager}/{id}")).ok()?;
        // A path that climbs would leave the manager's prefix.
        let climbs = path.split('/').any(|part| matches!(part, "" | "." | ".."));
        let odd = rest.chars().any(|one| one.is_control() || matches!(one, '?' | '#' | '%' | '\\'));
        (!climbs && !odd && key.is_none_or(|key| !key.is_empty())).then(|| Self::Managed {
            manager,
            path: path.to_owned(),
            key: key.map(str::to_owned),
        })
    }

    fn environment(rest: &str) -> Option<Self> {
        let (name, key) = match rest.split_once('/') {
            Some((name, key)) => (name, Some(key)),
            None => (rest, None),
        };
        let lawful = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        (!name.is_empty() && name.bytes().all(lawful) && key.is_none_or(|key| !key.is_empty()))
            .then(|| Self::Environment { name: name.to_owned(), key: key.map(str::to_owned) })
    }

    /// The manager that it names, if it names one.
    pub const fn manager(&self) -> Option<&Id> {
        match self {
            Self::Managed { manager, .. } => Some(manager),
            Self::Environment { .. } => None,
        }
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed { manager, path, key: None } => write!(f, "$secret://{manager}/{path}"),
            Self::Managed { manager, path, key: Some(key) } => {
                write!(f, "$secret://{manager}/{path}/{key}")
            }
            Self::Environment { name, key: None } => write!(f, "$env://{name}"),
            Self::Environment { name, key: Some(key) } => write!(f, "$env://{name}/{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<SecretManager, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_manager_is_told_by_its_fields_and_unknown_ones_are_refused_by_name() {
        let vault = json!({"uri": "https://v:8200", "prefix": "kv/gate", "token": "t"});
        assert_eq!(read(vault.clone()).unwrap().manager(), ManagerType::Vault);
        let aws = json!({"access_key_id": "a", "secret_access_key": "b"});
        let SecretManager::Aws(aws) = read(aws).unwrap() else { panic!("aws") };
        assert_eq!(aws.region, "us-east-1");
        let account = json!({"client_email": "a@b", "private_key": "k", "project_id": "p"});
        let gcp = read(json!({"auth_config": account, "ssl_verify": true})).unwrap();
        assert_eq!(gcp.manager(), ManagerType::Gcp);
        let mut odd = vault;
        odd["tokn"] = json!(1);
        assert!(read(odd).unwrap_err().contains("unknown field `tokn`"));
        let open = read(json!({"auth_file": "/a", "ssl_verify": false})).unwrap_err();
        assert!(open.contains("secrets.ca"), "{open}");
        assert!(read(json!({})).unwrap_err().contains("expected those of vault"));
        let with = |token: &str| {
            read(json!({"uri": "https://v:8200", "prefix": "kv", "token": token})).unwrap().check()
        };
        assert_eq!((with("hvs.x"), with("$env://T")), (Ok(()), Ok(())));
        for wrong in ["$secret://vault/2/a/b", "$env://"] {
            assert!(with(wrong).unwrap_err().0.starts_with("token: "), "{wrong}");
        }
        assert!(format!("{:?}", gcp).contains("••••"));
    }

    #[test]
    fn references_are_read_strictly_and_their_scheme_without_regard_to_case() {
        let of = |text: &str| SecretReference::of(text).unwrap();
        assert_eq!(of("$ENV://KEY").unwrap(), of("$env://KEY").unwrap());
        assert_eq!(of("$env://KEY/a").unwrap().to_string(), "$env://KEY/a");
        let deep = of("$secret://aws/prod/a/b/c").unwrap();
        assert_eq!(deep.manager().unwrap().as_str(), "aws/prod");
        assert!(
            matches!(&deep, SecretReference::Managed { path, key: Some(key), .. } if path == "a/b" && key == "c")
        );
        assert_eq!(of("$secret://gcp/1/whole").unwrap().to_string(), "$secret://gcp/1/whole");
        for bad in [
            "$secret://",
            "$secret://vault",
            "$secret://vault/1",
            "$secret://vault/1/key",
            "$secret://vault/1/../x/key",
            "$secret://vault/1/a/",
            "$secret://vault/1/a?b/key",
            "$secret://vault//a/key",
            "$env://",
            "$env://A B",
            "$env://A/",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        for none in ["", "$", "$secret", "secret://vault/1/a/b", " $env://A", "ä$env://A"] {
            assert!(SecretReference::of(none).is_none(), "{none}");
        }
    }
}
