//! `Script`: what Redis does in one step; `Redis`: whoever does it.

use std::sync::Arc;

use super::answer::Answer;
use super::error::Error;
use super::{RedisCluster, RedisServer, Sentinels};
use crate::rt::crypto::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

/// A script in Lua that answers with whole numbers.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    /// By which Redis knows it.
    hash: String,
}

impl Script {
    /// The script of this text.
    pub fn new(text: &'static str) -> Self {
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        context.update(text.as_bytes());
        Self { text, hash: hex::encode(context.finish()) }
    }

    /// The question; the whole text only where the server does not know the script yet.
    pub(super) fn question<'a>(
        &'a self,
        whole: bool,
        key: &'a [u8],
        arguments: &'a [&'a [u8]],
    ) -> Vec<&'a [u8]> {
        let (command, script) = match whole {
            true => (&b"EVAL"[..], self.text),
            false => (&b"EVALSHA"[..], &*self.hash),
        };
        let mut parts = vec![command, script.as_bytes(), b"1", key];
        parts.extend_from_slice(arguments);
        parts
    }
}

/// Whoever runs scripts.
#[derive(Clone, Debug)]
pub enum Redis {
    /// One server.
    Server(Arc<RedisServer>),
    /// The cluster's node that has the key.
    Cluster(Arc<RedisCluster>),
    /// The server that sentinels name.
    Sentinels(Arc<Sentinels>),
}

impl Redis {
    /// Runs a script on one key, in one step whoever else does.
    ///
    /// # Errors
    /// There is no answer in time, or none of whole numbers.
    pub async fn run(
        &self,
        script: &Script,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<Vec<i64>, Error> {
        let known = self.ask(key, &script.question(false, key, arguments)).await;
        let answer = match known {
            Err(why) if why.kind() == "NOSCRIPT" => {
                self.ask(key, &script.question(true, key, arguments)).await?
            }
            answered => answered?,
        };
        let number = |part: Answer| match part {
            Answer::Number(number) => Some(number),
            _ => None,
        };
        match answer {
            Answer::List(parts) => parts.into_iter().map(number).collect(),
            answer => number(answer).map(|number| vec![number]),
        }
        .ok_or_else(|| Error::Protocol("the script's answer".to_owned()))
    }

    pub(super) async fn ask(&self, key: &[u8], parts: &[&[u8]]) -> Result<Answer, Error> {
        match self {
            Self::Server(server) => server.ask(parts).await,
            Self::Cluster(cluster) => cluster.ask(key, parts).await,
            Self::Sentinels(sentinels) => sentinels.ask(parts).await,
        }
    }
}
