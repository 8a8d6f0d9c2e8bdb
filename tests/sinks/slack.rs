//! Slack's message.

use corelane::{AlertLevel, AlertSink, Notification, SlackSink};
use serde_json::{Value, json};

use crate::schema::assert_fits;
use crate::stub::Stub;
use crate::support::{all, firing, resolved, slack};

fn sent(sink: &dyn AlertSink, stub: &Stub, notification: &Notification) -> Value {
    sink.deliver(notification).unwrap();
    let body = stub.next().json();
    assert_fits("slack", &body);
    body
}

#[test]
fn an_alert_is_one_message() {
    let stub = Stub::always(200);
    let sink = all(&stub.url).remove(0);
    let field = |text: &str| json!({"type": "mrkdwn", "text": text, "verbatim": true});
    assert_eq!(
        sent(&*sink, &stub, &firing()),
        json!({
            "text": "🔴 Critical: lane query: queue depth 250 &gt;= 200 for 60 s",
            "blocks": [
                {
                    "type": "header",
                    "text": {"type": "plain_text", "text": "🔴 Critical: lane query: queue depth 250 &gt;= 200 for 60 s"},
                },
                {
                    "type": "section",
                    "fields": [
                        field("*Lane*\nquery"),
                        field("*Value*\n250"),
                        field("*Threshold*\n200"),
                        field("*Rule*\nqueue_depth"),
                        field("*Instance*\nhost-1"),
                        field("*Since*\n<!date^1795492800^{date_short_pretty} {time_secs}|2026-11-24T04:00:00.250Z>"),
                    ],
                },
                {
                    "type": "context",
                    "elements": [
                        field("<https://grafana.example.com/d/lanes?from=now-1h&amp;var-lane=query|Dashboard>"),
                        field("<https://wiki.example.com/lanes|Runbook>"),
                        field("team=payments"),
                    ],
                },
            ],
        })
    );
}

#[test]
fn its_end_says_how_long_it_lasted() {
    let stub = Stub::always(200);
    let body = sent(&slack(&stub.url), &stub, &resolved());
    assert_eq!(body["text"], "✅ Resolved: lane query: queue depth 250 &gt;= 200 for 60 s");
    assert_eq!(body["blocks"][1]["fields"][6]["text"], "*Lasted*\n1 h 2 min 3 s");
    assert_eq!(body["blocks"].as_array().unwrap().len(), 2, "without links and labels there is no context");
}

#[test]
fn every_level_looks_its_own_way() {
    let stub = Stub::always(200);
    let sink = slack(&stub.url);
    for (level, expected) in [
        (AlertLevel::Info, "🔵 Info: "),
        (AlertLevel::Warning, "🟠 Warning: "),
        (AlertLevel::Critical, "🔴 Critical: "),
    ] {
        let mut notification = firing();
        notification.alert.level = level;
        let text = sent(&sink, &stub, &notification)["text"].clone();
        assert!(text.as_str().unwrap().starts_with(expected), "{text}");
    }
}

#[test]
fn nobody_is_mentioned_by_a_lane() {
    let stub = Stub::always(200);
    let mut notification = firing();
    notification.alert.lane_id = "<!channel> & <@U024BE7LH>".to_owned();
    notification.alert.message = "<https://evil.example|click>\nnew line".to_owned();
    let body = sent(&slack(&stub.url), &stub, &notification);
    assert_eq!(body["blocks"][1]["fields"][0]["text"], "*Lane*\n&lt;!channel&gt; &amp; &lt;@U024BE7LH&gt;");
    assert_eq!(body["text"], "🔴 Critical: &lt;https://evil.example|click&gt; new line");
}

#[test]
fn a_long_text_is_cut_in_the_header_and_whole_below_it() {
    let stub = Stub::always(200);
    let mut notification = firing();
    notification.alert.message = "&".repeat(100);
    let body = sent(&slack(&stub.url), &stub, &notification);
    let header = body["blocks"][0]["text"]["text"].as_str().unwrap();
    assert!(header.ends_with("&amp;…"), "not cut within an entity: {header}");
    assert_eq!(body["blocks"][1]["text"]["text"], "&amp;".repeat(100));

    // Exactly as long as there is room for: nothing is cut.
    notification.alert.message = "x".repeat(150 - "🔴 Critical: ".encode_utf16().count());
    let body = sent(&slack(&stub.url), &stub, &notification);
    assert_eq!(body["blocks"][1].get("text"), None);
    assert!(body["blocks"][0]["text"]["text"].as_str().unwrap().ends_with('x'));
}

#[test]
fn a_link_ends_where_it_should() {
    let stub = Stub::always(200);
    let sink = SlackSink::builder(format!("{}/x", stub.url));
    let sink = sink.dashboard_url("https://grafana.example.com/?a=1|2&lane={lane}").build().unwrap();
    let mut notification = firing();
    notification.alert.lane_id = "a b|c>ü".to_owned();
    let body = sent(&sink, &stub, &notification);
    assert_eq!(
        body["blocks"][2]["elements"][0]["text"],
        "<https://grafana.example.com/?a=1%7C2&amp;lane=a%20b%7Cc%3E%C3%BC|Dashboard>"
    );
}
