//! The store as it rests, for who may do everything: a backup while the control plane runs, and sealing anew after a new key.

use http::StatusCode;
use serde_json::json;

use super::ControlPlane;
use super::answer::Answer;
use crate::store::image::is_under;

impl ControlPlane {
    /// `POST /apisix/admin/store/backup` and `.../store/reseal`. A POST, so that reading keys cannot.
    pub(super) async fn at_rest(&self, what: &str) -> Result<Answer, Answer> {
        match what {
            "backup" => {
                let mut image = self.store.image(&self.prefix).await?;
                image.entries.retain(|entry| is_under(&self.prefix, &entry.key));
                let mut bytes = image.to_bytes(&self.prefix)?;
                // An answer ends with a line feed of its own.
                bytes.pop();
                let text = String::from_utf8(bytes).map_err(|_| Answer::bad("not UTF-8"))?;
                Ok(Answer::json(StatusCode::OK, text.into()))
            }
            "reseal" => {
                let done = self.store.reseal().await?;
                Ok(Answer::ok(json!({ "sealed": done.sealed, "closed": done.closed })))
            }
            _ => Err(Answer::error(StatusCode::NOT_FOUND, "not found")),
        }
    }
}
