//! A reading as OTLP's metrics: names that a receiver with Prometheus' naming turns into the series of the Prometheus exporter.
//!
//! Counts are cumulative sums from the beginning of the measurement. Histograms are the queue's own, counted already.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram as HistogramMetric,
    HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use crate::metrics::{Histogram, Reading};

/// Who measured.
pub(super) const SCOPE: &str = "corelane";

/// Bounds of explicit buckets, in seconds: three per decade, from 1 us to 10 minutes, as in the Prometheus exporter.
pub(super) const BOUNDS: [f64; 28] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 600.0,
];

/// Of exponential buckets: 8 per power of two, each 9 % wide, three times as wide as those that are counted.
const SCALE: i32 = 3;

/// The form in which histograms are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtlpHistograms {
    /// Buckets with fixed bounds, three per decade from 1 us to 10 minutes: what every receiver knows.
    #[default]
    Explicit,
    /// Exponential buckets, 9 % wide (scale 3): quantiles within that, if the receiver knows them.
    Exponential,
}

/// What stays the same from one message to the next.
#[derive(Debug)]
pub(super) struct Encoder {
    resource: ResourceAttributesWithSchema,
    histograms: OtlpHistograms,
    /// When the measurement began: the wall clock's word of the first reading, kept although that clock may be set.
    began: Option<SystemTime>,
    /// Of the last reading: an earlier one means that the measurement has begun anew.
    elapsed: Duration,
}

impl Encoder {
    pub(super) fn new(resource: &opentelemetry_sdk::Resource, histograms: OtlpHistograms) -> Self {
        Self { resource: resource.into(), histograms, began: None, elapsed: Duration::ZERO }
    }

    pub(super) fn encode(&mut self, reading: &Reading) -> ExportMetricsServiceRequest {
        let restarted = reading.elapsed < self.elapsed;
        self.elapsed = reading.elapsed;
        if restarted {
            self.began = None;
        }
        let began = *self.began.get_or_insert_with(|| {
            let at = SystemTime::from(reading.at);
            at.checked_sub(reading.elapsed).unwrap_or(at)
        });
        let mut batch = Batch {
            start: nanos(began),
            time: timestamp(reading.at),
            histograms: self.histograms,
            metrics: Vec::new(),
        };
        batch.add(reading);
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(Resource { attributes: self.resource.attributes.0.clone(), ..Resource::default() }),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(InstrumentationScope {
                        name: SCOPE.to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    metrics: batch.metrics,
                    schema_url: String::new(),
                }],
                schema_url: self.resource.schema_url.clone().unwrap_or_default(),
            }],
        }
    }
}

/// The metrics of one message.
struct Batch {
    start: u64,
    time: u64,
    histograms: OtlpHistograms,
    metrics: Vec<Metric>,
}

/// Attributes and value of a point.
type Point = (Vec<KeyValue>, Value);

