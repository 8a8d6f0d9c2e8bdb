//! The exposition of readings made by hand, and the endpoint over real sockets.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use proptest::prelude::*;

use super::accept::Format;
use super::{PrometheusEndpoint, PrometheusExporter, default_bounds, families};
use crate::alert::{AlertManager, AlertRule, AlertSink, Notification, SinkError};
use crate::error::LaneError;
use crate::metrics::{
    CommandTypeReading, DeadLettered, Finished, Histogram, LaneReading, QueueMetrics, Reading, RejectedCounts,
    WorkerReading,
};

/// A reading in which every number is another one, with a lane whose name is no plain word.
fn reading() -> Arc<Reading> {
    let mut wait = Histogram::new();
    wait.record(Duration::from_micros(3), 5);
    wait.record(Duration::from_millis(40), 2);
    let mut run = Histogram::new();
    run.record(Duration::from_millis(2), 6);
    run.record(Duration::from_secs(3000), 1);
    let query = LaneReading {
        lane: "query".into(),
        priority: 1,
        pending: 11,
        delayed: 4,
        active: 3,
        min_concurrency: 1,
        max_concurrency: 8,
        oldest_pending: Some(Duration::from_millis(1500)),
        oldest_active: Some(Duration::from_micros(250)),
        submitted: 120,
        started: 110,
        finished: Finished { ok: 90, error: 7, panic: 1, timeout: 2, cancelled: 5, expired: 6, shed: 8 },
        rejected: RejectedCounts { full: 12, shutdown: 13, invalid: 14, storage: 15 },
        retries: 16,
        dead_lettered: DeadLettered { failed: 17, panicked: 18, timed_out: 19, expired: 20, shed: 21, other: 22 },
        dead_letters: 23,
        oldest_dead_letter: Some(Duration::from_secs(86_400)),
        boosts: 24,
        throttled: Duration::from_millis(2500),
        wait,
        run: run.clone(),
        command_types: vec![CommandTypeReading {
            command_type: "embed".into(),
            finished: Finished { ok: 89, ..Finished::default() },
            run,
        }],
        ..LaneReading::default()
    };
    let odd = LaneReading { lane: "a \"b\"\\\nΩ,{}=#".into(), paused: true, ..LaneReading::default() };
    Arc::new(Reading {
        at: DateTime::UNIX_EPOCH,
        elapsed: Duration::from_secs(60),
        lanes: vec![query, odd],
        workers: vec![
            WorkerReading { worker: 0, busy: Duration::from_millis(1250), polls: 25, steals: 26, parks: 27, stuck: 28 },
            WorkerReading { worker: 1, ..WorkerReading::default() },
        ],
        storage_errors: 29,
        events_dropped: 30,
    })
}

fn exporter() -> PrometheusExporter {
    PrometheusExporter::new(QueueMetrics::local())
        .with_label("instance", "host-1")
        .unwrap()
        .with_buckets([2500, 1000, 40_000_000, 1000].map(Duration::from_nanos))
}

#[test]
fn the_exposition_is_the_golden_one() {
    let exporter = exporter();
    for (format, golden) in
        [(Format::Text, include_str!("golden/text.txt")), (Format::OpenMetrics, include_str!("golden/openmetrics.txt"))]
    {
        let encoded = exporter.encode(&reading(), format);
        // The version is the package's.
        let encoded = encoded.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        for (line, (encoded, golden)) in encoded.lines().zip(golden.lines()).enumerate() {
            assert_eq!(encoded, golden, "{format:?}, line {}", line + 1);
        }
        assert_eq!(encoded.len(), golden.len(), "{format:?}");
    }
}

