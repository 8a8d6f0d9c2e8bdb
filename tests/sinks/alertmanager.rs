//! Alertmanager's alerts.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use corelane::{AlertLevel, AlertSink, AlertmanagerSink, Notification};
use serde_json::{Value, json};

use crate::schema::assert_fits;
use crate::stub::{Answer, Stub};
use crate::support::{all, firing, resolved};

fn sent(sink: &dyn AlertSink, stub: &Stub, notification: &Notification) -> Vec<Value> {
    sink.deliver(notification).unwrap();
    let body = stub.next().json();
    assert_fits("alertmanager", &body);
    body.as_array().unwrap().clone()
}

fn at_level(level: AlertLevel) -> Notification {
    let mut notification = firing();
    notification.alert.level = level;
    notification
}

/// How far in the future an alert ends, in seconds.
fn ends_in(alert: &Value) -> i64 {
    let ends = DateTime::parse_from_rfc3339(alert["endsAt"].as_str().unwrap()).unwrap();
    (ends.to_utc() - DateTime::<Utc>::from(SystemTime::now())).num_seconds()
}

#[test]
fn an_alert_has_labels_to_route_by() {
    let stub = Stub::always(200);
    let mut alerts = sent(&*all(&stub.url).remove(3), &stub, &firing());
    assert_eq!(alerts.len(), 1);
    let ends_in = ends_in(&alerts[0]);
    assert!((12 * 60 * 60 - 60..=12 * 60 * 60).contains(&ends_in), "{ends_in}");
    alerts[0].as_object_mut().unwrap().remove("endsAt");
    assert_eq!(
        alerts[0],
        json!({
            "labels": {
                "alertname": "queue_depth",
                "instance": "host-1",
                "lane": "query",
                "severity": "critical",
                "team": "payments",
            },
            "annotations": {
                "summary": "lane query: queue depth 250 >= 200 for 60 s",
                "value": "250",
                "threshold": "200",
                "dashboard_url": "https://grafana.example.com/d/lanes?from=now-1h&var-lane=query",
                "runbook_url": "https://wiki.example.com/lanes",
            },
            "startsAt": "2026-11-24T04:00:00.250Z",
            "generatorURL": "https://grafana.example.com/d/lanes?from=now-1h&var-lane=query",
        })
    );
}

#[test]
fn its_end_is_the_same_alert_ended() {
    let stub = Stub::always(200);
    let sink = all(&stub.url).remove(3);
    let begin = sent(&*sink, &stub, &firing());
    let end = sent(&*sink, &stub, &resolved());
    assert_eq!(end.len(), 1);
    assert_eq!((&end[0]["labels"], &end[0]["startsAt"]), (&begin[0]["labels"], &begin[0]["startsAt"]));
    assert_eq!(end[0]["endsAt"], "2026-11-24T05:02:03.500Z");
}

#[test]
fn an_end_before_the_beginning_is_moved() {
    let stub = Stub::always(200);
    let mut notification = resolved();
    notification.ended_at = Some(notification.started_at - chrono::TimeDelta::seconds(5));
    let end = sent(&*all(&stub.url).remove(3), &stub, &notification);
    assert_eq!(end[0]["endsAt"], end[0]["startsAt"]);
}

#[test]
fn at_another_level_the_alert_before_is_ended() {
    let stub = Stub::start([200, 500, 200, 200, 200, 200].map(Answer::status).to_vec());
    let sink = all(&stub.url).remove(3);
    assert_eq!(sent(&*sink, &stub, &at_level(AlertLevel::Warning)).len(), 1);
    // What was not delivered does not count.
    sink.deliver(&at_level(AlertLevel::Critical)).unwrap_err();
    stub.next();
    let alerts = sent(&*sink, &stub, &at_level(AlertLevel::Critical));
    assert_eq!(alerts.len(), 2);
    assert_eq!(alerts[0]["labels"]["severity"], "critical");
    assert!(ends_in(&alerts[0]) > 60);
    assert_eq!(alerts[1]["labels"]["severity"], "warning");
    assert!(ends_in(&alerts[1]) <= 0);
    assert_eq!(sent(&*sink, &stub, &at_level(AlertLevel::Critical)).len(), 1, "it was told");
    // The end is at the level that it was told last; should it not be, both end.
    let mut end = resolved();
    end.alert.level = AlertLevel::Warning;
    let alerts = sent(&*sink, &stub, &end);
    assert_eq!(alerts.len(), 2);
    assert!(alerts.iter().all(|alert| ends_in(alert) <= 0));
    // Forgotten with its end.
    assert_eq!(sent(&*sink, &stub, &at_level(AlertLevel::Info)).len(), 1);
}

#[test]
fn an_alert_about_no_lane_has_no_empty_label() {
    let stub = Stub::always(200);
    let mut notification = firing();
    notification.alert.lane_id.clear();
    notification.instance.clear();
    let sink = AlertmanagerSink::builder(format!("{}/prefix/", stub.url)).expires_after(Duration::from_secs(600));
    let sink = sink.authorization("Basic dXNlcjpwYXNz").build().unwrap();
    sink.deliver(&notification).unwrap();
    let request = stub.next();
    assert_eq!(request.path, "/prefix/api/v2/alerts");
    assert_eq!(request.headers["authorization"], "Basic dXNlcjpwYXNz");
    assert_eq!(request.json()[0]["labels"], json!({"alertname": "queue_depth", "severity": "critical"}));
    assert!((500..=600).contains(&ends_in(&request.json()[0])));
}
