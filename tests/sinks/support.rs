//! Notifications, and sinks that lead to a stub.

use std::env;
use std::process::Command;
use std::time::Duration;

use corelane::{
    AlertSink, AlertmanagerSink, Notification, PagerDutySink, Secret, SinkBuilder, SinkError, SlackSink, WebhookSink,
};
use serde_json::json;

pub(crate) const ROUTING_KEY: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const SIGNING_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const SLACK_PATH: &str = "/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX";

/// An alert that fires.
pub(crate) fn firing() -> Notification {
    serde_json::from_value(json!({
        "status": "firing",
        "alert": {
            "level": "critical",
            "lane_id": "query",
            "message": "lane query: queue depth 250 >= 200 for 60 s",
            "current_value": 250.0,
            "threshold": 200.0,
        },
        "rule": "queue_depth",
        "fingerprint": "4bf92f3577b34da6",
        "instance": "host-1",
        "started_at": "2026-11-24T04:00:00.25Z",
        "ended_at": null,
        "sequence": 1,
    }))
    .unwrap()
}

/// Its end.
pub(crate) fn resolved() -> Notification {
    let mut value = serde_json::to_value(firing()).unwrap();
    value["status"] = "resolved".into();
    value["ended_at"] = "2026-11-24T05:02:03.5Z".into();
    value["sequence"] = 2.into();
    serde_json::from_value(value).unwrap()
}

/// Every sink, with the same settings, leading to `url`.
pub(crate) fn all(url: &str) -> Vec<Box<dyn AlertSink>> {
    fn with<S>(builder: SinkBuilder<S>) -> SinkBuilder<S> {
        builder
            .dashboard_url("https://grafana.example.com/d/lanes?from=now-1h&var-lane={lane}")
            .runbook_url("https://wiki.example.com/lanes")
            .label("team", "payments")
            .timeout(Duration::from_secs(20))
    }
    vec![
        Box::new(with(SlackSink::builder(format!("{url}{SLACK_PATH}"))).build().unwrap()),
        Box::new(with(PagerDutySink::builder(ROUTING_KEY).endpoint(format!("{url}/v2/enqueue"))).build().unwrap()),
        Box::new(with(WebhookSink::builder(format!("{url}/hook?key=v"), SIGNING_SECRET)).build().unwrap()),
        Box::new(with(AlertmanagerSink::builder(url)).build().unwrap()),
    ]
}

/// The shortest of them, for what all of them do alike.
pub(crate) fn slack(url: &str) -> SlackSink {
    SlackSink::builder(Secret::new(format!("{url}{SLACK_PATH}"))).timeout(Duration::from_secs(20)).build().unwrap()
}

pub(crate) fn message(error: &SinkError) -> String {
    error.to_string()
}

/// Runs the ignored test `name` of this binary in a process of its own, with these variables.
#[track_caller]
pub(crate) fn run_with(name: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