/// `cargo test --features prometheus --lib write_the_golden_exposition -- --ignored`
#[test]
#[ignore = "writes what the test above compares with"]
fn write_the_golden_exposition() {
    for (format, name) in [(Format::Text, "text"), (Format::OpenMetrics, "openmetrics")] {
        let encoded = exporter().encode(&reading(), format).replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let path = format!("{}/src/adapters/prometheus/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, encoded).unwrap();
    }
}

#[test]
fn the_default_bounds_are_1_2_5_5_from_a_microsecond_to_ten_minutes() {
    let bounds: Vec<f64> = default_bounds().iter().map(Duration::as_secs_f64).collect();
    assert_eq!(bounds.len(), 28);
    assert_eq!(bounds[..6], [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5]);
    assert_eq!(bounds[24..], [100.0, 250.0, 500.0, 600.0]);
    assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn notifications_are_counted_by_receiver_and_result() {
    struct Full(&'static str);
    impl AlertSink for Full {
        fn name(&self) -> &str {
            self.0
        }
        fn deliver(&self, _: &Notification) -> Result<(), SinkError> {
            Err(SinkError::Refused("full".into()))
        }
    }
    let sinks = ["odd \"one\"", "twice", "twice"];
    let alerts = AlertManager::new().with_rules([AlertRule::queue_depth(1)]).unwrap();
    let alerts = Arc::new(sinks.into_iter().fold(alerts, |alerts, name| alerts.with_sink(Arc::new(Full(name)))));
    futures_lite::future::block_on(async {
        alerts.check_queue_depth("x", 5).await;
        assert!(alerts.flush(Duration::from_secs(10)).await);
    });
    let exporter = PrometheusExporter::new(QueueMetrics::local());
    assert!(!exporter.text().contains("alert_notifications"));
    let text = exporter.with_alerts(alerts).text();
    for line in [
        r#"{sink="odd \"one\"",result="refused"} 1"#,
        r#"{sink="twice",result="refused"} 2"#,
        r#"{sink="twice",result="delivered"} 0"#,
        r#"{sink="callbacks",result="delivered"} 0"#,
    ] {
        let line = format!("a3s_lane_alert_notifications_total{line}");
        assert_eq!(text.lines().filter(|other| **other == line).count(), 1, "{line} in {text}");
    }
}

#[test]
fn a_reading_without_lanes_is_encoded() {
    let text = PrometheusExporter::new(QueueMetrics::local()).text();
    assert!(text.contains("\na3s_lane_storage_errors_total 0\n"), "{text}");
    assert!(!text.contains("{lane="), "{text}");
}

#[test]
fn label_names_that_prometheus_refuses_or_that_are_taken_are_refused() {
    for name in ["", "1a", "a-b", "a.b", "__a", "ä", "lane", "le", "instance"] {
        let refused = exporter().with_label(name, "x");
        assert!(matches!(refused, Err(LaneError::ConfigError(_))), "{name}");
    }
    assert!(exporter().with_label("_a1", "any \"value\"").is_ok());
}

proptest! {
    #[test]
    fn buckets_are_cumulative_end_at_the_count_and_are_right_within_the_stated_error(
        durations in prop::collection::vec((0..2_000_000_000_000u64, 1..5u64), 0..40),
        bounds in prop::collection::vec(0..2_000_000_000_000u64, 0..12),
    ) {
        let mut histogram = Histogram::new();
        for (nanos, count) in &durations {
            histogram.record(Duration::from_nanos(*nanos), *count);
        }
        let exporter = PrometheusExporter::new(QueueMetrics::local()).with_buckets(bounds.into_iter().map(Duration::from_nanos));
        let buckets = families::buckets(&histogram, &exporter.bounds);
        prop_assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
        let mut cumulative = 0;
        for (bound, (upper, count)) in exporter.bounds.iter().zip(&buckets) {
            prop_assert_eq!(bound.as_secs_f64(), *upper);
            cumulative += count;
            let at_most = |limit: f64| durations.iter().filter(|d| d.0 as f64 <= limit).map(|d| d.1).sum::<u64>();
            let nanos = bound.as_nanos() as f64;
            prop_assert!(cumulative <= at_most(nanos), "{} counts too many", upper);
            prop_assert!(cumulative >= at_most(nanos * (1.0 - Histogram::RELATIVE_ERROR) - 1.0), "{} counts too few", upper);
        }
        prop_assert_eq!(buckets.iter().map(|bucket| bucket.1).sum::<u64>(), histogram.count());

        // The same, as it is written.
        let lane = LaneReading { lane: "x".into(), run: histogram.clone(), ..LaneReading::default() };
        let reading = Reading { lanes: vec![lane], ..(*reading()).clone() };
        let text = exporter.encode(&Arc::new(reading), Format::Text);
        let family = "a3s_lane_command_duration_seconds";
        let value = |series: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&*format!("{family}_{series} ")));
            line.unwrap_or_else(|| panic!("no {series}: {text}")).parse::<f64>().unwrap()
        };
        let prefix = format!("{family}_bucket{{");
        let written = text.lines().filter(|line| line.starts_with(&prefix));
        let written: Vec<f64> = written.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        prop_assert_eq!(written.len(), buckets.len());
        prop_assert!(written.windows(2).all(|pair| pair[0] <= pair[1]));
        prop_assert_eq!(*written.last().unwrap(), value("count{lane=\"x\"}"));
        prop_assert_eq!(value("bucket{lane=\"x\",le=\"+Inf\"}"), histogram.count() as f64);
        let sum: u128 = durations.iter().map(|d| u128::from(d.0) * u128::from(d.1)).sum();
        let written = value("sum{lane=\"x\"}");
        prop_assert!((written - sum as f64 / 1e9).abs() <= written * 1e-12, "{} {}", written, sum);
    }
}

