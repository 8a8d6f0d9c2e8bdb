//! Programs of others look at what is sent: PyPI's `standardwebhooks`, `slack_sdk` and `jsonschema`, and a real Alertmanager.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use corelane::{AlertLevel, AlertSink, AlertmanagerSink, Notification, WebhookSink};
use serde_json::{Value, json};

use crate::others::{self, Server, python};
use crate::stub::Stub;
use crate::support::{SIGNING_SECRET, all, firing, resolved};

#[test]
fn what_is_sent_is_what_others_expect() {
    let Some(python) = python(&["jsonschema", "slack_sdk", "standardwebhooks"]) else { return };
    let stub = Stub::always(200);
    let mut payloads = json!({});
    for (sink, name) in all(&stub.url).into_iter().zip(["slack", "pagerduty", "webhook", "alertmanager"]) {
        let sent = samples().map(|notification| {
            sink.deliver(&notification).unwrap();
            stub.next().json()
        });
        payloads[name] = sent.to_vec().into();
    }
    let old = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let url = format!("{}/hook", stub.url);
    let sink = WebhookSink::builder(url, SIGNING_SECRET).also_sign_with(old).build().unwrap();
    let webhooks = samples().map(|notification| {
        sink.deliver(&notification).unwrap();
        let request = stub.next();
        json!({"secrets": [SIGNING_SECRET, old], "headers": request.headers, "body": request.body})
    });

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut child = Command::new(python)
        .args([tests.join("sinks/check.py"), tests.join("schemas")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = json!({"payloads": payloads, "webhooks": webhooks});
    child.stdin.take().unwrap().write_all(sent.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(checked, json!({"schemas": 16, "webhooks": 8, "slack": 12}));
}

fn samples() -> [Notification; 4] {
    let mut odd = firing();
    odd.alert.message = format!("<&>\u{7} \"ü\" {}", "🔴".repeat(2000));
    odd.alert.lane_id = "<!channel>".repeat(500);
    odd.alert.current_value = f64::NAN;
    let mut bare = firing();
    bare.alert.lane_id.clear();
    bare.instance.clear();
    bare.alert.level = AlertLevel::Info;
    [firing(), resolved(), odd, bare]
}

#[test]
fn an_alertmanager_tells_of_it() {
    let Some(program) = alertmanager() else { return };
    let receiver = Stub::always(200);
    let server = Alertmanager::start(&program, &receiver.url);
    let sink = AlertmanagerSink::builder(server.url())
        .label("team", "payments")
        .runbook_url("https://wiki.example.com/{lane}")
        .build()
        .unwrap();

    let mut notification = firing();
    notification.alert.level = AlertLevel::Warning;
    notification.started_at = SystemTime::now().into();
    sink.deliver(&notification).unwrap();
    let alerts = server.alerts();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(
        alerts[0]["labels"],
        json!({
            "alertname": "queue_depth", "instance": "host-1", "lane": "query", "severity": "warning", "team": "payments",
        })
    );
    assert_eq!(alerts[0]["annotations"]["runbook_url"], "https://wiki.example.com/query");
    let told = receiver.next().json();
    assert_eq!((&told["status"], &told["commonLabels"]["severity"]), (&json!("firing"), &json!("warning")), "{told}");

    // It gets worse: one alert fires, and it is the worse one.
    notification.alert.level = AlertLevel::Critical;
    sink.deliver(&notification).unwrap();
    let alerts = server.alerts();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0]["labels"]["severity"], "critical");

    let mut end = resolved();
    end.started_at = notification.started_at;
    end.ended_at = Some(SystemTime::now().into());
    sink.deliver(&end).unwrap();
    assert_eq!(server.alerts(), Vec::<Value>::new());
    // It may have told of the worse one between; in the end all is resolved.
    let last = loop {
        let told = receiver.next().json();
        if told["status"] == "resolved" {
            break told;
        }
    };
    let ended = last["alerts"].as_array().unwrap();
    assert!(ended.iter().all(|alert| alert["status"] == "resolved"), "{last}");
}

#[test]
fn an_alertmanager_says_what_it_refuses() {
    let Some(program) = alertmanager() else { return };
    let server = Alertmanager::start(&program, "http://127.0.0.1:9");
    let sink = AlertmanagerSink::builder(format!("{}/wrong", server.url())).build().unwrap();
    let error = sink.deliver(&firing()).unwrap_err();
    assert!(matches!(error, corelane::SinkError::Refused(_)), "{error}");
}

fn alertmanager() -> Option<PathBuf> {
    let candidates = env::var_os("CORELANE_ALERTMANAGER").map(PathBuf::from).into_iter();
    let candidates = candidates.chain(["prometheus-alertmanager".into(), "alertmanager".into()]);
    others::program("prometheus-alertmanager", candidates)
}

/// A running Alertmanager, whose one receiver is a webhook.
struct Alertmanager(Server);

impl Alertmanager {
    fn start(program: &Path, receiver: &str) -> Self {
        let config = json!({
            "route": {
                "receiver": "stub",
                "group_by": ["alertname", "lane"],
                "group_wait": "10ms",
                "group_interval": "1s",
            },
            "receivers": [{"name": "stub", "webhook_configs": [{"url": receiver, "send_resolved": true}]}],
        });
        let alone =
            |folder: &Path| vec![format!("--storage.path={}", folder.display()), "--cluster.listen-address=".into()];
        Self(Server::start(program, &config, alone))
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// What fires.
    fn alerts(&self) -> Vec<Value> {
        self.0.get_json("/api/v2/alerts").as_array().unwrap().clone()
    }
}
