//! The SDK's spans as OTLP's: for a tracer that has no provider of the user's.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;

use super::send::Sender;

/// For how long a batch is repeated. Meanwhile the SDK keeps what comes, up to its bound.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends batches on the thread of the SDK's batch processor, which may be kept.
#[derive(Debug)]
pub(super) struct Spans {
    sender: Arc<Sender>,
    resource: ResourceAttributesWithSchema,
}

impl Spans {
    pub(super) fn new(sender: Arc<Sender>) -> Self {
        Self { sender, resource: ResourceAttributesWithSchema::default() }
    }
}

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let sent = self.sender.send(&message, PATIENCE, rejected);
        sent.map_err(|given_up| OTelSdkError::InternalFailure(given_up.0))
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.sender.close();
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

fn rejected(answer: &[u8]) -> Option<(i64, String)> {
    let partial = ExportTraceServiceResponse::decode(answer).ok()?.partial_success?;
    Some((partial.rejected_spans, partial.error_message))
}
