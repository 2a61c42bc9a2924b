//! Texts that lie in Redis under their keys.

use super::answer::Answer;
use super::error::Error;
use super::script::Redis;

impl Redis {
    /// The text under a key. It is written by scripts.
    ///
    /// # Errors
    /// There is no answer in time, or something else lies there.
    pub async fn text(&self, key: &[u8]) -> Result<Option<String>, Error> {
        match self.ask(key, &[b"GET", key]).await? {
            Answer::Nothing => Ok(None),
            Answer::Text(text) => Ok(Some(text)),
            _ => Err(Error::Protocol("the answer about a text".to_owned())),
        }
    }
}
