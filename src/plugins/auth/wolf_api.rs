//! What callers may ask of a Wolf server through the gateway: a token for name and password, another password, who they are. `public-api`
//! offers it.

use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::asking::lawful;
use super::entrance::{directory, found};
use super::wolf_rbac::{Application, WolfRbac, presented};
use crate::pipeline::{Exchange, Fault, Plugin as _, Question, Reply, arguments};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plugins) enum WolfApi {
    Login,
    ChangePassword,
    UserInfo,
}

/// Bytes of a body with a name and a password.
const MAX_BODY: u64 = 64 << 10;
const FAILED: &str = "request to wolf-server failed!";

impl WolfApi {
    /// The one at this path.
    pub(in crate::plugins) fn at(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/apisix/plugin/wolf-rbac/")? {
            "login" => Self::Login,
            "change_pwd" => Self::ChangePassword,
            "user_info" => Self::UserInfo,
            _ => return None,
        })
    }

    /// Asks the Wolf server of the application that the caller names.
    ///
    /// # Errors
    /// The caller's body cannot be read.
    pub(in crate::plugins) async fn answer(self, exchange: &Exchange) -> Result<Reply, Fault> {
        let method = match self {
            Self::Login => "POST",
            Self::ChangePassword => "PUT",
            Self::UserInfo => "GET",
        };
        if exchange.request.method() != method {
            return Ok(Reply::empty(404));
        }
        match self {
            Self::Login => login(exchange).await,
            Self::ChangePassword => change_password(exchange).await,
            Self::UserInfo => user_info(exchange).await,
        }
    }
}

async fn login(exchange: &Exchange) -> Result<Reply, Fault> {
    let Some(mut told) = told(exchange).await? else { return Ok(refused(400, "invalid request")) };
    let Some(application) = told.get("appid").and_then(Value::as_str).map(str::to_owned) else {
        return Ok(refused(400, "appid is missing"));
    };
    let known = found::<Application>(&*directory(exchange)?, WolfRbac::NAME, &application);
    let Some((_, ready)) = known else { return Ok(refused(400, "appid not found")) };
    // Wolf's own spelling.
    told.insert("appID".into(), application.clone().into());
    let mut answer = match ready.do_once(post("/wolf/rbac/login.rest", told)).await {
        Ok(answer) => answer,
        Err(reply) => return Ok(*reply),
    };
    let Some(token) = answer["data"]["token"].as_str() else { return Ok(refused(500, FAILED)) };
    let token = format!("V1#{application}#{token}");
    let user = answer["data"]["userInfo"].take();
    Ok(Reply::json(200, &json!({ "rbac_token": token, "user_info": user })))
}

async fn change_password(exchange: &Exchange) -> Result<Reply, Fault> {
    let Some(told) = told(exchange).await? else { return Ok(refused(400, "invalid request")) };
    let (ready, token) = match caller(exchange)? {
        Ok(caller) => caller,
        Err(reply) => return Ok(*reply),
    };
    let mut question = post("/wolf/rbac/change_pwd", told);
    question.headers.insert("x-rbac-token", token);
    Ok(match ready.do_once(question).await {
        Ok(_) => Reply::json(200, &json!({ "message": "success to change password" })),
        Err(reply) => *reply,
    })
}

async fn user_info(exchange: &Exchange) -> Result<Reply, Fault> {
    let (ready, token) = match caller(exchange)? {
        Ok(caller) => caller,
        Err(reply) => return Ok(*reply),
    };
    let mut question = Question::get("/wolf/rbac/user_info");
    question.headers.insert("x-rbac-token", token);
    Ok(match ready.do_once(question).await {
        Ok(mut answer) => {
            Reply::json(200, &json!({ "user_info": answer["data"]["userInfo"].take() }))
        }
        Err(reply) => *reply,
    })
}

/// What the body says: JSON where its type says so, a form otherwise.
async fn told(exchange: &Exchange) -> Result<Option<Map<String, Value>>, Fault> {
    let body = exchange.read_body(MAX_BODY).await?;
    let media = exchange.request.text("content-type").unwrap_or_default();
    if media.trim_start().to_ascii_lowercase().starts_with("application/json") {
        return Ok(serde_json::from_slice(&body).ok());
    }
    let Ok(text) = std::str::from_utf8(&body) else { return Ok(None) };
    let field = |(name, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
        (name.into_owned(), Value::String(value.into_owned()))
    };
    Ok(Some(arguments(text).map(field).collect()))
}

/// The application that the caller's token names, and Wolf's part of the token.
#[expect(clippy::type_complexity, reason = "who calls, or the answer to nobody")]
fn caller(
    exchange: &Exchange,
) -> Result<Result<(std::sync::Arc<Application>, HeaderValue), Box<Reply>>, Fault> {
    let refuse = |message: &str| Ok(Err(Box::new(refused(401, message))));
    let Some(token) = presented(exchange) else { return refuse("Missing rbac token in request") };
    let mut parts = token.splitn(3, '#');
    let (Some("V1"), Some(application), Some(wolf)) = (parts.next(), parts.next(), parts.next())
    else {
        return refuse("invalid rbac token: parse failed");
    };
    let Some(wolf) = lawful(wolf.as_bytes()) else {
        return refuse("invalid rbac token: parse failed");
    };
    let known = found::<Application>(&*directory(exchange)?, WolfRbac::NAME, application);
    Ok(match known {
        Some((_, ready)) => Ok((ready, wolf)),
        None => Err(Box::new(refused(400, "appid not found"))),
    })
}

fn post(path: &str, told: Map<String, Value>) -> Question {
    let body = Value::Object(told).to_string();
    let kind = "application/json; charset=utf-8";
    Question { is_once: true, ..Question::post(path, kind, body) }
}

fn refused(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({ "message": message }))
}

impl Application {
    /// Asks once; the answer, when Wolf is content. What it says otherwise is for the log.
    async fn do_once(&self, question: Question) -> Result<Value, Box<Reply>> {
        let failed = |status: u16, why: &str| {
            tracing::warn!(server = %self.server.name(), %why, "wolf-rbac is refused");
            Err(Box::new(refused(status, FAILED)))
        };
        match self.server.ask(&question).await {
            Err(why) => failed(500, &why.told()),
            Ok(answer) if answer.status != 200 => failed(500, &format!("status {}", answer.status)),
            Ok(answer) => match serde_json::from_slice::<Value>(&answer.body) {
                Ok(body) if body["ok"] == Value::Bool(true) => Ok(body),
                // As in APISIX: what Wolf refuses has status 200 here as there.
                Ok(body) => failed(200, body["reason"].as_str().unwrap_or_default()),
                Err(why) => failed(500, &why.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_three() {
        for (path, api) in [
            ("/apisix/plugin/wolf-rbac/login", Some(WolfApi::Login)),
            ("/apisix/plugin/wolf-rbac/change_pwd", Some(WolfApi::ChangePassword)),
            ("/apisix/plugin/wolf-rbac/user_info", Some(WolfApi::UserInfo)),
            ("/apisix/plugin/wolf-rbac/", None),
            ("/apisix/plugin/wolf-rbac/login/", None),
            ("/apisix/admin/routes", None),
            ("login", None),
        ] {
            assert_eq!(WolfApi::at(path), api, "{path}");
        }
    }
}
