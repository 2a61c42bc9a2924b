//! Output `otlp`: OpenTelemetry logs, by gRPC or by HTTP with protobuf.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Extensions;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde_json::Value;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::destination::{Destination, Line, Undelivered};
use super::http::Parts;
use super::mapping::{Format, Here, open_telemetry};
use super::otlp_proto::any_value::Value as Kind;
use super::otlp_proto::logs_service_client::LogsServiceClient;
use super::otlp_proto::{
    AnyValue, ArrayValue, ExportLogsServiceRequest, ExportLogsServiceResponse,
    InstrumentationScope, KeyValue, KeyValueList, LogRecord, Resource, ResourceLogs, ScopeLogs,
};
use super::remote::{Basis, Remote};
use super::settings::{OtlpProtocol, OtlpSettings, OutputTls};
use super::web::{Headers, Post, Target, Verdict};
use crate::identity::Identity;
use crate::mtls::Alpn;
use crate::rt::{Live, causes, unix_millis};

/// How often a connection is asked whether it still is one.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Exports logs.
pub(super) struct OtlpOutput {
    name: String,
    format: Format,
    here: Here,
    resource: Resource,
    carrier: Carrier,
}

enum Carrier {
    Grpc(Box<Calls>),
    Http(Box<Post>),
}

/// gRPC towards a collector.
struct Calls {
    remote: Remote,
    endpoint: Endpoint,
    headers: Headers,
    within: Duration,
    open: Option<(LogsServiceClient<Channel>, Basis)>,
}

impl OtlpOutput {
    /// # Errors
    /// The settings cannot be; the sentence names the field.
    pub(super) fn new(
        name: &str,
        format: Format,
        here: &Here,
        settings: &OtlpSettings,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        let headers = Headers::new(&settings.headers).map_err(|why| format!("otlp.{why}"))?;
        let within = Duration::from_secs(settings.timeout_seconds);
        let usual = match settings.protocol {
            OtlpProtocol::Grpc => [4317, 4317],
            OtlpProtocol::Http => [4318, 4318],
        };
        let target = Target::parse("otlp.endpoint", &settings.endpoint, usual)?;
        let carrier = match settings.protocol {
            OtlpProtocol::Http => {
                let content = "application/x-protobuf";
                let post = Post::new(target, headers, content, within, &settings.tls, identity);
                Carrier::Http(Box::new(post.map_err(|why| format!("otlp.{why}"))?))
            }
            OtlpProtocol::Grpc => {
                let calls = Calls::new(&target, headers, within, &settings.tls, identity);
                Carrier::Grpc(Box::new(calls.map_err(|why| format!("otlp.{why}"))?))
            }
        };
        let mut attributes = vec![
            ("service.name".to_owned(), "wardgate".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        if let Some(node) = &here.node {
            attributes.push(("service.instance.id".to_owned(), node.clone()));
            attributes.push(("host.name".to_owned(), node.clone()));
        }
        attributes.retain(|(key, _)| !settings.resource.contains_key(key));
        attributes.extend(settings.resource.clone());
        let attribute =
            |(key, value): (String, String)| KeyValue { key, value: any(Value::String(value)) };
        let resource = Resource { attributes: attributes.into_iter().map(attribute).collect() };
        Ok(Self { name: name.to_owned(), format, here: here.clone(), resource, carrier })
    }

    fn request(&self, records: &[Line]) -> Result<ExportLogsServiceRequest, serde_json::Error> {
        let observed = unix_millis().saturating_mul(1_000_000);
        let log_records = records
            .iter()
            .map(|line| log_record(line, self.format, &self.here, observed))
            .collect::<Result<_, _>>()?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let scope = InstrumentationScope { name: "wardgate.audit".to_owned(), version };
        let logs = ResourceLogs {
            resource: Some(self.resource.clone()),
            scope_logs: vec![ScopeLogs { scope: Some(scope), log_records }],
            schema_url: String::new(),
        };
        Ok(ExportLogsServiceRequest { resource_logs: vec![logs] })
    }

    async fn export(&mut self, records: &[Line]) -> Result<(Verdict, Refused), Undelivered> {
        let request = match self.request(records) {
            Ok(request) => request,
            Err(error) => return Ok((Verdict::Refused(error.to_string()), Refused::default())),
        };
        match &mut self.carrier {
            Carrier::Grpc(calls) => calls.export(request).await,
            Carrier::Http(post) => {
                let answer = post.send(Bytes::from(request.encode_to_vec())).await?;
                let refused = match answer.verdict() {
                    Verdict::Taken => {
                        let body = ExportLogsServiceResponse::decode(answer.body.clone());
                        Refused::of(body.unwrap_or_default())
                    }
                    Verdict::Later(_) | Verdict::Refused(_) => Refused::default(),
                };
                Ok((answer.verdict(), refused))
            }
        }
    }
}

#[async_trait]
impl Destination for OtlpOutput {
    fn name(&self) -> &str {
        &self.name
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        let mut parts = Parts::of(records);
        let mut all = Refused::default();
        while let Some(part) = parts.next() {
            let (verdict, refused) = self.export(part).await?;
            all.add(refused);
            parts.is(verdict)?;
        }
        match all.records {
            0 => Ok(()),
            refused => Err(Undelivered::Partly { refused, why: all.why }),
        }
    }
}

/// Records that a collector did not take, though it took their request.
#[derive(Debug, Default)]
struct Refused {
    records: u64,
    why: String,
}

impl Refused {
    fn of(response: ExportLogsServiceResponse) -> Self {
        let partial = response.partial_success.unwrap_or_default();
        let records = u64::try_from(partial.rejected_log_records).unwrap_or_default();
        if records == 0 && !partial.error_message.is_empty() {
            tracing::warn!(why = partial.error_message, "the collector of logs warns");
        }
        Self { records, why: partial.error_message }
    }

    fn add(&mut self, other: Self) {
        if other.records > 0 {
            self.records += other.records;
            self.why = other.why;
        }
    }
}

impl Calls {
    fn new(
        target: &Target,
        headers: Headers,
        within: Duration,
        tls: &OutputTls,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        if !target.is_tls && *tls != OutputTls::default() {
            return Err("tls: the endpoint is http://".into());
        }
        if target.path != "/" {
            return Err(format!("endpoint: gRPC has no path, and this one has {:?}", target.path));
        }
        let tls = target.is_tls.then_some(tls);
        let remote = Remote::new(&target.host, target.port, tls, identity)?;
        let scheme = if target.is_tls { "https" } else { "http" };
        let wrong = |error: &dyn std::fmt::Display| format!("endpoint: {error}");
        let origin = format!("{scheme}://{}", target.authority);
        // TLS is our connector's business; what travels as `:scheme` is the truth all the same.
        let endpoint = Endpoint::from_shared(format!("http://{}", target.authority))
            .map_err(|error| wrong(&error))?
            .origin(origin.parse().map_err(|error| wrong(&error))?)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        Ok(Self { remote, endpoint, headers, within, open: None })
    }

    async fn client(&mut self) -> Result<(LogsServiceClient<Channel>, Basis), Undelivered> {
        if let Some((client, basis)) = self.open.take()
            && self.remote.holds(basis)
        {
            return Ok((client, basis));
        }
        let (stream, basis) = self.remote.connect(Alpn::Http2).await.map_err(Undelivered::Later)?;
        // One connection for one channel: a second one would have to be proved anew.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move {
                let gone = || std::io::Error::from(std::io::ErrorKind::NotConnected);
                stream.map(TokioIo::new).ok_or_else(gone)
            }
        });
        let channel = self.endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| {
            Undelivered::Later(format!("{}: {}", self.remote.host(), causes(&error)))
        })?;
        Ok((LogsServiceClient::new(channel), basis))
    }

    async fn export(
        &mut self,
        request: ExportLogsServiceRequest,
    ) -> Result<(Verdict, Refused), Undelivered> {
        let headers = self.headers.load().await.map_err(Undelivered::Later)?;
        let (mut client, basis) = self.client().await?;
        let metadata = MetadataMap::from_headers(headers);
        let request = Request::from_parts(metadata, Extensions::new(), request);
        let answer = tokio::time::timeout(self.within, client.export(request)).await;
        let answer = answer.map_err(|_| {
            Undelivered::Later(format!(
                "{}: no answer within {:?}",
                self.remote.host(),
                self.within
            ))
        })?;
        match answer {
            Ok(response) => {
                self.open = Some((client, basis));
                Ok((Verdict::Taken, Refused::of(response.into_inner())))
            }
            Err(status) => {
                let verdict = verdict(&status);
                if matches!(verdict, Verdict::Refused(_)) {
                    self.open = Some((client, basis));
                }
                Ok((verdict, Refused::default()))
            }
        }
    }
}

