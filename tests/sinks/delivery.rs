//! One attempt over HTTP, and what its outcome means: the same for all sinks.

use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use corelane::{AlertSink, SinkError, SlackSink};

use crate::stub::{Answer, Stub};
use crate::support::{all, firing, message, run_with, slack};

#[test]
fn every_sink_posts_json_once_and_to_its_path() {
    let stub = Stub::always(202);
    let paths =
        ["/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "/v2/enqueue", "/hook?key=v", "/api/v2/alerts"];
    let names = ["slack", "pagerduty", "webhook", "alertmanager"];
    for ((sink, path), name) in all(&stub.url).into_iter().zip(paths).zip(names) {
        assert_eq!(sink.name(), name);
        assert_eq!(sink.timeout(), Duration::from_secs(20));
        sink.deliver(&firing()).unwrap();
        let request = stub.next();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", path));
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["host"], stub.url.trim_start_matches("http://"));
        assert_eq!(request.headers["user-agent"], concat!("corelane/", env!("CARGO_PKG_VERSION")));
        assert!(request.json().is_object() || request.json().is_array());
        assert!(stub.is_quiet());
    }
}

#[test]
fn a_status_says_whether_to_try_again() {
    let cases = [
        (200, "ok"),
        (202, "ok"),
        (204, "ok"),
        (301, "refused"),
        (302, "refused"),
        (307, "refused"),
        (308, "refused"),
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (408, "retry"),
        (410, "gone"),
        (413, "refused"),
        (422, "refused"),
        (425, "retry"),
        (429, "retry"),
        (500, "retry"),
        (502, "retry"),
        (503, "retry"),
        (504, "retry"),
    ];
    let stub = Stub::start(cases.iter().map(|(status, _)| Answer::status(*status)).collect());
    let sink = slack(&stub.url);
    for (status, expected) in cases {
        let meaning = match sink.deliver(&firing()) {
            Ok(()) => "ok",
            Err(SinkError::Retry { after: None, .. }) => "retry",
            Err(SinkError::Refused(_)) => "refused",
            Err(SinkError::Gone(_)) => "gone",
            Err(other) => panic!("{status}: {other}"),
        };
        assert_eq!(meaning, expected, "{status}");
        stub.next();
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Stub::always(200);
    let stub = Stub::start(vec![
        Answer::Status(301, vec![("Location", format!("{}/stolen", elsewhere.url))], String::new()),
        Answer::Status(307, vec![("Location", format!("{}/stolen", elsewhere.url))], String::new()),
    ]);
    for _ in 0..2 {
        let error = slack(&stub.url).deliver(&firing()).unwrap_err();
        assert!(matches!(error, SinkError::Refused(_)), "{error}");
        assert!(message(&error).contains("redirects are not followed"), "{error}");
        assert!(!message(&error).contains(&elsewhere.url), "{error}");
    }
    assert!(elsewhere.is_quiet());
}

#[test]
fn the_receiver_says_when_to_come_back() {
    let day = Duration::from_secs(24 * 60 * 60);
    let cases = [
        (Answer::retry_after(429, "30"), Some(Duration::from_secs(30))),
        (Answer::retry_after(503, " 7 "), Some(Duration::from_secs(7))),
        (Answer::retry_after(429, "0"), Some(Duration::ZERO)),
        (Answer::retry_after(429, "99999999999999999999999"), Some(day)),
        (Answer::retry_after(429, "864000"), Some(day)),
        (Answer::retry_after(429, "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO)),
        (Answer::retry_after(429, "soon"), None),
        (Answer::retry_after(429, "-5"), None),
        (Answer::retry_after(429, ""), None),
    ];
    let stub = Stub::start(cases.iter().map(|(answer, _)| answer.clone()).collect());
    for (answer, expected) in cases {
        match slack(&stub.url).deliver(&firing()) {
            Err(SinkError::Retry { after, .. }) => assert_eq!(after, expected, "{answer:?}"),
            other => panic!("{answer:?}: {other:?}"),
        }
    }
}

#[test]
fn the_receiver_may_say_it_with_a_date() {
    let date = DateTime::<Utc>::from(SystemTime::now() + Duration::from_secs(600));
    let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let stub = Stub::start(vec![Answer::retry_after(503, date)]);
    let Err(SinkError::Retry { after: Some(after), .. }) = slack(&stub.url).deliver(&firing()) else {
        panic!("no wait");
    };
    assert!((Duration::from_secs(500)..=Duration::from_secs(600)).contains(&after), "{after:?}");
}

#[test]
fn a_receiver_that_recovers_gets_it() {
    let stub = Stub::start([500, 503, 500, 200].map(Answer::status).to_vec());
    let sink = slack(&stub.url);
    for _ in 0..3 {
        let error = sink.deliver(&firing()).unwrap_err();
        assert!(matches!(error, SinkError::Retry { after: None, .. }), "{error}");
    }
    sink.deliver(&firing()).unwrap();
    let bodies: Vec<_> = (0..4).map(|_| stub.next().body).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[test]
fn what_happens_to_a_connection_is_no_refusal() {
    let cases = [
        Answer::Reset,
        Answer::Bytes(""),
        Answer::Bytes("SSH-2.0-OpenSSH_9.2\r\n"),
        Answer::Bytes("HTTP/1.1 200"),
        Answer::Bytes("HTTP/1.1 999999 Much\r\n\r\n"),
    ];
    let stub = Stub::start(cases.to_vec());
    for case in cases {
        let error = slack(&stub.url).deliver(&firing()).unwrap_err();
        assert!(matches!(error, SinkError::Retry { after: None, .. }), "{case:?}: {error}");
        assert!(message(&error).contains(&stub.url), "{error}");
        assert!(!message(&error).contains("XXXX"), "{error}");
    }
}

#[test]
fn nobody_there_is_no_refusal() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = slack(&format!("http://{unused}")).deliver(&firing()).unwrap_err();
    assert!(matches!(error, SinkError::Retry { after: None, .. }), "{error}");
    let error = SlackSink::builder("https://no-such-host.invalid/services/secretsecret").build().unwrap();
    let error = error.deliver(&firing()).unwrap_err();
    assert!(matches!(error, SinkError::Retry { after: None, .. }), "{error}");
    assert!(message(&error).contains("https://no-such-host.invalid") && !message(&error).contains("secret"), "{error}");
}

#[test]
fn a_receiver_that_says_nothing_costs_the_timeout() {
    let stub = Stub::start(vec![Answer::Silence]);
    let sink = SlackSink::builder(format!("{}/x", stub.url)).timeout(Duration::from_millis(300)).build().unwrap();
    let from = Instant::now();
    let error = sink.deliver(&firing()).unwrap_err();
    assert!(from.elapsed() >= Duration::from_millis(300));
    assert!(matches!(error, SinkError::Retry { after: None, .. }), "{error}");
    assert!(message(&error).contains("no answer within 300ms"), "{error}");
}

#[test]
fn an_error_tells_what_the_receiver_said_in_short() {
    let long = "x".repeat(100_000);
    let stub = Stub::start(vec![
        Answer::Status(404, vec![], "no_service\n".to_owned()),
        Answer::Status(400, vec![], "two\r\nlines\u{1b}[31m".to_owned()),
        Answer::Status(500, vec![], long),
        Answer::Bytes("HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\naction_prohib"),
    ]);
    let sink = slack(&stub.url);
    let said = || message(&sink.deliver(&firing()).unwrap_err());
    assert_eq!(said(), format!("refused: {}: 404: no_service", stub.url));
    assert!(!said().contains(char::is_control));
    assert!(said().len() < 400);
    assert_eq!(said(), format!("refused: {}: 403: action_prohib", stub.url));
}

#[test]
fn a_proxy_has_no_part_in_addresses_of_this_machine() {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = format!("http://{nowhere}");
    run_with("delivery::delivers_to_this_machine", &[("ALL_PROXY", &proxy), ("HTTP_PROXY", &proxy)]);
}

#[test]
#[ignore = "run by another test, in an environment with a proxy"]
fn delivers_to_this_machine() {
    let stub = Stub::always(200);
    slack(&stub.url).deliver(&firing()).unwrap();
    stub.next();
}

#[test]
fn a_proxy_of_the_environment_is_used_for_other_addresses() {
    let proxy = Stub::start(vec![Answer::Status(403, vec![], String::new())]);
    run_with("delivery::delivers_through_a_proxy", &[("ALL_PROXY", &proxy.url), ("NO_PROXY", "")]);
    let request = proxy.next();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("CONNECT", "alerts.example.com:443"));
}

#[test]
#[ignore = "run by another test, in an environment with a proxy"]
fn delivers_through_a_proxy() {
    let sink = SlackSink::builder("https://alerts.example.com/secretsecret").build().unwrap();
    let error = sink.deliver(&firing()).unwrap_err();
    assert_eq!(message(&error), "not delivered, tried again: https://alerts.example.com: no way through the proxy");
}
