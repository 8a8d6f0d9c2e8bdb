//! Names, values, units and kinds of what is pushed.

use std::sync::Arc;
use std::time::Duration;

use corelane::{
    LaneConfig, LaneError, MetricsBackend, OtelMetricsBackend, OtlpEndpoint, OtlpExporter, OtlpHistograms,
    QueueManager, QueueMetrics, telemetry,
};
use opentelemetry::global;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, NumberDataPoint};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use crate::receiver::{Receiver, attribute};
use crate::{block_on, done, finish, queue};

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

fn metrics_of(message: &ExportMetricsServiceRequest) -> Vec<&Metric> {
    message.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics).collect()
}

fn metric<'a>(message: &'a ExportMetricsServiceRequest, name: &str) -> &'a Metric {
    let metrics = metrics_of(message);
    let names: Vec<_> = metrics.iter().map(|metric| metric.name.clone()).collect();
    metrics.into_iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is not among {names:?}"))
}

fn value(point: &NumberDataPoint) -> f64 {
    match point.value {
        Some(Value::AsInt(value)) => value as f64,
        Some(Value::AsDouble(value)) => value,
        None => panic!("a point without a value"),
    }
}

/// The value of the point with these attributes; of a sum, which must be cumulative and monotonic, or of a gauge.
fn number(message: &ExportMetricsServiceRequest, name: &str, of: &[(&str, &str)]) -> f64 {
    let points = match metric(message, name).data.as_ref().unwrap() {
        Data::Gauge(gauge) => &gauge.data_points,
        Data::Sum(sum) => {
            assert!(sum.is_monotonic && sum.aggregation_temporality == CUMULATIVE, "{name}");
            assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano > 0));
            &sum.data_points
        }
        other => panic!("{name}: {other:?}"),
    };
    let is_it = |point: &&NumberDataPoint| {
        point.attributes.len() == of.len()
            && of.iter().all(|(key, value)| attribute(&point.attributes, key).as_deref() == Some(value))
    };
    value(points.iter().find(is_it).unwrap_or_else(|| panic!("{name} {of:?} is not among {points:?}")))
}

/// Five good commands of 2 ms, three bad ones and a refused one.
fn work(metrics: &QueueMetrics) -> QueueManager {
    let config = LaneConfig::new(1, 2).with_capacity(8);
    let manager = queue(config, None, Some(metrics));
    manager.pause("work").unwrap();
    let good = || async {
        corelane::sleep(Duration::from_millis(2)).await;
        Ok(())
    };
    let good: Vec<_> = (0..5).map(|_| manager.submit_fn("work", "closure", good).unwrap()).collect();
    let bad = || async { Err::<(), _>(LaneError::CommandError("no".into())) };
    let bad: Vec<_> = (0..3).map(|_| manager.submit_fn("work", "closure", bad).unwrap()).collect();
    assert!(manager.submit_fn("work", "closure", || async { Ok(()) }).is_err());
    manager.resume("work").unwrap();
    for ticket in good {
        done(ticket).unwrap();
    }
    for ticket in bad {
        done(ticket).unwrap_err();
    }
    finish(&manager);
    manager
}

