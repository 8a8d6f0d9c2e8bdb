//! Settings, and readings made by hand.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use chrono::DateTime;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use super::encode::{BOUNDS, Encoder, OtlpHistograms, exponential_index};
use super::endpoint::{OtlpEndpoint, Signal};
use crate::metrics::{Histogram, LaneReading, Reading};

fn target(
    endpoint: &OtlpEndpoint,
    signal: Signal,
    env: &[(&str, &str)],
) -> Result<(String, Vec<String>, Duration), String> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    let target = endpoint.target_in(signal, &|name| env.get(name).map(|value| (*value).to_owned()));
    let target = target.map_err(|errors| errors.to_string())?;
    let headers = target.headers.iter();
    let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    Ok((target.url.to_string(), headers, target.timeout))
}

#[test]
fn the_environment_counts_for_what_is_not_set() {
    let ten = Duration::from_secs(10);
    let default = OtlpEndpoint::from_env();
    let local = "http://localhost:4318/v1/";
    assert_eq!(target(&default, Signal::Traces, &[]), Ok((format!("{local}traces"), vec![], ten)));
    assert_eq!(target(&default, Signal::Metrics, &[]), Ok((format!("{local}metrics"), vec![], ten)));

    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otlp.example/base/"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces.example/as/it/is"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b%3D, x-tenant = t1 ,"),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-tenant=t2"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "500"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ];
    let headers = |tenant: &str| vec!["api-key: a b=".to_owned(), format!("x-tenant: {tenant}")];
    let traces = ("http://traces.example/as/it/is".to_owned(), headers("t1"), Duration::from_millis(2500));
    assert_eq!(target(&default, Signal::Traces, &env), Ok(traces));
    let metrics = ("https://otlp.example/base/v1/metrics".to_owned(), headers("t2"), Duration::from_millis(500));
    assert_eq!(target(&default, Signal::Metrics, &env), Ok(metrics));

    let set = OtlpEndpoint::new("http://here:1").header("X-Tenant", "mine").timeout(Duration::from_secs(1));
    let expected = ("http://here:1/v1/metrics".to_owned(), headers("mine"), Duration::from_secs(1));
    assert_eq!(target(&set, Signal::Metrics, &env), Ok(expected));
}

#[test]
fn what_is_wrong_in_the_environment_is_named_without_its_secrets() {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://user:password@otlp.example"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let errors = target(&OtlpEndpoint::from_env(), Signal::Traces, &env).unwrap_err();
    for (name, _) in env {
        assert!(errors.contains(name), "{name}: {errors}");
    }
    assert!(!errors.contains("password") && !errors.contains("secret"), "{errors}");
    // The protocol that the environment names is for the endpoint that it names.
    target(&OtlpEndpoint::new("http://here:1"), Signal::Traces, &[env[3]]).unwrap();
}

#[test]
fn a_resource_is_one_of_many_instances() {
    let resource = OtlpEndpoint::new("http://here:1").service_name("mail").resource_attribute("k", "v").resource();
    let get =
        |key: &'static str| resource.get(&opentelemetry::Key::from_static_str(key)).map(|value| value.to_string());
    assert_eq!((get("service.name").as_deref(), get("k").as_deref()), (Some("mail"), Some("v")));
    let other = OtlpEndpoint::new("http://here:1").resource();
    let instance = opentelemetry::Key::from_static_str("service.instance.id");
    assert_ne!(resource.get(&instance), other.get(&instance));
    let named = OtlpEndpoint::new("http://here:1").resource_attribute("service.instance.id", "one").resource();
    assert_eq!(named.get(&instance).map(|value| value.to_string()).as_deref(), Some("one"));
}

/// At this many seconds of the measurement, which began at 1000 s of the wall clock.
fn reading(seconds: u64, durations: &[u64]) -> Reading {
    let mut run = Histogram::new();
    durations.iter().for_each(|nanos| run.record(Duration::from_nanos(*nanos), 1));
    let lane = LaneReading { lane: "work".into(), run, submitted: durations.len() as u64, ..LaneReading::default() };
    Reading {
        at: DateTime::from_timestamp(1000 + seconds as i64, 0).unwrap(),
        elapsed: Duration::from_secs(seconds),
        lanes: vec![lane],
        workers: Vec::new(),
        storage_errors: 0,
        events_dropped: 0,
    }
}

fn metric(message: &ExportMetricsServiceRequest, name: &str) -> Metric {
    let metrics = &message.resource_metrics[0].scope_metrics[0].metrics;
    metrics.iter().find(|metric| metric.name == name).unwrap().clone()
}

