//! The auth plugins over real sockets, a file each: an ingress that runs them, callers, and the application behind it.
#![expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]

mod asking;
mod basic_auth;
mod code_logins;
mod hmac_auth;
mod identity_provider;
mod jwe_decrypt;
mod jwt_auth;
mod keycloak;
mod ldap;
mod multi_auth;
mod openid_connect;
mod openid_login;
mod real_opa;
mod restrictions;
mod settings;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::world::{Answer, App, Process, World, send};

/// An ingress with routes, consumers and what else is declared, before an application that tells what it got.
struct Edge {
    _world: World,
    ingress: Process,
    app: App,
}

/// Routes by their path, each with its plugins, before the application.
fn routes(app: &App, plugins: &[(&str, Value)]) -> Value {
    let route = |(path, plugins): &(&str, Value)| {
        let id = path.trim_matches(['/', '*']).replace('/', "-");
        let id = if id.is_empty() { "root".to_owned() } else { id };
        json!({ "id": id, "uri": path, "plugins": plugins, "upstream": {
            "nodes": { app.address.to_string(): 1 } } })
    };
    plugins.iter().map(route).collect()
}

impl Edge {
    /// Routes with plugins, and whatever `more` declares.
    fn new(plugins: &[(&str, Value)], more: &Value) -> Self {
        Self::in_environment(&[], plugins, more)
    }

    /// The same, with this in the ingress' environment.
    fn in_environment(
        environment: &[(&'static str, &str)],
        plugins: &[(&str, Value)],
        more: &Value,
    ) -> Self {
        let (world, app) = (World::new(), App::echo("app"));
        let mut resources = json!({ "routes": routes(&app, plugins) });
        for (kind, all) in more.as_object().unwrap() {
            resources[kind] = all.clone();
        }
        let ingress = world.ingress().resources(&resources);
        let ingress = environment.iter().fold(ingress, |part, (name, value)| part.env(name, value));
        let ingress = ingress.start();
        Self { _world: world, ingress, app }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        send(self.ingress.address("ingress"), method, path, headers, body.to_owned()).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", path, headers, "").await
    }
}

/// A consumer with one plugin's credential.
fn consumer(name: &str, plugin: &str, credential: Value) -> Value {
    json!({ "username": name, "plugins": { plugin: credential } })
}

impl Answer {
    /// The message of a refusal.
    fn message(&self) -> (u16, String) {
        (self.status, self.json()["message"].as_str().unwrap_or_default().to_owned())
    }

    /// What the application saw of a header.
    fn seen(&self, header: &str) -> Option<String> {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["headers"].get(header).map(|value| value.as_str().unwrap().to_owned())
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