#[test]
fn what_a_queue_has_done_arrives_with_the_last_push() {
    let receiver = Receiver::start();
    let metrics = QueueMetrics::local();
    let endpoint = OtlpEndpoint::new(receiver.url())
        .service_name("mail")
        .resource_attribute("deployment.environment.name", "test")
        .header("x-key", "secret");
    let exporter = OtlpExporter::builder(endpoint).start(&metrics).unwrap();
    let _manager = work(&metrics);
    let stats = exporter.shutdown();
    assert_eq!((stats.sent, stats.dropped, stats.last_error), (1, 0, None));

    let request = &receiver.requests()[0];
    let header = |name: &str| request.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!(request.path, "/v1/metrics");
    assert_eq!((header("content-type"), header("x-key")), (Some("application/x-protobuf"), Some("secret")));

    let messages = receiver.metrics();
    let message = &messages[0];
    let resource = &message.resource_metrics[0].resource.as_ref().unwrap().attributes;
    assert_eq!(attribute(resource, "service.name").as_deref(), Some("mail"));
    assert_eq!(attribute(resource, "deployment.environment.name").as_deref(), Some("test"));
    assert_eq!(attribute(resource, "service.instance.id").map(|id| id.len()), Some(36));
    assert_eq!(message.resource_metrics[0].scope_metrics[0].scope.as_ref().unwrap().name, "corelane");

    let lane = ("lane", "work");
    assert_eq!(number(message, "a3s.lane.commands.submitted", &[lane]), 8.0);
    assert_eq!(number(message, "a3s.lane.commands.started", &[lane]), 8.0);
    let finished = |outcome| number(message, "a3s.lane.commands.finished", &[lane, ("outcome", outcome)]);
    let outcomes = ["ok", "error", "panic", "timeout", "cancelled", "expired", "shed"];
    assert_eq!(outcomes.map(finished), [5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(number(message, "a3s.lane.commands.rejected", &[lane, ("reason", "full")]), 1.0);
    assert_eq!(number(message, "a3s.lane.queue.depth", &[lane]), 0.0);
    assert_eq!(number(message, "a3s.lane.concurrency_limit", &[lane, ("bound", "max")]), 2.0);
    assert_eq!(number(message, "a3s.lane.oldest_pending_age", &[lane]), 0.0);
    assert_eq!(number(message, "a3s.lane.build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(number(message, "a3s.lane.worker.polls", &[("worker", "0")]) >= 0.0);

    let duration = metric(message, "a3s.lane.command.duration");
    let Some(Data::Histogram(histogram)) = &duration.data else { panic!("{duration:?}") };
    assert_eq!((duration.unit.as_str(), histogram.aggregation_temporality), ("s", CUMULATIVE));
    let point = &histogram.data_points[0];
    assert_eq!(attribute(&point.attributes, "lane").as_deref(), Some("work"));
    assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (8, 8));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert!(point.explicit_bounds.is_sorted());
    // Five took at least 2 ms, and lie above 1 ms.
    let above = point.explicit_bounds.iter().position(|bound| *bound == 1e-3).unwrap() + 1;
    assert!(point.bucket_counts[above..].iter().sum::<u64>() >= 5, "{point:?}");
    assert!(point.sum.unwrap() >= 0.01 && point.sum.unwrap() < 60.0, "{point:?}");
    assert!(point.start_time_unix_nano < point.time_unix_nano);
}

#[test]
fn later_pushes_go_on_from_where_the_earlier_ones_were() {
    let receiver = Receiver::start();
    let metrics = QueueMetrics::local();
    let builder = OtlpExporter::builder(receiver.url()).histograms(OtlpHistograms::Exponential);
    let exporter = builder.interval(Duration::from_millis(20)).start(&metrics).unwrap();
    drop(work(&metrics));
    receiver.wait_for(receiver.requests().len() + 2);
    drop(work(&metrics));
    drop(exporter);

    let messages = receiver.metrics();
    let mut before = (0.0, 0);
    for message in &messages {
        let submitted = metric(message, "a3s.lane.commands.submitted");
        let Some(Data::Sum(sum)) = &submitted.data else { panic!("{submitted:?}") };
        let Some(point) = sum.data_points.first() else { continue };
        assert!(value(point) >= before.0, "{before:?}: {point:?}");
        if before.1 > 0 {
            assert_eq!(point.start_time_unix_nano, before.1);
        }
        before = (value(point), point.start_time_unix_nano);
    }
    assert_eq!(before.0, 16.0);

    let duration = metric(messages.last().unwrap(), "a3s.lane.command.duration");
    let Some(Data::ExponentialHistogram(histogram)) = &duration.data else { panic!("{duration:?}") };
    let point = &histogram.data_points[0];
    let buckets = point.positive.as_ref().unwrap();
    assert_eq!((point.count, buckets.bucket_counts.iter().sum::<u64>() + point.zero_count), (16, 16));
    let base = 2f64.powf(2f64.powi(-point.scale));
    let lower = |place: usize| base.powi(buckets.offset + i32::try_from(place).unwrap());
    // Ten took at least 2 ms.
    let slow = buckets.bucket_counts.iter().enumerate().filter(|(place, _)| lower(*place) * base >= 2e-3);
    assert!(slow.map(|(_, count)| count).sum::<u64>() >= 10, "{point:?}");
    assert!(lower(buckets.bucket_counts.len()) < 60.0);
}

/// A program's own exporter: what it was given, as OTLP.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<std::sync::Mutex<Vec<ExportMetricsServiceRequest>>>);

impl PushMetricExporter for Kept {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.0.lock().unwrap().push(metrics.into());
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn provider() -> (SdkMeterProvider, Kept) {
    let kept = Kept::default();
    let reader = PeriodicReader::builder(kept.clone()).with_interval(Duration::from_secs(3600)).build();
    (SdkMeterProvider::builder().with_reader(reader).build(), kept)
}

#[test]
fn a_backend_hands_names_of_lanes_to_instruments_with_the_lane_as_attribute() {
    let (provider, kept) = provider();
    let backend = OtelMetricsBackend::with_meter(provider.meter("program"));
    block_on(async {
        for _ in 0..2 {
            backend.increment_counter("lane.commands.submitted.query", 3).await;
            backend.increment_counter("lane.commands.submitted", 3).await;
            // A gauge says what is, and is not added up.
            backend.set_gauge("lane.queue.depth.query", 7.0).await;
        }
        backend.set_gauge("lane.queue.depth.query", 2.5).await;
        backend.record_histogram_many("lane.command.latency_ms.a.b", 20.0, 4).await;
        backend.record_histogram("my.sizes", 20.0).await;
        assert_eq!(backend.get_counter("lane.commands.submitted").await, None);
        assert!(backend.snapshot().await.counters.is_empty());
    });
    provider.force_flush().unwrap();
    let messages = kept.0.lock().unwrap();
    let message = messages.last().unwrap();
    assert_eq!(number(message, "a3s.lane.commands.submitted", &[("lane", "query")]), 6.0);
    assert_eq!(number(message, "lane.commands.submitted", &[]), 6.0);
    assert_eq!(number(message, "a3s.lane.queue.depth", &[("lane", "query")]), 2.5);
    let duration = metric(message, "a3s.lane.command.duration");
    let Some(Data::Histogram(histogram)) = &duration.data else { panic!("{duration:?}") };
    let point = &histogram.data_points[0];
    assert_eq!((duration.unit.as_str(), point.count), ("s", 4));
    assert_eq!(attribute(&point.attributes, "lane").as_deref(), Some("a.b"));
    assert!((point.sum.unwrap() - 0.08).abs() < 1e-9);
    let sizes = metric(message, "my.sizes");
    let Some(Data::Histogram(histogram)) = &sizes.data else { panic!("{sizes:?}") };
    assert_eq!((sizes.unit.as_str(), histogram.data_points[0].sum), ("", Some(20.0)));
}

#[test]
fn a_queue_fills_the_instruments_of_a_backend() {
    let (provider, kept) = provider();
    let metrics = QueueMetrics::new(Arc::new(OtelMetricsBackend::with_meter(provider.meter("program"))))
        .with_interval(Duration::from_millis(10));
    let _manager = work(&metrics);
    // The collector hands over what has come once per interval, on its own thread.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        provider.force_flush().unwrap();
        let messages = kept.0.lock().unwrap();
        let last = messages.last().filter(|message| {
            metrics_of(message).iter().any(|metric| metric.name == "a3s.lane.commands.completed")
                && number(message, "a3s.lane.commands.completed", &[("lane", "work")]) == 5.0
                && number(message, "a3s.lane.commands.failed", &[("lane", "work")]) == 3.0
        });
        if let Some(message) = last {
            assert_eq!(number(message, "a3s.lane.commands.submitted", &[("lane", "work")]), 8.0);
            return;
        }
        let names: Vec<_> = messages.last().map(|message| metrics_of(message)).unwrap_or_default();
        assert!(std::time::Instant::now() < deadline, "{names:?}");
        drop(messages);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_recorder_of_a3s_lane_uses_the_global_meter() {
    // Before it is made, nothing happens.
    telemetry::record_submit("query");
    let (provider, kept) = provider();
    global::set_meter_provider(provider.clone());
    telemetry::init_lane_metrics();
    telemetry::init_lane_metrics();
    telemetry::record_submit("query");
    telemetry::record_complete("query", 1.5);
    telemetry::record_failure("query");
    provider.force_flush().unwrap();
    let messages = kept.0.lock().unwrap();
    let message = messages.last().unwrap();
    for name in ["commands_submitted_total", "commands_completed_total", "commands_failed_total"] {
        assert_eq!(number(message, &format!("a3s_lane_{name}"), &[("lane", "query")]), 1.0, "{name}");
    }
    assert!(telemetry::metrics().is_some());
    let duration = metric(message, "a3s_lane_command_duration_seconds");
    let Some(Data::Histogram(histogram)) = &duration.data else { panic!("{duration:?}") };
    assert_eq!(histogram.data_points[0].sum, Some(1.5));
    assert_eq!(telemetry::SPAN_LANE_EXECUTE, "a3s.lane.execute");
    assert_eq!(telemetry::ATTR_COMMAND_ID, "a3s.lane.command_id");
}