fn encoder(histograms: OtlpHistograms) -> Encoder {
    Encoder::new(&OtlpEndpoint::new("http://here:1").resource(), histograms)
}

#[test]
fn sums_go_on_from_their_beginning_until_the_measurement_begins_anew() {
    let mut encoder = encoder(OtlpHistograms::Explicit);
    let mut times = |reading: &Reading| {
        let Some(Data::Sum(sum)) = metric(&encoder.encode(reading), "a3s.lane.commands.submitted").data else {
            panic!()
        };
        let point = &sum.data_points[0];
        (point.start_time_unix_nano / 1_000_000_000, point.time_unix_nano / 1_000_000_000)
    };
    assert_eq!(times(&reading(10, &[1])), (1000, 1010));
    // The wall clock was set back by 5 s.
    let mut later = reading(20, &[1, 1]);
    later.at -= Duration::from_secs(5);
    assert_eq!(times(&later), (1000, 1015));
    assert_eq!(times(&reading(2, &[1])), (1000, 1002));
}

#[test]
fn each_duration_is_in_the_bucket_that_holds_it() {
    // Bounds are in their buckets; values beyond all of them are in the last one.
    let durations = [500, 999, 1000, 1001, 2500, 999_999, 1_000_000, 700_000_000_000];
    let message = encoder(OtlpHistograms::Explicit).encode(&reading(1, &durations));
    let Some(Data::Histogram(histogram)) = metric(&message, "a3s.lane.command.duration").data else { panic!() };
    let point = &histogram.data_points[0];
    // What is counted are buckets of 3 %: those that a bound lies in count above it, but for their last value.
    let mut counted = Histogram::new();
    durations.iter().for_each(|nanos| counted.record(Duration::from_nanos(*nanos), 1));
    let mut so_far = 0;
    for (bound, count) in BOUNDS.iter().zip(&point.bucket_counts) {
        so_far += count;
        let within = durations.iter().filter(|nanos| **nanos as f64 * 1e-9 <= *bound).count() as u64;
        let certainly = counted.count_at_most(Duration::from_secs_f64(*bound));
        assert_eq!(so_far, certainly, "{bound}");
        assert!(so_far <= within, "{bound}");
    }
    assert_eq!((point.bucket_counts[BOUNDS.len()], point.count), (1, durations.len() as u64));
    let sum = durations.iter().sum::<u64>() as f64 * 1e-9;
    assert!((point.sum.unwrap() - sum).abs() < 1e-9 * sum);
}

#[test]
fn an_exponential_bucket_holds_what_is_above_its_lower_bound_and_not_above_its_upper_one() {
    let base = 2f64.powf(1.0 / 8.0);
    let mut nanos = 1u64;
    while nanos < 1 << 46 {
        let duration = Duration::from_nanos(nanos);
        let index = exponential_index(duration);
        // Within what a double can tell.
        let (lower, upper) = (base.powi(index) * (1.0 - 1e-12), base.powi(index + 1) * (1.0 + 1e-12));
        assert!(lower < duration.as_secs_f64() && duration.as_secs_f64() <= upper, "{duration:?}: {index}");
        nanos = nanos * 9 / 8 + 1;
    }
    assert_eq!(exponential_index(Duration::from_secs(1)), -1);
    assert_eq!(exponential_index(Duration::from_secs(2)), 7);

    let message = encoder(OtlpHistograms::Exponential).encode(&reading(1, &[0, 0, 1, 1_000_000, 1_000_000_000]));
    let Some(Data::ExponentialHistogram(histogram)) = metric(&message, "a3s.lane.command.duration").data else {
        panic!()
    };
    let point = &histogram.data_points[0];
    let buckets = point.positive.as_ref().unwrap();
    assert_eq!((point.zero_count, point.count, buckets.bucket_counts.iter().sum::<u64>()), (2, 5, 3));
    assert_eq!(buckets.offset, exponential_index(Duration::from_nanos(1)));
    assert_eq!(buckets.bucket_counts[0], 1);
    assert_eq!(buckets.bucket_counts.last(), Some(&1));
}

#[test]
fn a_reading_of_nothing_has_no_buckets() {
    let message = encoder(OtlpHistograms::Exponential).encode(&reading(1, &[]));
    let Some(Data::ExponentialHistogram(histogram)) = metric(&message, "a3s.lane.command.duration").data else {
        panic!()
    };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.positive.as_ref().unwrap().bucket_counts.len()), (0, 0));
}
