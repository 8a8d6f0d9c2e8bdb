//! Secrets: where they come from, and that they are shown nowhere.

use std::fs;
use std::path::PathBuf;

use corelane::{AlertSink, AlertmanagerSink, PagerDutySink, Secret, SinkError, SlackSink, WebhookSink};
use serde_json::json;

use crate::stub::{Answer, Stub};
use crate::support::{ROUTING_KEY, SIGNING_SECRET, firing, message, run_with};

/// A file of this process and this test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("corelane-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

#[test]
fn no_text_shows_a_secret() {
    let secret = Secret::new("s3cr3t-value");
    let texts = [
        format!("{secret} {secret:?} {secret:#?}"),
        serde_json::to_string(&secret).unwrap(),
        format!("{:?}", SlackSink::builder(secret.clone())),
        format!("{:?}", SlackSink::builder("https://hooks.slack.com/s3cr3t-value").build().unwrap()),
        format!("{:#?}", PagerDutySink::builder(secret.clone()).build().unwrap_err()),
        PagerDutySink::builder(secret.clone()).build().unwrap_err().to_string(),
        format!("{:?}", WebhookSink::builder("s3cr3t-value", secret.clone()).build().unwrap_err()),
        format!("{:?}", SlackSink::builder("http://example.com/s3cr3t-value").build().unwrap_err()),
        format!("{:?}", SlackSink::builder("https://user:s3cr3t-value@example.com/").build().unwrap_err()),
        format!("{:?}", AlertmanagerSink::builder("https://a.example").authorization("s3cr3t-value\n").build()),
        format!("{:?}", AlertmanagerSink::builder("https://a.example").authorization(secret).build().unwrap()),
    ];
    for text in texts {
        assert!(!text.contains("s3cr3t"), "{text}");
    }
}

#[test]
fn a_secret_in_settings_says_where_it_is() {
    let cases = [
        (Secret::from_env("TOKEN"), json!({"env": "TOKEN"}), "$TOKEN"),
        (Secret::from_file("/run/token"), json!({"file": "/run/token"}), "/run/token"),
        (Secret::new("abc"), json!({"value": "[redacted]"}), "[redacted]"),
    ];
    for (secret, written, shown) in cases {
        assert_eq!(serde_json::to_value(&secret).unwrap(), written);
        assert_eq!(secret.to_string(), shown);
        let read = serde_json::from_value::<Secret>(written);
        match shown {
            // It would be taken for the secret.
            "[redacted]" => assert!(read.is_err()),
            shown => assert_eq!(read.unwrap().to_string(), shown),
        }
    }
    assert_eq!(serde_json::from_value::<Secret>(json!({"value": "abc"})).unwrap().to_string(), "[redacted]");
}

#[test]
fn a_file_may_be_replaced_while_the_sink_is_in_use() {
    let (old, new) = (Stub::always(200), Stub::always(200));
    let file = File::new("rotated", &format!("{}/old-address\n", old.url));
    let sink = SlackSink::builder(Secret::from_file(&file.0)).build().unwrap();
    sink.deliver(&firing()).unwrap();
    assert_eq!(old.next().path, "/old-address");
    fs::write(&file.0, format!("{}/new-address\r\n", new.url)).unwrap();
    sink.deliver(&firing()).unwrap();
    assert_eq!(new.next().path, "/new-address");
    assert!(old.is_quiet());
}

#[test]
fn a_secret_that_is_being_replaced_is_waited_for() {
    let stub = Stub::always(202);
    let (key, secret) = (File::new("key", ROUTING_KEY), File::new("secret", SIGNING_SECRET));
    let endpoint = format!("{}/x", stub.url);
    let sinks: [Box<dyn AlertSink>; 2] = [
        Box::new(PagerDutySink::builder(Secret::from_file(&key.0)).endpoint(endpoint.clone()).build().unwrap()),
        Box::new(WebhookSink::builder(endpoint, Secret::from_file(&secret.0)).build().unwrap()),
    ];
    for (sink, file, value) in [(&sinks[0], &key, ROUTING_KEY), (&sinks[1], &secret, SIGNING_SECRET)] {
        fs::write(&file.0, "\n").unwrap();
        let error = sink.deliver(&firing()).unwrap_err();
        assert!(matches!(error, SinkError::Retry { after: None, .. }), "{error}");
        assert!(message(&error).contains("is empty"), "{error}");
        fs::remove_file(&file.0).unwrap();
        let error = sink.deliver(&firing()).unwrap_err();
        assert!(message(&error).contains("can not be read"), "{error}");
        assert!(stub.is_quiet(), "nothing is sent without it");
        fs::write(&file.0, value).unwrap();
        sink.deliver(&firing()).unwrap();
        stub.next();
    }
}

#[test]
fn a_receiver_that_repeats_a_secret_does_not_bring_it_into_the_log() {
    let echo = |text: &str| Answer::Status(404, vec![], text.to_owned());
    let stub = Stub::start(vec![
        echo("Cannot POST /services/T00000000/B00000000/s3cr3t-token?key=s3cr3t-query"),
        echo(&format!("unknown routing_key {ROUTING_KEY}")),
        echo("who is s3cr3t-bearer?"),
        // Cut after the secrets were taken out: a part of one would not be found.
        echo(&format!("{}s3cr3t-bearer", "x".repeat(150))),
    ]);
    let slack = format!("{}/services/T00000000/B00000000/s3cr3t-token?key=s3cr3t-query", stub.url);
    let bearer =
        || AlertmanagerSink::builder(&stub.url).authorization(Secret::new("Bearer s3cr3t-bearer")).build().unwrap();
    let sinks: [Box<dyn AlertSink>; 4] = [
        Box::new(SlackSink::builder(slack).build().unwrap()),
        Box::new(PagerDutySink::builder(ROUTING_KEY).endpoint(format!("{}/x", stub.url)).build().unwrap()),
        Box::new(bearer()),
        Box::new(bearer()),
    ];
    for sink in sinks {
        let said = message(&sink.deliver(&firing()).unwrap_err());
        assert!(!said.contains("s3cr3t") && !said.contains(ROUTING_KEY), "{said}");
        assert!(said.contains("404"), "{said}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_found_when_the_sink_is_built() {
    let problem = |secret: Secret| SlackSink::builder(secret).build().unwrap_err().to_string();
    assert!(problem(Secret::from_env("CORELANE_NOT_SET")).contains("CORELANE_NOT_SET is not set"));
    assert!(problem(Secret::from_file("/no/such/file")).contains("/no/such/file can not be read"));
    let empty = File::new("empty", "\n\n");
    assert!(problem(Secret::from_file(&empty.0)).contains("is empty"));
    let large = File::new("large", &"x".repeat(100_000));
    assert!(problem(Secret::from_file(&large.0)).contains("more than 65536 bytes"));
}

#[test]
fn a_secret_comes_from_the_environment() {
    let stub = Stub::always(200);
    run_with(
        "secrets::delivers_to_where_the_environment_says",
        &[("CORELANE_TEST_SLACK", &format!("{}/from-the-environment", stub.url))],
    );
    assert_eq!(stub.next().path, "/from-the-environment");
}

#[test]
#[ignore = "run by another test, with the variable"]
fn delivers_to_where_the_environment_says() {
    let sink = SlackSink::builder(Secret::from_env("CORELANE_TEST_SLACK")).build().unwrap();
    sink.deliver(&firing()).unwrap();
}