fn serve() -> PrometheusEndpoint {
    PrometheusExporter::new(QueueMetrics::local()).serve("127.0.0.1:0").unwrap()
}

/// Sends bytes and reads the answer until the connection is closed.
fn answer(endpoint: &PrometheusEndpoint, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(endpoint.local_addr()).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn scrapes_are_answered_in_the_format_that_is_asked_for() {
    let endpoint = serve();
    let text = answer(&endpoint, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    assert!(body.contains("a3s_lane_build_info{version="), "{body}");

    let request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let openmetrics = answer(&endpoint, request);
    assert!(openmetrics.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{openmetrics}");
    assert!(openmetrics.ends_with("# EOF\n"), "{openmetrics}");

    let head = answer(&endpoint, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
}

#[test]
fn what_is_no_scrape_is_refused() {
    let endpoint = serve();
    let body = "x".repeat(32 * 1024);
    let post = format!("POST /metrics HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let long = format!("GET /metrics HTTP/1.1\r\nA: {body}\r\n\r\n");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("garbage\r\n\r\n", "400 Bad Request"),
        (&post, "405 Method Not Allowed"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let answer = answer(&endpoint, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{status}: {answer}");
        assert_eq!(answer.contains("\r\nAllow: GET, HEAD\r\n"), status.starts_with("405"));
    }
}

#[test]
fn a_connection_that_is_slow_or_broken_holds_up_no_other_one() {
    let endpoint = serve();
    let mut slow = TcpStream::connect(endpoint.local_addr()).unwrap();
    slow.write_all(b"GET /met").unwrap();
    let silent = TcpStream::connect(endpoint.local_addr()).unwrap();
    TcpStream::connect(endpoint.local_addr()).unwrap().shutdown(Shutdown::Both).unwrap();
    for _ in 0..10 {
        assert!(answer(&endpoint, b"GET /metrics HTTP/1.1\r\n\r\n").contains("200 OK"));
    }
    // And it is still served, in its own time.
    slow.write_all(b"rics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.contains("200 OK"), "{text}");
    drop(silent);
}

#[test]
fn an_endpoint_that_is_stopped_cuts_off_what_is_open_and_leaves_its_port() {
    let endpoint = serve();
    let address = endpoint.local_addr();
    let threads = endpoint.threads_alive();
    assert_eq!(Arc::strong_count(&threads.upgrade().unwrap()), 6, "four threads, the endpoint, and this look");
    // More than there are threads: some are being read from, others not yet accepted.
    let open: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
    endpoint.stop();
    assert!(threads.upgrade().is_none(), "a thread is left");
    for mut stream in open {
        // Closed in order or reset, but not left open.
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    let again = PrometheusExporter::new(QueueMetrics::local()).serve(address).unwrap();
    assert_eq!(again.local_addr(), address);
}

#[test]
fn an_endpoint_on_all_addresses_stops_too() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        // There may be no IPv6 here.
        let Ok(endpoint) = PrometheusExporter::new(QueueMetrics::local()).serve(address) else { continue };
        let threads = endpoint.threads_alive();
        drop(endpoint);
        assert!(threads.upgrade().is_none(), "{address}: a thread is left");
    }
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let endpoint = serve();
    let error = PrometheusExporter::new(QueueMetrics::local()).serve(endpoint.local_addr()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}
