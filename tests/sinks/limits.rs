//! Whatever an alert says, what is sent keeps the receivers' limits.

use chrono::{DateTime, TimeDelta};
use corelane::{AlertLevel, AlertSink, AlertStatus, Notification};
use corelane::{AlertmanagerSink, PagerDutySink, SinkBuilder, SlackSink, WebhookSink};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::schema::assert_fits;
use crate::stub::{Answer, Stub};
use crate::support::{ROUTING_KEY, SIGNING_SECRET, firing, resolved};

const SINKS: [(&str, usize); 4] =
    [("slack", 100_000), ("pagerduty", 512_000), ("webhook", 20_000), ("alertmanager", 100_000)];

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,20}",
        "[&<>\"\\\\|*_`\u{0}-\u{1f}…]{0,3000}",
        (any::<char>(), 0..5000_usize).prop_map(|(c, count)| c.to_string().repeat(count)),
        "(🔴|é|a|&){0,2000}",
    ]
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::MIN),
        Just(f64::MIN_POSITIVE),
        Just(0.1 + 0.2)
    ]
}

fn any_notification() -> impl Strategy<Value = Notification> {
    let texts = (any_text(), any_text(), any_text(), any_text(), any_text());
    let level = prop_oneof![Just(AlertLevel::Info), Just(AlertLevel::Warning), Just(AlertLevel::Critical)];
    (texts, any_number(), any_number(), level, any::<bool>(), 0..4_000_000_000_i64, -5..1_000_000_i64, any::<u32>())
        .prop_map(
            |((lane, message, rule, fingerprint, instance), value, threshold, level, ends, at, lasted, sequence)| {
                let mut notification = if ends { resolved() } else { firing() };
                notification.alert.lane_id = lane;
                notification.alert.message = message;
                notification.alert.current_value = value;
                notification.alert.threshold = threshold;
                notification.alert.level = level;
                // A rule has a name.
                notification.rule = format!("r{rule}");
                notification.fingerprint = fingerprint;
                notification.instance = instance;
                notification.sequence = sequence;
                notification.started_at = DateTime::from_timestamp(at, 0).unwrap();
                // Clocks go backwards.
                notification.ended_at = ends.then(|| notification.started_at + TimeDelta::seconds(lasted));
                notification
            },
        )
}

/// Sinks with the most that settings allow.
fn full(url: &str) -> [Box<dyn AlertSink>; 4] {
    fn with<S>(builder: SinkBuilder<S>) -> SinkBuilder<S> {
        let link = format!("https://example.com/?lane={{lane}}&{}", "x".repeat(960));
        let builder = (0..20).fold(builder, |builder, n| builder.label(format!("l{n}"), "ü".repeat(90)));
        builder.dashboard_url(link.clone()).runbook_url(link)
    }
    [
        Box::new(with(SlackSink::builder(format!("{url}/slack"))).build().unwrap()),
        Box::new(with(PagerDutySink::builder(ROUTING_KEY).endpoint(format!("{url}/x"))).build().unwrap()),
        Box::new(with(WebhookSink::builder(format!("{url}/x"), SIGNING_SECRET)).build().unwrap()),
        Box::new(with(AlertmanagerSink::builder(url)).build().unwrap()),
    ]
}

fn assert_within_limits(stub: &Stub, sinks: &[Box<dyn AlertSink>], notification: &Notification) {
    for (sink, (schema, bytes)) in sinks.iter().zip(SINKS) {
        sink.deliver(notification).unwrap();
        let request = stub.next();
        assert_fits(schema, &request.json());
        assert!(request.body.len() <= bytes, "{schema}: {} bytes", request.body.len());
        if schema == "slack" {
            // Slack may count UTF-16 units.
            let header = request.json()["blocks"][0]["text"]["text"].as_str().unwrap().encode_utf16().count();
            assert!(header <= 150, "{header}");
        }
    }
}

#[test]
fn any_alert_fits() {
    let stub = Stub::start(vec![Answer::status(200); 4 * 300]);
    let sinks = full(&stub.url);
    let mut runner =
        TestRunner::new(Config { cases: 64, max_shrink_iters: 200, failure_persistence: None, ..Config::default() });
    runner
        .run(&any_notification(), |notification| {
            assert_within_limits(&stub, &sinks, &notification);
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_longest_alert_fits() {
    let stub = Stub::always(200);
    let sinks = full(&stub.url);
    // What JSON makes longest, what addresses make longest, what UTF-8 makes longest.
    for text in ["\u{1}", "ü", "\u{10ffff}", "\"", "&"] {
        let mut notification = resolved();
        assert_eq!(notification.status, AlertStatus::Resolved);
        let long = text.repeat(10_000);
        notification.alert.lane_id = long.clone();
        notification.alert.message = long.clone();
        notification.rule = long.clone();
        notification.fingerprint = long.clone();
        notification.instance = long;
        notification.alert.current_value = f64::MIN;
        assert_within_limits(&stub, &sinks, &notification);
    }
}
