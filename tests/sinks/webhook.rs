//! The signed webhook.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use corelane::{AlertSink, Notification, WebhookSink};
use serde_json::json;

use crate::schema::assert_fits;
use crate::stub::{Answer, Request, Stub};
use crate::support::{SIGNING_SECRET, all, firing, resolved};

fn sent(sink: &dyn AlertSink, stub: &Stub, notification: &Notification) -> Request {
    sink.deliver(notification).unwrap();
    let request = stub.next();
    assert_fits("webhook", &request.json());
    request
}

#[test]
fn the_body_says_all_of_it() {
    let stub = Stub::always(200);
    let request = sent(&*all(&stub.url).remove(2), &stub, &firing());
    assert_eq!(
        request.json(),
        json!({
            "type": "corelane.alert.firing",
            "timestamp": "2026-11-24T04:00:00.250Z",
            "data": {
                "fingerprint": "4bf92f3577b34da6",
                "status": "firing",
                "level": "critical",
                "rule": "queue_depth",
                "lane": "query",
                "message": "lane query: queue depth 250 >= 200 for 60 s",
                "value": 250.0,
                "threshold": 200.0,
                "instance": "host-1",
                "started_at": "2026-11-24T04:00:00.250Z",
                "ended_at": null,
                "sequence": 1,
                "labels": {"team": "payments"},
                "dashboard_url": "https://grafana.example.com/d/lanes?from=now-1h&var-lane=query",
                "runbook_url": "https://wiki.example.com/lanes",
            },
        })
    );
    let end = sent(&*all(&stub.url).remove(2), &stub, &resolved()).json();
    assert_eq!(end["type"], "corelane.alert.resolved");
    assert_eq!(end["timestamp"], "2026-11-24T05:02:03.500Z");
    assert_eq!(end["data"]["ended_at"], "2026-11-24T05:02:03.500Z");
}

#[test]
fn an_attempt_is_signed_when_it_is_made() {
    let stub = Stub::always(200);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let request = sent(&*all(&stub.url).remove(2), &stub, &firing());
    let at: u64 = request.headers["webhook-timestamp"].parse().unwrap();
    assert!((before..=before + 60).contains(&at), "{at}");
    let signature = request.headers["webhook-signature"].strip_prefix("v1,").unwrap();
    assert_eq!(signature.len(), 44, "32 bytes in base64");
    assert_eq!(request.headers.get("authorization"), None);
}

#[test]
fn a_notification_has_one_id_however_often_it_is_delivered() {
    let stub = Stub::start([500, 429, 200, 200].map(Answer::status).to_vec());
    let mut ids = HashSet::new();
    for attempt in 0..4 {
        // The last one is by another process.
        let sink = all(&stub.url).remove(2);
        assert_eq!(sink.deliver(&firing()).is_ok(), attempt >= 2);
        ids.insert(stub.next().headers["webhook-id"].clone());
    }
    assert_eq!(ids.len(), 1);
}

#[test]
fn different_notifications_have_different_ids() {
    let stub = Stub::always(200);
    let sink = all(&stub.url).remove(2);
    let other = |change: fn(&mut Notification)| {
        let mut notification = firing();
        change(&mut notification);
        notification
    };
    let notifications = [
        firing(),
        resolved(),
        other(|n| n.sequence = 2),
        other(|n| n.fingerprint.push('0')),
        // It ceased, and fires again: the count begins anew.
        other(|n| n.started_at += chrono::TimeDelta::seconds(1)),
    ];
    let ids: HashSet<_> = notifications
        .iter()
        .map(|notification| sent(&*sink, &stub, notification).headers["webhook-id"].clone())
        .collect();
    assert_eq!(ids.len(), notifications.len());
    assert!(ids.iter().all(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')), "{ids:?}");
}

#[test]
fn while_a_secret_is_replaced_both_sign() {
    let stub = Stub::always(200);
    let old = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let url = format!("{}/hook", stub.url);
    let both = WebhookSink::builder(url, SIGNING_SECRET).also_sign_with(old).build().unwrap();
    let request = sent(&both, &stub, &firing());
    let signatures: Vec<_> = request.headers["webhook-signature"].split(' ').collect();
    assert_eq!(signatures.len(), 2);
    assert!(signatures.iter().all(|signature| signature.starts_with("v1,")));
    assert_ne!(signatures[0], signatures[1]);
}

#[test]
fn a_gateway_gets_its_authorization() {
    let stub = Stub::always(200);
    let url = format!("{}/hook", stub.url);
    let sink = WebhookSink::builder(url, SIGNING_SECRET).authorization("Bearer abc").build().unwrap();
    assert_eq!(sent(&sink, &stub, &firing()).headers["authorization"], "Bearer abc");
}
