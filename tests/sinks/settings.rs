//! What is wrong with settings is said at once, and all of it.

use std::time::Duration;

use corelane::{AlertSink, AlertmanagerSink, ConfigErrors, PagerDutySink, SlackSink, WebhookSink};

use crate::support::{ROUTING_KEY, SIGNING_SECRET};

fn paths(errors: &ConfigErrors) -> Vec<&str> {
    errors.problems().iter().map(|problem| problem.path.as_str()).collect()
}

#[test]
fn all_problems_are_told_at_once() {
    let errors = WebhookSink::builder("ftp://example.com", "whsec_c2hvcnQ=")
        .also_sign_with("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .name("")
        .dashboard_url("dashboard")
        .runbook_url(format!("https://example.com/{}", "x".repeat(1000)))
        .timeout(Duration::ZERO)
        .label("1st", "x")
        .label("lane", "x")
        .label("team", "")
        .authorization("Bearer ü")
        .build()
        .unwrap_err();
    assert_eq!(
        paths(&errors),
        [
            "name",
            "endpoint",
            "authorization",
            "dashboard_url",
            "runbook_url",
            "timeout",
            "labels[\"1st\"]",
            "labels[\"lane\"]",
            "labels[\"team\"]",
            "secret",
            "secret",
        ]
    );
    let errors = PagerDutySink::builder("short").timeout(Duration::from_secs(301)).build().unwrap_err();
    assert_eq!(paths(&errors), ["timeout", "routing_key"]);
    let errors = AlertmanagerSink::builder("alertmanager").expires_after(Duration::from_secs(59)).build().unwrap_err();
    assert_eq!(paths(&errors), ["endpoint", "expires_after"]);
    let errors = SlackSink::builder("https://example.com").label("a", "x".repeat(4096)).build().unwrap_err();
    assert_eq!(paths(&errors), ["labels"]);
}

#[test]
fn an_address_is_encrypted_or_on_this_machine() {
    let allowed = [
        "https://hooks.slack.com/services/x",
        "https://example.com:8443",
        "http://localhost:9093/x",
        "http://LOCALHOST/x",
        "http://127.0.0.1:9093",
        "http://127.8.9.10",
        "http://[::1]:9093/x",
    ];
    for url in allowed {
        SlackSink::builder(url).build().unwrap();
    }
    let refused = [
        "http://example.com/x",
        "http://10.0.0.1/x",
        "http://localhost.example.com/x",
        "http://127.0.0.1.example.com/x",
        "http://[::2]/x",
        "file:///etc/passwd",
        "https://",
        "https://:443/",
        "https://example.com:/x",
        "https://example.com:99999/x",
        "https://example.com:0/x",
        "https://example.com:x/",
        "https://user:password@example.com/x",
        "//example.com/x",
        "example.com",
        "",
        "https://exa mple.com/",
        "http://localhost@example.com/",
    ];
    for url in refused {
        let errors = SlackSink::builder(url).build().expect_err(url);
        assert_eq!(paths(&errors), ["endpoint"], "{url}");
    }
    SlackSink::builder("http://example.com/x").allow_plain_http().build().unwrap();
    SlackSink::builder("ftp://example.com/x").allow_plain_http().build().unwrap_err();
}

#[test]
fn a_signing_secret_is_long_enough_and_in_its_form() {
    let build = |secret: &str| WebhookSink::builder("https://example.com", secret).build();
    build(SIGNING_SECRET).unwrap();
    build("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap(); // without padding
    build("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==").unwrap();
    let long = format!("whsec_{}", "A".repeat(88));
    for secret in ["", "whsec_", "whsec_AAAA", "whsec_%%%", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &long] {
        build(secret).expect_err(secret);
    }
}

#[test]
fn a_sink_has_the_name_that_it_was_given() {
    let sink = PagerDutySink::builder(ROUTING_KEY).name("pagerduty-eu").build().unwrap();
    assert_eq!(sink.name(), "pagerduty-eu");
    assert_eq!(sink.timeout(), Duration::from_secs(15));
}
