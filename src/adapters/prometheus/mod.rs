//! The numbers for Prometheus: as text, for a server of the user's, and at an endpoint of our own.
//!
//! | file | what it knows |
//! |---|---|
//! | `families` | which series there are, and where in a reading their values stand |
//! | `accept` | which of the two formats a request asks for |
//! | `request` | what a request is, and what is not one |
//! | `endpoint` | threads that answer scrapes |
//!
//! Nothing is registered and nothing is counted here: a scrape encodes the one [`Reading`] that everybody shares. The encoder is
//! prometheus-client's, which knows both formats and takes histograms that are counted already.

mod accept;
mod endpoint;
mod families;
mod request;
#[cfg(all(test, not(corelane_loom)))]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::alert::AlertManager;
use crate::error::{ConfigErrors, Result};
use crate::metrics::{QueueMetrics, Reading};
use accept::Format;
pub use endpoint::PrometheusEndpoint;
use families::Families;

/// The port of [`PrometheusExporter::serve_default`]: the one that OpenTelemetry's Prometheus exporters have.
const DEFAULT_PORT: u16 = 9464;

/// Exports the numbers of queues to Prometheus. Clones export the same.
///
/// Alone:
///
/// ```
/// use corelane::{PrometheusExporter, QueueMetrics};
///
/// # fn main() -> std::io::Result<()> {
/// let metrics = QueueMetrics::local();
/// // ... a queue is built `with_metrics(metrics.clone())` ...
/// let endpoint = PrometheusExporter::new(metrics).serve("127.0.0.1:0")?;
/// println!("http://{}/metrics", endpoint.local_addr());
/// # Ok(())
/// # }
/// ```
///
/// In a server that is there already, whatever it is made with:
///
/// ```
/// # use corelane::{PrometheusExporter, QueueMetrics};
/// # let exporter = PrometheusExporter::new(QueueMetrics::local());
/// // GET /metrics
/// let accept = Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"); // the request's header, if it has one
/// let (content_type, body) = exporter.render(accept);
/// assert!(content_type.starts_with("application/openmetrics-text") && body.ends_with("# EOF\n"));
/// ```
///
/// Ages are 0 where nothing waits or runs. A bucket of a histogram holds what is certainly at most its bound; durations within
/// 3.1 % below a bound may count to the next one.
#[derive(Clone)]
pub struct PrometheusExporter {
    metrics: QueueMetrics,
    alerts: Option<Arc<AlertManager>>,
    labels: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    bounds: Arc<[Duration]>,
}

impl PrometheusExporter {
    /// Exports what `metrics` measures.
    #[must_use]
    pub fn new(metrics: QueueMetrics) -> Self {
        Self { metrics, alerts: None, labels: Vec::new(), bounds: default_bounds().into() }
    }

    /// Puts a label on every series, for example `instance` where several processes are behind one address.
    ///
    /// # Errors
    ///
    /// If Prometheus takes no label of this name, or a series has one of this name already.
    pub fn with_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let taken = families::LABELS.contains(&&*name) || self.labels.iter().any(|(other, _)| *other == name);
        let mut errors = ConfigErrors::default();
        if taken {
            errors.push("label", &name, "there is a label of this name");
        } else if !is_label_name(&name) {
            errors.push("label", &name, "letters, digits and underscores, no digit first, nor two underscores");
        }
        errors.into_result()?;
        self.labels.push((name.into(), value.into().into()));
        Ok(self)
    }

    /// Counts the notifications of these alerts, too: `a3s_lane_alert_notifications_total`, by receiver and by result. Receivers
    /// of the same name are counted together.
    #[must_use]
    pub fn with_alerts(mut self, alerts: Arc<AlertManager>) -> Self {
        self.alerts = Some(alerts);
        self
    }

    /// The upper bounds of the histograms' buckets, in any order. Default: 1, 2.5 and 5 of every decade from 1 us on, and 600 s:
    /// 28 buckets, and one for what took longer. Each costs a series per lane and histogram.
    #[must_use]
    pub fn with_buckets(mut self, bounds: impl IntoIterator<Item = Duration>) -> Self {
        let mut bounds: Vec<Duration> = bounds.into_iter().collect();
        bounds.sort_unstable();
        bounds.dedup();
        self.bounds = bounds.into();
        self
    }

    /// The numbers in Prometheus' text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        self.encode(&self.metrics.reading(), Format::Text)
    }

    /// The numbers as OpenMetrics text 1.0.
    #[must_use]
    pub fn openmetrics(&self) -> String {
        self.encode(&self.metrics.reading(), Format::OpenMetrics)
    }

    /// What a scrape is answered with: the content type, and the numbers in the format that the request's `Accept` header
    /// prefers. Text 0.0.4 if there is no such header, or if it asks for something else.
    #[must_use]
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        let format = Format::accepted(accept.unwrap_or_default());
        (format.content_type(), self.encode(&self.metrics.reading(), format))
    }

    /// Answers scrapes of `http://ADDRESS/metrics` on threads of its own, until what is returned is dropped.
    ///
    /// Whoever reaches the address reads the numbers and the lanes' names: there is no password and no encryption. Bind it to
    /// loopback, or to a network of which that is wanted. Port 0 is a free one: [`PrometheusEndpoint::local_addr`] tells it.
    ///
    /// # Errors
    ///
    /// If the address can not be bound, or the system has no thread to give.
    pub fn serve(&self, address: impl ToSocketAddrs) -> io::Result<PrometheusEndpoint> {
        PrometheusEndpoint::start(self.clone(), address)
    }

    /// [Serves](PrometheusExporter::serve) at `http://127.0.0.1:9464/metrics`, which only this machine reaches.
    ///
    /// # Errors
    ///
    /// As [`PrometheusExporter::serve`].
    pub fn serve_default(&self) -> io::Result<PrometheusEndpoint> {
        self.serve((Ipv4Addr::LOCALHOST, DEFAULT_PORT))
    }

    fn encode(&self, reading: &Arc<Reading>, format: Format) -> String {
        let mut registry = Registry::with_labels(self.labels.iter().cloned());
        let alerts = self.alerts.as_ref().map_or_else(Vec::new, |alerts| alerts.delivery_stats());
        registry.register_collector(Box::new(Families::new(Arc::clone(reading), alerts, Arc::clone(&self.bounds))));
        let mut body = String::new();
        let encoded = match format {
            Format::Text => prometheus_text::encode(&mut body, &registry),
            Format::OpenMetrics => text::encode(&mut body, &registry),
        };
        encoded.expect("a String takes whatever is written to it");
        body
    }
}

impl fmt::Debug for PrometheusExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusExporter")
            .field("labels", &self.labels)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

fn is_label_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    letters && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && !name.starts_with("__")
}

/// From what a command of the queue's own takes to what a slow model does.
fn default_bounds() -> Vec<Duration> {
    let steps = (0..9).flat_map(|decade| [10, 25, 50].map(|step| step * 100 * 10u64.pow(decade)));
    steps.map(Duration::from_nanos).chain([Duration::from_secs(600)]).collect()
}
