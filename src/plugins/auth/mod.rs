//! Who calls.

use crate::pipeline::Entry;

mod asking;
mod attach_consumer_label;
mod authz_casdoor;
mod authz_keycloak;
mod badge;
mod basic_auth;
mod browser;
mod cas_auth;
mod client;
mod cookies;
mod dingtalk_auth;
mod entrance;
mod feishu_auth;
mod forward_auth;
mod hmac_auth;
mod jose;
mod jwe_decrypt;
mod jwt_auth;
mod key_auth;
mod ldap;
mod ldap_auth;
mod ldap_auth_advanced;
mod multi_auth;
mod opa;
mod openid_connect;
mod provider;
mod session;
mod session_store;
mod signing;
mod spiffe_auth;
mod spiffe_jwt;
pub(super) mod wolf_api;
mod wolf_rbac;

pub(super) const ROWS: &[Entry] = &[
    Entry::of::<attach_consumer_label::AttachConsumerLabel>(),
    Entry::of::<authz_casdoor::AuthzCasdoor>(),
    Entry::of::<authz_keycloak::AuthzKeycloak>(),
    Entry::of::<basic_auth::BasicAuth>().ready_credential::<basic_auth::Credential>("username"),
    Entry::of::<cas_auth::CasAuth>(),
    Entry::of::<dingtalk_auth::DingtalkAuth>(),
    Entry::of::<feishu_auth::FeishuAuth>(),
    Entry::of::<forward_auth::ForwardAuth>(),
    Entry::of::<hmac_auth::HmacAuth>().ready_credential::<hmac_auth::Credential>("key_id"),
    Entry::of::<jwe_decrypt::JweDecrypt>().ready_credential::<jwe_decrypt::Credential>("key"),
    Entry::of::<jwt_auth::JwtAuth>().ready_credential::<jwt_auth::Credential>("key"),
    Entry::of::<key_auth::KeyAuth>().credential::<key_auth::Credential>("key"),
    Entry::of::<ldap_auth::LdapAuth>().ready_credential::<ldap::Credential>("user_dn"),
    Entry::of::<ldap_auth_advanced::LdapAuthAdvanced>()
        .ready_credential::<ldap::Credential>("user_dn"),
    Entry::of::<multi_auth::MultiAuth>().authenticating(),
    Entry::of::<opa::Opa>(),
    Entry::of::<openid_connect::OpenidConnect>(),
    Entry::of::<spiffe_auth::SpiffeAuth>()
        .credential_by_identity::<spiffe_auth::Credential>("spiffe_id"),
    Entry::of::<spiffe_jwt::SpiffeJwt>().finding_by("spiffe-auth"),
    Entry::of::<wolf_rbac::WolfRbac>().ready_credential::<wolf_rbac::Credential>("appid"),
];
