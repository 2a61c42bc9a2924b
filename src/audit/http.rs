//! Output `http`: batches of records by POST, as NDJSON or as an array.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::destination::{Destination, Line, Undelivered};
use super::mapping::{Format, Here};
use super::settings::{Body, HttpSettings};
use super::web::{Headers, Post, Target, Verdict};
use crate::identity::Identity;
use crate::rt::Live;

/// POSTs batches.
pub(super) struct HttpOutput {
    name: String,
    format: Format,
    here: Here,
    body: Body,
    post: Post,
}

impl HttpOutput {
    /// # Errors
    /// The settings cannot be; the sentence names the field.
    pub(super) fn new(
        name: &str,
        format: Format,
        here: &Here,
        settings: &HttpSettings,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        let target = Target::parse("http.url", &settings.url, [80, 443])?;
        let content_type = match settings.body {
            Body::Ndjson => "application/x-ndjson",
            Body::Json => "application/json",
        };
        let within = Duration::from_secs(settings.timeout_seconds);
        let headers = Headers::new(&settings.headers)?;
        let post = Post::new(target, headers, content_type, within, &settings.tls, identity);
        let post = post.map_err(|why| format!("http.{why}"))?;
        Ok(Self { name: name.to_owned(), format, here: here.clone(), body: settings.body, post })
    }

    fn body(&self, records: &[Line]) -> Result<Bytes, serde_json::Error> {
        let mut body = String::with_capacity(records.iter().map(|one| one.text.len() + 1).sum());
        for (number, record) in records.iter().enumerate() {
            let told = self.format.tell(&record.text, &self.here)?;
            match self.body {
                Body::Ndjson => {
                    body.push_str(&told);
                    body.push('\n');
                }
                Body::Json => {
                    body.push(if number == 0 { '[' } else { ',' });
                    body.push_str(&told);
                }
            }
        }
        if self.body == Body::Json {
            body.push(']');
        }
        Ok(body.into())
    }
}

#[async_trait]
impl Destination for HttpOutput {
    fn name(&self) -> &str {
        &self.name
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        let mut parts = Parts::of(records);
        while let Some(part) = parts.next() {
            let verdict = match self.body(part) {
                Ok(body) => self.post.send(body).await?.verdict(),
                Err(error) => Verdict::Refused(error.to_string()),
            };
            parts.is(verdict)?;
        }
        Ok(())
    }
}

/// A batch in parts: whole at first, and halved as long as it is refused, until the record that is meant stands alone.
pub(super) struct Parts<'r> {
    rest: &'r [Line],
    size: usize,
}

impl<'r> Parts<'r> {
    pub(super) fn of(records: &'r [Line]) -> Self {
        Self { rest: records, size: records.len() }
    }

    /// What is to be sent now.
    pub(super) fn next(&self) -> Option<&'r [Line]> {
        let size = self.size.min(self.rest.len());
        (size > 0).then(|| &self.rest[..size])
    }

    /// What became of it.
    pub(super) fn is(&mut self, verdict: Verdict) -> Result<(), Undelivered> {
        let size = self.size.min(self.rest.len());
        match verdict {
            Verdict::Taken => {
                self.rest = &self.rest[size..];
                Ok(())
            }
            Verdict::Later(why) => Err(why),
            Verdict::Refused(why) if size <= 1 => {
                Err(Undelivered::Never { seq: self.rest[0].seq, why })
            }
            Verdict::Refused(_) => {
                self.size = size.div_ceil(2);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_refused_is_found_by_halving_and_those_before_it_arrive() {
        let line = |seq| Line { seq, text: "{}".into() };
        for count in 1..20_u64 {
            for guilty in 1..=count {
                let records: Vec<Line> = (1..=count).map(line).collect();
                let (mut parts, mut taken) = (Parts::of(&records), Vec::new());
                let refused = loop {
                    let part = parts.next().expect("it comes to the guilty one");
                    let verdict = match part.iter().any(|record| record.seq == guilty) {
                        true => Verdict::Refused("bad".into()),
                        false => {
                            taken.extend(part.iter().map(|record| record.seq));
                            Verdict::Taken
                        }
                    };
                    if let Err(error) = parts.is(verdict) {
                        break error;
                    }
                };
                assert!(matches!(refused, Undelivered::Never { seq, .. } if seq == guilty));
                assert_eq!(taken, (1..guilty).collect::<Vec<_>>(), "{guilty} of {count}");
            }
        }
    }
}