/// A content that is blamed refuses records; all else is a matter of time, or of settings that somebody has to put right.
fn verdict(status: &Status) -> Verdict {
    let why = match status.message() {
        "" => causes(status),
        message => format!("{:?}: {message}", status.code()),
    };
    match status.code() {
        Code::InvalidArgument => Verdict::Refused(why),
        _ => Verdict::Later(Undelivered::Later(why)),
    }
}

fn log_record(
    line: &Line,
    format: Format,
    here: &Here,
    observed: u64,
) -> Result<LogRecord, serde_json::Error> {
    let record: Value = serde_json::from_str(&line.text)?;
    let told = open_telemetry(&record, here);
    let body = match format {
        Format::Wardgate => any(Value::from(&*line.text)),
        Format::Ocsf | Format::Ecs => any(serde_json::from_str(&format.tell(&line.text, here)?)?),
    };
    let attributes = told["attributes"].as_object().cloned().unwrap_or_default();
    let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    let id = |name: &str, bytes: usize| {
        let id = hex::decode(record[name].as_str().unwrap_or_default()).unwrap_or_default();
        if id.len() == bytes { id } else { Vec::new() }
    };
    Ok(LogRecord {
        time_unix_nano: told["time_unix_nano"].as_u64().unwrap_or_default(),
        observed_time_unix_nano: observed,
        severity_number: told["severity_number"]
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
            .unwrap_or_default(),
        severity_text: text("severity_text"),
        event_name: text("event_name"),
        body,
        attributes: pairs(attributes),
        flags: 0,
        trace_id: id("trace_id", 16),
        span_id: id("span_id", 8),
    })
}

fn pairs(fields: serde_json::Map<String, Value>) -> Vec<KeyValue> {
    fields.into_iter().map(|(key, value)| KeyValue { key, value: any(value) }).collect()
}

fn any(value: Value) -> Option<AnyValue> {
    let kind = match value {
        Value::Null => return None,
        Value::Bool(is) => Kind::BoolValue(is),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Kind::IntValue(whole),
            (None, Some(number)) => Kind::DoubleValue(number),
            (None, None) => return None,
        },
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            let values = values.into_iter().filter_map(any).collect();
            Kind::ArrayValue(ArrayValue { values })
        }
        Value::Object(fields) => Kind::KvlistValue(KeyValueList { values: pairs(fields) }),
    };
    Some(AnyValue { value: Some(kind) })
}
