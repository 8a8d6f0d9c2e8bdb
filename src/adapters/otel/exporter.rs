//! Pushes readings by OTLP, on a thread of its own.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;

use super::encode::{Encoder, OtlpHistograms};
use super::endpoint::{OtlpEndpoint, Signal};
use super::send::{OtlpError, OtlpStats, Sender};
use crate::error::ConfigErrors;
use crate::executor::discard_panic;
use crate::metrics::{QueueMetrics, Reading};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
const INTERVAL_VARIABLE: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// Pushes the numbers of queues to an OTLP receiver, by HTTP and protobuf, once per interval, and once more when it is shut
/// down or dropped.
///
/// Names are `a3s.lane.*`, with the attribute `lane`; units are seconds. A receiver with Prometheus' naming has the same series
/// as with the Prometheus exporter. Counts are cumulative: a push that is lost costs no more than its time. A push that
/// fails for now is repeated until the next one is due.
///
/// ```no_run
/// use corelane::{OtlpExporter, QueueMetrics};
///
/// let metrics = QueueMetrics::local();
/// let exporter = OtlpExporter::builder("http://localhost:4318").start(&metrics)?;
/// // ... give `metrics` to queues, and at the end:
/// let stats = exporter.shutdown();
/// println!("{} pushes", stats.sent);
/// # Ok::<(), corelane::OtlpError>(())
/// ```
pub struct OtlpExporter {
    sender: Arc<Sender>,
    thread: Option<JoinHandle<()>>,
}

/// Settings of an [`OtlpExporter`].
#[derive(Clone, Debug)]
pub struct OtlpExporterBuilder {
    endpoint: OtlpEndpoint,
    interval: Option<Duration>,
    histograms: OtlpHistograms,
}

impl OtlpExporter {
    /// For this receiver; for one that the environment names: [`OtlpEndpoint::from_env`].
    pub fn builder(endpoint: impl Into<OtlpEndpoint>) -> OtlpExporterBuilder {
        OtlpExporterBuilder { endpoint: endpoint.into(), interval: None, histograms: OtlpHistograms::default() }
    }

    /// What has been sent.
    #[must_use]
    pub fn stats(&self) -> OtlpStats {
        self.sender.stats()
    }

    /// Pushes a last time and ends. Waits for that: one request at most, besides one that is under way. Not for workers.
    #[must_use = "tells whether the last push was taken"]
    pub fn shutdown(mut self) -> OtlpStats {
        self.end();
        self.sender.stats()
    }

    fn end(&mut self) {
        self.sender.close();
        if let Some(thread) = self.thread.take() {
            // Its panic was told by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for OtlpExporter {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for OtlpExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpExporter").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl OtlpExporterBuilder {
    /// How often to push. Default: `OTEL_METRIC_EXPORT_INTERVAL` (milliseconds), or 15 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// In which form to send histograms. Default: explicit buckets.
    #[must_use]
    pub fn histograms(mut self, histograms: OtlpHistograms) -> Self {
        self.histograms = histograms;
        self
    }

    /// Starts to push: the first time after one interval.
    ///
    /// # Errors
    /// Settings or variables that are not usable; the system gives no thread. Whether there is a receiver shows later: in
    /// [`OtlpExporter::stats`] and as a warning of `tracing`.
    pub fn start(self, metrics: &QueueMetrics) -> Result<OtlpExporter, OtlpError> {
        let metrics = metrics.clone();
        self.start_with(move |last| if last { metrics.collect() } else { metrics.reading() })
    }

    /// With readings from anywhere; it is told whether this is the last one.
    pub(super) fn start_with(
        self,
        read: impl Fn(bool) -> Arc<Reading> + Send + 'static,
    ) -> Result<OtlpExporter, OtlpError> {
        let mut errors = ConfigErrors::default();
        let from_env = std::env::var(INTERVAL_VARIABLE).ok().filter(|value| !value.trim().is_empty());
        let interval = self.interval.unwrap_or_else(|| match from_env {
            None => DEFAULT_INTERVAL,
            Some(value) => value.trim().parse().map(Duration::from_millis).unwrap_or_else(|_| {
                errors.push(INTERVAL_VARIABLE, &value, "a number of milliseconds is expected");
                DEFAULT_INTERVAL
            }),
        });
        if interval.is_zero() {
            errors.push("interval", interval, "must be more than zero");
        }
        errors.into_result()?;
        let sender = Arc::new(Sender::new(self.endpoint.target(Signal::Metrics)?));
        let mut encoder = Encoder::new(&self.endpoint.resource(), self.histograms);
        let push = Arc::clone(&sender);
        let run = move || {
            let mut last = false;
            while !last {
                last = push.is_closed_after(interval);
                // A reading may end queues, and with them what others have put into them.
                let pushed = catch_unwind(AssertUnwindSafe(|| {
                    let message = encoder.encode(&read(last)).encode_to_vec();
                    // Counted and told by the sender; the next reading has all of this one.
                    let _ = push.send(&message, interval, rejected);
                }));
                pushed.unwrap_or_else(discard_panic);
            }
        };
        let thread = std::thread::Builder::new().name("corelane-otlp".into()).spawn(run).map_err(OtlpError::Thread)?;
        Ok(OtlpExporter { sender, thread: Some(thread) })
    }
}

fn rejected(answer: &[u8]) -> Option<(i64, String)> {
    let partial = ExportMetricsServiceResponse::decode(answer).ok()?.partial_success?;
    Some((partial.rejected_data_points, partial.error_message))
}
