//! What a plugin is and what it is given. A door: it defines nothing itself.

mod body;
mod build;
mod cache;
mod chain;
mod destination;
mod exchange;
mod expr;
mod fault;
mod fields;
mod head;
mod hooks;
mod inner;
mod ldap;
mod networks;
mod outbound;
mod path;
mod pattern;
mod plugin;
mod redis;
mod request_body;
#[cfg(test)]
pub(crate) mod tests;
mod variables;

pub use crate::identity::{
    JwtSvid, MAX_LEEWAY, SpiffeId, SpiffePattern, TokenRules, TrustDomain, strict_json,
};
pub use crate::model::{Id, Invalid, Kind, Labels, PluginMeta, Redacted, Upstream};
pub use crate::observe::{Counter, Histogram, MetricKind, Registry};
pub use body::{BodyFilter, BodyFilters, BodySource, BodyStream, BodyWatch};
pub use build::{Build, Kept};
pub use cache::{
    Asking, CacheKey, CacheSettings, CacheStrategy, CacheZone, CacheZones, Caching, CachingRules,
    InvalidZone, ZoneSettings,
};
pub use chain::{Chain, Link};
pub use destination::{Destination, NoTargets, Target, Targets};
pub use exchange::{
    Client, Consumer, Directory, Exchange, ExternalUser, Introduced, Notes, Ready, Refusal,
    RequestId, ResponseSource, Rewritten, RouteInfo, Times, Vouched,
};
pub use expr::Expr;
pub use fault::{Fault, Flow, Reply, Side};
pub use fields::{FieldValue, field_name};
pub use head::{Field, Head, Known};
pub use hooks::{
    Access, Answered, Encode, Forward, Hooks, HooksOf, Log, ResponseBody, ResponseHead, Rewrite,
    Taken,
};
pub use inner::{Inner, InnerAnswer, InnerAnswers, InnerRequest, Within};
pub use ldap::{LdapAccess, LdapError, LdapFound, LdapSearch, LdapServer, LdapTls, dn_escaped};
pub use networks::Networks;
pub use outbound::{Answer, Question, Server, Terms, Unanswered};
pub use path::{
    PathRules, argument, arguments, encode_path, encode_unsafe, host_of, normal_path,
    without_argument,
};
pub use pattern::{Pattern, PatternOptions, Replacement};
pub use plugin::{Check, Credential, Entry, MakeReady, Plugin};
pub use redis::{
    Redis, RedisAccess, RedisCluster, RedisError, RedisServer, Script, Sentinels,
    slot_of as redis_slot,
};
pub use request_body::{ReadBody, RequestBody, Unread};
pub use variables::{Reading, Template, Variable};
