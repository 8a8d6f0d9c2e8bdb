//! Metrics into the instruments of a meter: for a provider that the program has.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use opentelemetry::{KeyValue, global};

use super::encode::{BOUNDS, SCOPE};
use crate::metrics::{HistogramStats, MetricsBackend, MetricsSnapshot};

/// Names that the queue gives, each with a dot and the lane after it, and what they are here.
const KNOWN: [(&str, &str, &str); 10] = [
    ("lane.commands.submitted", "a3s.lane.commands.submitted", "{command}"),
    ("lane.commands.completed", "a3s.lane.commands.completed", "{command}"),
    ("lane.commands.failed", "a3s.lane.commands.failed", "{command}"),
    ("lane.commands.timeout", "a3s.lane.commands.timeout", "{command}"),
    ("lane.commands.retried", "a3s.lane.command.retries", "{attempt}"),
    ("lane.commands.dead_lettered", "a3s.lane.commands.dead_lettered", "{command}"),
    ("lane.queue.depth", "a3s.lane.queue.depth", "{command}"),
    ("lane.queue.active", "a3s.lane.active_commands", "{command}"),
    ("lane.command.latency_ms", "a3s.lane.command.duration", "s"),
    ("lane.command.wait_time_ms", "a3s.lane.command.wait", "s"),
];

/// Hands metrics to instruments of OpenTelemetry: for a program that has a meter provider, for
/// [`QueueMetrics::new`](crate::QueueMetrics::new).
///
/// Counters are counters, gauges are gauges, distributions are histograms. What the queue counts by lane, under
/// `lane.<what>.<lane>`, goes to an instrument of the name that [`OtlpExporter`](crate::OtlpExporter) uses, with the
/// attribute `lane`, times in seconds:
///
/// | from | instrument |
/// |---|---|
/// | `lane.commands.submitted.<lane>` | `a3s.lane.commands.submitted` |
/// | `lane.commands.completed.<lane>`, `.failed`, `.timeout` | `a3s.lane.commands.completed`, `.failed`, `.timeout` |
/// | `lane.commands.retried.<lane>` | `a3s.lane.command.retries` |
/// | `lane.commands.dead_lettered.<lane>` | `a3s.lane.commands.dead_lettered` |
/// | `lane.queue.depth.<lane>` | `a3s.lane.queue.depth` |
/// | `lane.queue.active.<lane>` | `a3s.lane.active_commands` |
/// | `lane.command.latency_ms.<lane>` | `a3s.lane.command.duration`, s |
/// | `lane.command.wait_time_ms.<lane>` | `a3s.lane.command.wait`, s |
///
/// Every other name, a total over all lanes for example, is an instrument of that very name, its values as they are.
///
/// The SDK takes a histogram's values one by one, some 50 ns each, on the collector's thread: for a million commands a second
/// use [`OtlpExporter`](crate::OtlpExporter). It knows no values to read: what asks for them gets none.
pub struct OtelMetricsBackend {
    meter: Meter,
    instruments: Mutex<HashMap<String, Kind>>,
}

/// An instrument, what it is recorded with, and what its values are multiplied by.
#[derive(Clone)]
enum Kind {
    Counter(Counter<u64>, Vec<KeyValue>),
    Gauge(Gauge<f64>, Vec<KeyValue>),
    Histogram(Histogram<f64>, Vec<KeyValue>, f64),
}

/// What a name is here.
struct Named {
    name: String,
    unit: &'static str,
    attributes: Vec<KeyValue>,
}

impl OtelMetricsBackend {
    /// With the global meter provider as it is now: set it before.
    #[must_use]
    pub fn new() -> Self {
        Self::with_meter(global::meter(SCOPE))
    }

    /// With this meter.
    #[must_use]
    pub fn with_meter(meter: Meter) -> Self {
        Self { meter, instruments: Mutex::new(HashMap::new()) }
    }

    /// The instrument of a name, which keeps the kind that it was first used as.
    fn instrument(&self, name: &str, make: impl FnOnce(&Meter, Named) -> Kind) -> Kind {
        let mut instruments = self.instruments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = instruments.get(name) {
            return known.clone();
        }
        let made = make(&self.meter, named(name));
        instruments.insert(name.to_owned(), made.clone());
        made
    }

    fn histogram(&self, name: &str) -> Kind {
        self.instrument(name, |meter, Named { name, unit, attributes }| {
            let seconds = unit == "s";
            let mut histogram = meter.f64_histogram(name).with_unit(unit);
            if seconds {
                histogram = histogram.with_boundaries(BOUNDS.to_vec());
            }
            Kind::Histogram(histogram.build(), attributes, if seconds { 1e-3 } else { 1.0 })
        })
    }
}

fn named(name: &str) -> Named {
    let of_lane = KNOWN.iter().find_map(|(known, here, unit)| {
        let lane = name.strip_prefix(known)?.strip_prefix('.').filter(|lane| !lane.is_empty())?;
        Some(Named { name: (*here).to_owned(), unit, attributes: vec![KeyValue::new("lane", lane.to_owned())] })
    });
    of_lane.unwrap_or_else(|| Named { name: name.to_owned(), unit: "", attributes: Vec::new() })
}

impl Default for OtelMetricsBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl MetricsBackend for OtelMetricsBackend {
    async fn increment_counter(&self, name: &str, value: u64) {
        let instrument = self.instrument(name, |meter, Named { name, unit, attributes }| {
            Kind::Counter(meter.u64_counter(name).with_unit(unit).build(), attributes)
        });
        if let Kind::Counter(counter, attributes) = instrument {
            counter.add(value, &attributes);
        }
    }

    async fn set_gauge(&self, name: &str, value: f64) {
        let instrument = self.instrument(name, |meter, Named { name, unit, attributes }| {
            Kind::Gauge(meter.f64_gauge(name).with_unit(unit).build(), attributes)
        });
        if let Kind::Gauge(gauge, attributes) = instrument {
            gauge.record(value, &attributes);
        }
    }

    async fn record_histogram(&self, name: &str, value: f64) {
        self.record_histogram_many(name, value, 1).await;
    }

    async fn record_histogram_many(&self, name: &str, value: f64, count: u64) {
        if let Kind::Histogram(histogram, attributes, factor) = self.histogram(name) {
            for _ in 0..count {
                histogram.record(value * factor, &attributes);
            }
        }
    }

    async fn get_counter(&self, _name: &str) -> Option<u64> {
        None
    }

    async fn get_gauge(&self, _name: &str) -> Option<f64> {
        None
    }

    async fn get_histogram_stats(&self, _name: &str) -> Option<HistogramStats> {
        None
    }

    /// Does nothing: instruments live as long as their provider.
    async fn reset(&self) {}

    async fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot::default()
    }
}

impl fmt::Debug for OtelMetricsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelMetricsBackend").finish_non_exhaustive()
    }
}
