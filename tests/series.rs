//! OTLP and Prometheus say the same: what is pushed is, under Prometheus' names, what is scraped.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the tests of OTLP use the rest")]
#[path = "otlp/receiver.rs"]
mod receiver;

use std::collections::BTreeMap;
use std::time::Duration;

use corelane::{
    DeadLetterQueue, EventEmitter, Executor, LaneConfig, LaneError, OtlpExporter, PrometheusExporter,
    QueueManagerBuilder, QueueMetrics,
};
use futures::executor::block_on;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;

use receiver::{Receiver, attribute};

/// Values by name and labels.
type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// By the rules of OpenTelemetry's specification on compatibility with Prometheus.
fn pushed(receiver: &Receiver) -> Series {
    let mut series = Series::new();
    let messages = receiver.metrics();
    let resources = &messages.last().unwrap().resource_metrics;
    for metric in resources.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let unit = if metric.unit == "s" { "_seconds" } else { "" };
        let name = format!("{}{unit}", metric.name.replace('.', "_"));
        let mut add = |name: String, of: &[KeyValue], le: Option<f64>, value: f64| {
            let mut labels: BTreeMap<_, _> =
                of.iter().map(|label| (label.key.clone(), attribute(of, &label.key).unwrap())).collect();
            labels.extend(le.map(|le| ("le".to_owned(), le.to_string())));
            assert_eq!(series.insert((name, labels), value), None);
        };
        let number = |point: &NumberDataPoint| match point.value {
            Some(Value::AsInt(value)) => value as f64,
            Some(Value::AsDouble(value)) => value,
            None => panic!("a point without a value"),
        };
        match metric.data.as_ref().unwrap() {
            Data::Gauge(gauge) => {
                gauge.data_points.iter().for_each(|point| add(name.clone(), &point.attributes, None, number(point)));
            }
            Data::Sum(sum) => {
                let name = format!("{name}_total");
                sum.data_points.iter().for_each(|point| add(name.clone(), &point.attributes, None, number(point)));
            }
            Data::Histogram(histogram) => {
                for point in &histogram.data_points {
                    let mut so_far = 0;
                    let bounds = point.explicit_bounds.iter().copied().chain([f64::INFINITY]);
                    for (bound, count) in bounds.zip(&point.bucket_counts) {
                        so_far += count;
                        add(format!("{name}_bucket"), &point.attributes, Some(bound), so_far as f64);
                    }
                    add(format!("{name}_sum"), &point.attributes, None, point.sum.unwrap());
                    add(format!("{name}_count"), &point.attributes, None, point.count as f64);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    series
}

fn scraped(text: &str) -> Series {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (key, value) = label.split_once('=').unwrap();
            let value = value.trim_matches('"');
            // However a bound is written.
            let value = if key == "le" { value.parse::<f64>().unwrap().to_string() } else { value.to_owned() };
            (key.to_owned(), value)
        });
        ((name.to_owned(), labels.collect()), value.parse().unwrap())
    });
    samples.collect()
}

#[test]
fn what_is_pushed_is_what_is_scraped() {
    let receiver = Receiver::start();
    let metrics = QueueMetrics::local().with_command_types(10);
    let otlp = OtlpExporter::builder(receiver.url()).start(&metrics).unwrap();
    let prometheus = PrometheusExporter::new(metrics.clone());
    let executor = Executor::builder().workers(2).pin(false).build().unwrap();
    let builder = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_executor(executor)
        .with_lane("good", LaneConfig::new(1, 4), 1)
        .with_lane("bad", LaneConfig::new(1, 4), 2)
        .with_dlq(DeadLetterQueue::new(100))
        .with_metrics(metrics);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    for n in 0..100 {
        let good = move || async move {
            corelane::sleep(Duration::from_micros(n * 50)).await;
            Ok(())
        };
        manager.submit_fn("good", "good", good).unwrap().detach();
        let bad = || async { Err::<(), _>(LaneError::CommandError("no".into())) };
        manager.submit_fn("bad", "bad", bad).unwrap().detach();
    }
    block_on(manager.drain(Duration::from_secs(60))).unwrap();

    assert_eq!(otlp.shutdown().sent, 1);
    let (mut pushed, mut scraped) = (pushed(&receiver), scraped(&prometheus.text()));
    assert_eq!(pushed.keys().collect::<Vec<_>>(), scraped.keys().collect::<Vec<_>>());
    // What goes on between the two readings.
    let goes_on = |name: &str| name.starts_with("a3s_lane_worker_") || name.ends_with("_age_seconds");
    pushed.retain(|(name, _), _| !goes_on(name));
    scraped.retain(|(name, _), _| !goes_on(name));
    assert_eq!(pushed, scraped);
    let labels = [("lane", "good"), ("outcome", "ok")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(pushed[&("a3s_lane_commands_finished_total".to_owned(), labels.into())], 100.0);
}
