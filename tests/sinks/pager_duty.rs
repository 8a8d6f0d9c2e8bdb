//! PagerDuty's event.

use corelane::{AlertLevel, Notification};
use serde_json::{Value, json};

use crate::schema::assert_fits;
use crate::stub::Stub;
use crate::support::{ROUTING_KEY, all, firing, resolved};

fn sent(notification: &Notification) -> Value {
    let stub = Stub::always(202);
    all(&stub.url).remove(1).deliver(notification).unwrap();
    let body = stub.next().json();
    assert_fits("pagerduty", &body);
    body
}

#[test]
fn an_alert_triggers_an_incident() {
    assert_eq!(
        sent(&firing()),
        json!({
            "routing_key": ROUTING_KEY,
            "event_action": "trigger",
            "dedup_key": "corelane:4bf92f3577b34da6",
            "payload": {
                "summary": "lane query: queue depth 250 >= 200 for 60 s",
                "source": "host-1",
                "severity": "critical",
                "timestamp": "2026-11-24T04:00:00.250Z",
                "component": "query",
                "group": "corelane",
                "class": "queue_depth",
                "custom_details": {
                    "lane": "query",
                    "value": 250.0,
                    "threshold": 200.0,
                    "started_at": "2026-11-24T04:00:00.250Z",
                    "notification": 1,
                    "labels": {"team": "payments"},
                },
            },
            "client": "corelane",
            "client_url": "https://grafana.example.com/d/lanes?from=now-1h&var-lane=query",
            "links": [
                {"href": "https://grafana.example.com/d/lanes?from=now-1h&var-lane=query", "text": "Dashboard"},
                {"href": "https://wiki.example.com/lanes", "text": "Runbook"},
            ],
        })
    );
}

#[test]
fn its_end_and_its_levels_are_the_same_incident() {
    let key = sent(&firing())["dedup_key"].clone();
    let end = sent(&resolved());
    assert_eq!((&end["event_action"], &end["dedup_key"]), (&json!("resolve"), &key));
    assert_eq!(end["payload"]["timestamp"], "2026-11-24T05:02:03.500Z");
    for (level, severity) in
        [(AlertLevel::Info, "info"), (AlertLevel::Warning, "warning"), (AlertLevel::Critical, "critical")]
    {
        let mut notification = firing();
        notification.alert.level = level;
        let event = sent(&notification);
        assert_eq!((&event["payload"]["severity"], &event["dedup_key"]), (&json!(severity), &key));
    }
}

#[test]
fn long_fingerprints_that_differ_at_the_end_stay_different() {
    let key = |end: &str| {
        let mut notification = firing();
        notification.fingerprint = format!("{}{end}", "é".repeat(300));
        sent(&notification)["dedup_key"].as_str().unwrap().to_owned()
    };
    assert_ne!(key("a"), key("b"));
    assert!(key("a").len() <= 255);
}

#[test]
fn an_alert_about_no_lane_and_of_no_instance_is_an_incident_too() {
    let mut notification = firing();
    notification.alert.lane_id.clear();
    notification.alert.message.clear();
    notification.instance.clear();
    let event = sent(&notification);
    assert_eq!(event["payload"]["source"], "corelane");
    assert_eq!(event["payload"]["summary"], "queue_depth");
    assert_eq!(event["payload"].get("component"), None);
}
