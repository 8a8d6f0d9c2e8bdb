//! OpenTelemetry: traces of commands, and metrics by OTLP or into a provider of the user's own.
//!
//! | file | what it knows |
//! |---|---|
//! | `endpoint` | where OTLP goes to and as whom: settings and environment |
//! | `send` | one request and its retries: OTLP over HTTP, protobuf |
//! | `encode` | a reading as OTLP's metrics |
//! | `exporter` | pushes readings, on a thread of its own |
//! | `spans` | the SDK's spans as OTLP's, for a tracer that has no provider |
//! | `tracer` | the spans of a command |
//! | `backend` | metrics into the instruments of a meter |
//! | `legacy` | a3s-lane's recorder of four instruments |
//!
//! The SDK can not take histograms that are counted already, so metrics are encoded here, with the messages of
//! `opentelemetry-proto`; spans are the SDK's. Both are sent by `send`, with a client that blocks: the OTLP exporter of the
//! SDK's project has no retries that are stable, and would bring a second client. No worker sends anything.

mod backend;
mod encode;
mod endpoint;
mod exporter;
mod legacy;
mod send;
mod spans;
#[cfg(all(test, not(corelane_loom)))]
mod tests;
mod tracer;

pub use backend::OtelMetricsBackend;
pub use encode::OtlpHistograms;
pub use endpoint::OtlpEndpoint;
pub use exporter::{OtlpExporter, OtlpExporterBuilder};
pub use legacy::{LaneMetricsRecorder, init_lane_metrics, metrics, record_complete, record_failure, record_submit};
pub use send::{OtlpError, OtlpStats};
pub use tracer::{OtelTracer, TraceParent};
