//! a3s-lane's recorder: four instruments of the global meter, called by hand.

use std::sync::OnceLock;

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};

use super::encode::{BOUNDS, SCOPE};

static METRICS: OnceLock<LaneMetricsRecorder> = OnceLock::new();

/// Instruments of the global meter, for who records by hand, as with a3s-lane. A queue does not call them: give it
/// [`QueueMetrics`](crate::QueueMetrics) with an [`OtelMetricsBackend`](crate::OtelMetricsBackend), or start an
/// [`OtlpExporter`](crate::OtlpExporter).
#[derive(Debug)]
#[non_exhaustive]
pub struct LaneMetricsRecorder {
    /// Commands submitted.
    pub commands_submitted_total: Counter<u64>,
    /// Commands completed.
    pub commands_completed_total: Counter<u64>,
    /// Commands failed.
    pub commands_failed_total: Counter<u64>,
    /// How long commands ran, in seconds.
    pub command_duration_seconds: Histogram<f64>,
}

/// The recorder; none before [`init_lane_metrics`].
pub fn metrics() -> Option<&'static LaneMetricsRecorder> {
    METRICS.get()
}

/// Makes the recorder, with the global meter provider as it is now: set that before. Only the first call does something.
pub fn init_lane_metrics() {
    METRICS.get_or_init(|| {
        let meter = global::meter(SCOPE);
        let counter = |name, about| meter.u64_counter(name).with_description(about).build();
        LaneMetricsRecorder {
            commands_submitted_total: counter("a3s_lane_commands_submitted_total", "Commands submitted"),
            commands_completed_total: counter("a3s_lane_commands_completed_total", "Commands completed"),
            commands_failed_total: counter("a3s_lane_commands_failed_total", "Commands failed"),
            command_duration_seconds: meter
                .f64_histogram("a3s_lane_command_duration_seconds")
                .with_description("How long commands ran")
                .with_unit("s")
                .with_boundaries(BOUNDS.to_vec())
                .build(),
        }
    });
}

/// Counts a submission. Does nothing before [`init_lane_metrics`].
pub fn record_submit(lane_name: &str) {
    if let Some(metrics) = metrics() {
        metrics.commands_submitted_total.add(1, &[lane(lane_name)]);
    }
}

/// Counts a completion that took this many seconds. Does nothing before [`init_lane_metrics`].
pub fn record_complete(lane_name: &str, duration_secs: f64) {
    if let Some(metrics) = metrics() {
        let lane = [lane(lane_name)];
        metrics.commands_completed_total.add(1, &lane);
        metrics.command_duration_seconds.record(duration_secs, &lane);
    }
}

/// Counts a failure. Does nothing before [`init_lane_metrics`].
pub fn record_failure(lane_name: &str) {
    if let Some(metrics) = metrics() {
        metrics.commands_failed_total.add(1, &[lane(lane_name)]);
    }
}

fn lane(name: &str) -> KeyValue {
    KeyValue::new("lane", name.to_owned())
}
