//! Policies as they stand, from the Admin API.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::cli::text::safe;
use crate::model::Id;

/// Reads a policy as it stands from the Admin API.
pub(super) async fn read_policy(admin: &str, key: Option<&str>, id: &str) -> anyhow::Result<Value> {
    const WITHIN: Duration = Duration::from_secs(5);
    let id = Id::parse(id).map_err(|_| anyhow::anyhow!("the record names no policy: {id:?}"))?;
    let uri: http::Uri = admin
        .parse()
        .with_context(|| format!("--admin {admin} is no URL; expected http://HOST:PORT"))?;
    if uri.scheme_str() != Some("http") {
        bail!(
            "--admin {admin}: only http:// is understood here; forward the Admin API's port to this machine"
        );
    }
    let authority = uri.authority().context("--admin names no host")?;
    let address = (authority.host(), authority.port_u16().unwrap_or(80));
    let ask = async {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot reach the Admin API at {admin}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = crate::rt::spawn(async move {
            let _ = connection.await;
        });
        let mut request = http::Request::get(format!("/apisix/admin/identity_policies/{id}"))
            .header(http::header::HOST, authority.as_str());
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 4 << 20).collect().await;
        driver.abort();
        let body = body
            .map_err(|error| anyhow::anyhow!("cannot read the Admin API's answer: {error}"))?
            .to_bytes();
        match status.as_u16() {
            200 => {}
            401 => bail!("the Admin API refused the key: give it with --key or WARDGATE_KEY"),
            404 => bail!("policy {id} does not exist any more"),
            other => {
                bail!("the Admin API answered {other}: {}", safe(&String::from_utf8_lossy(&body)))
            }
        }
        let mut answer: Value =
            serde_json::from_slice(&body).context("the Admin API's answer is no JSON")?;
        Ok(answer["value"].take())
    };
    tokio::time::timeout(WITHIN, ask).await.context("the Admin API did not answer within 5 s")?
}