impl Batch {
    fn add(&mut self, reading: &Reading) {
        let lanes = || reading.lanes.iter().map(|lane| (lane, vec![attribute("lane", &lane.lane)]));
        let with = |mut attributes: Vec<_>, key, value| {
            attributes.push(attribute(key, value));
            attributes
        };

        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.pending))));
        self.gauge("queue.depth", "{command}", "Commands accepted and not admitted", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.delayed))));
        self.gauge("delayed_commands", "{command}", "Of these, commands that wait for their time or their key", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.active))));
        self.gauge("active_commands", "{command}", "Commands admitted and not settled", points);
        let points = lanes().flat_map(|(lane, of)| {
            let limits = [("min", lane.min_concurrency), ("max", lane.max_concurrency)];
            limits.map(|(bound, limit)| (with(of.clone(), "bound", bound), Value::AsInt(int(limit))))
        });
        self.gauge("concurrency_limit", "{command}", "Configured concurrency", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(i64::from(lane.paused))));
        self.gauge("paused", "", "Whether the lane is paused: 0 or 1", points);
        let ages = |age: Option<Duration>| Value::AsDouble(age.unwrap_or_default().as_secs_f64());
        let points = lanes().map(|(lane, of)| (of, ages(lane.oldest_pending)));
        self.gauge("oldest_pending_age", "s", "How long the command has waited that has waited longest", points);
        let points = lanes().map(|(lane, of)| (of, ages(lane.oldest_active)));
        self.gauge("oldest_active_age", "s", "How long the command has run that has run longest", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.dead_letters))));
        self.gauge("dlq.size", "{command}", "Dead letters that are kept", points);
        let points = lanes().map(|(lane, of)| (of, ages(lane.oldest_dead_letter)));
        self.gauge("dlq.oldest_age", "s", "The age of the oldest dead letter", points);

        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.submitted))));
        self.sum("commands.submitted", "{command}", "Commands accepted", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.started))));
        self.sum("commands.started", "{command}", "Attempts begun", points);
        let points = lanes().flat_map(|(lane, of)| {
            let by = lane.finished.by_outcome();
            by.map(|(outcome, count)| (with(of.clone(), "outcome", outcome), Value::AsInt(int(count))))
        });
        self.sum("commands.finished", "{command}", "Commands settled, by how", points);
        let points = lanes().flat_map(|(lane, of)| {
            let by = lane.rejected.by_reason();
            by.map(|(reason, count)| (with(of.clone(), "reason", reason), Value::AsInt(int(count))))
        });
        self.sum("commands.rejected", "{command}", "Submissions refused, by why", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.retries))));
        self.sum("command.retries", "{attempt}", "Attempts that failed and were followed by another one", points);
        let points = lanes().flat_map(|(lane, of)| {
            let by = lane.dead_lettered.by_reason();
            by.map(|(reason, count)| (with(of.clone(), "reason", reason), Value::AsInt(int(count))))
        });
        self.sum("commands.dead_lettered", "{command}", "Commands given up and kept, by why", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsInt(int(lane.boosts))));
        self.sum("priority_boosts", "{boost}", "Times that a waiting command got a better priority", points);
        let points = lanes().map(|(lane, of)| (of, Value::AsDouble(lane.throttled.as_secs_f64())));
        self.sum("rate_limit_throttled", "s", "How long the rate limit has held commands back", points);

        let points = lanes().map(|(lane, of)| (of, &lane.run)).collect();
        self.histogram("command.duration", "How long attempts ran", points);
        let points = lanes().map(|(lane, of)| (of, &lane.wait)).collect();
        self.histogram("command.wait", "How long commands waited for their first start", points);

        // Sums over a lane's series stay those of the lane: types have metrics of their own.
        let types = || {
            reading.lanes.iter().flat_map(|lane| {
                let types = lane.command_types.iter();
                types.map(|of| (of, vec![attribute("lane", &lane.lane), attribute("command_type", &of.command_type)]))
            })
        };
        if types().next().is_some() {
            let points = types().flat_map(|(counts, of)| {
                let by = counts.finished.by_outcome();
                by.map(|(outcome, count)| (with(of.clone(), "outcome", outcome), Value::AsInt(int(count))))
            });
            self.sum("command_type.finished", "{command}", "Commands settled, by type and by how", points);
            let points = types().map(|(counts, of)| (of, &counts.run)).collect();
            self.histogram("command_type.duration", "How long attempts ran, by command type", points);
        }

        let workers =
            || reading.workers.iter().map(|worker| (worker, vec![attribute("worker", &worker.worker.to_string())]));
        let points = workers().map(|(worker, of)| (of, Value::AsDouble(worker.busy.as_secs_f64())));
        self.sum("worker.busy", "s", "How long the worker was awake", points);
        let points = workers().map(|(worker, of)| (of, Value::AsInt(int(worker.polls))));
        self.sum("worker.polls", "{poll}", "Polls of tasks", points);
        let points = workers().map(|(worker, of)| (of, Value::AsInt(int(worker.steals))));
        self.sum("worker.steals", "{task}", "Tasks taken from other workers", points);
        let points = workers().map(|(worker, of)| (of, Value::AsInt(int(worker.parks))));
        self.sum("worker.parks", "{park}", "Times that the worker went to sleep", points);
        let points = workers().map(|(worker, of)| (of, Value::AsInt(int(worker.stuck))));
        self.sum("worker.stuck_polls", "{poll}", "Polls that lasted too long", points);

        let alone = |count| [(Vec::new(), Value::AsInt(int(count)))].into_iter();
        self.sum("storage.errors", "{error}", "Operations of stores that have failed", alone(reading.storage_errors));
        self.sum("events.dropped", "{event}", "Events lost to slow subscribers", alone(reading.events_dropped));
        let version = (vec![attribute("version", env!("CARGO_PKG_VERSION"))], Value::AsInt(1));
        self.gauge("build_info", "", "The library's version", [version].into_iter());
    }

    fn gauge(&mut self, name: &str, unit: &str, about: &str, points: impl Iterator<Item = Point>) {
        let data_points = self.numbers(points, 0);
        self.push(name, unit, about, Data::Gauge(Gauge { data_points }));
    }

    /// One that only grows.
    fn sum(&mut self, name: &str, unit: &str, about: &str, points: impl Iterator<Item = Point>) {
        let data_points = self.numbers(points, self.start);
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        self.push(name, unit, about, Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true }));
    }

    fn numbers(&self, points: impl Iterator<Item = Point>, start: u64) -> Vec<NumberDataPoint> {
        let points = points.map(|(of, value)| NumberDataPoint {
            attributes: of,
            start_time_unix_nano: start,
            time_unix_nano: self.time,
            value: Some(value),
            ..NumberDataPoint::default()
        });
        points.collect()
    }

    /// Of durations.
    fn histogram(&mut self, name: &str, about: &str, points: Vec<(Vec<KeyValue>, &Histogram)>) {
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        let data = match self.histograms {
            OtlpHistograms::Explicit => {
                let points = points.into_iter().map(|(of, histogram)| self.explicit(of, histogram));
                Data::Histogram(HistogramMetric { data_points: points.collect(), aggregation_temporality })
            }
            OtlpHistograms::Exponential => {
                let points = points.into_iter().map(|(of, histogram)| self.exponential(of, histogram));
                Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: points.collect(),
                    aggregation_temporality,
                })
            }
        };
        self.push(name, "s", about, data);
    }

    fn explicit(&self, of: Vec<KeyValue>, histogram: &Histogram) -> HistogramDataPoint {
        let mut bucket_counts = vec![0; BOUNDS.len() + 1];
        for (upper, count) in histogram.buckets() {
            let upper = upper.as_secs_f64();
            bucket_counts[BOUNDS.partition_point(|bound| *bound < upper)] += count;
        }
        HistogramDataPoint {
            attributes: of,
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            count: histogram.count(),
            sum: Some(histogram.sum().as_secs_f64()),
            bucket_counts,
            explicit_bounds: BOUNDS.to_vec(),
            ..HistogramDataPoint::default()
        }
    }

    fn exponential(&self, of: Vec<KeyValue>, histogram: &Histogram) -> ExponentialHistogramDataPoint {
        let mut zero_count = 0;
        let mut buckets = Buckets::default();
        for (upper, count) in histogram.buckets() {
            if upper.is_zero() {
                zero_count += count;
                continue;
            }
            let index = exponential_index(upper);
            if buckets.bucket_counts.is_empty() {
                buckets.offset = index;
            }
            // Buckets come shortest first.
            let place = usize::try_from(index - buckets.offset).unwrap_or(0);
            if place >= buckets.bucket_counts.len() {
                buckets.bucket_counts.resize(place + 1, 0);
            }
            buckets.bucket_counts[place] += count;
        }
        ExponentialHistogramDataPoint {
            attributes: of,
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            count: histogram.count(),
            sum: Some(histogram.sum().as_secs_f64()),
            scale: SCALE,
            zero_count,
            positive: Some(buckets),
            ..ExponentialHistogramDataPoint::default()
        }
    }

    fn push(&mut self, name: &str, unit: &str, about: &str, data: Data) {
        self.metrics.push(Metric {
            name: format!("a3s.lane.{name}"),
            description: about.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        });
    }
}

/// The exponential bucket that holds a duration: with b = 2^(2^-SCALE), those above b^i and at most b^(i+1).
pub(super) fn exponential_index(duration: Duration) -> i32 {
    let index = duration.as_secs_f64().log2() * f64::from(1 << SCALE);
    index.ceil() as i32 - 1
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    }
}

fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn timestamp(at: DateTime<Utc>) -> u64 {
    nanos(at.into())
}
