//! Programs of others read what is exported: `promtool`, PyPI's `prometheus_client`, and a real Prometheus that scrapes the load
//! of `examples/prometheus.rs` and is then asked all that `deploy/` asks.
//!
//! Debian's `prometheus` has both programs; they are looked for in `CORELANE_PROMETHEUS` (a folder), where `.ci/run` puts them,
//! and in the path. What is missing is skipped loudly, and a failure where `CI` is set.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[allow(dead_code, unreachable_pub, reason = "its main and its own check are not used")]
#[path = "../examples/prometheus.rs"]
mod example;
mod programs;

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use corelane::{Executor, PrometheusEndpoint, PrometheusExporter, QueueMetrics};
use programs::{Server, python};
use serde_json::{Value, json};

/// How long every question may take to have an answer: windows need a few scrapes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(40);

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(promtool) = program("promtool") else { return };
    let (_, text) = loaded().0.render(None);
    fed(Command::new(promtool).args(["check", "metrics"]), &text);
}

#[test]
fn the_rules_are_valid_and_do_what_their_tests_say() {
    let Some(promtool) = program("promtool") else { return };
    let folder = deploy().join("prometheus");
    fed(Command::new(&promtool).args(["check", "rules"]).arg(folder.join("rules.yml")), "");
    fed(Command::new(&promtool).args(["test", "rules"]).arg(folder.join("rules_test.yml")), "");
}

#[test]
fn a_strict_openmetrics_parser_reads_it() {
    const READ: &str = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
print('\\n'.join(f'{family.name} {family.type}' for family in parse(sys.stdin.read())))";
    let Some(python) = python(&["prometheus_client.openmetrics"]) else { return };
    let families = fed(Command::new(python).args(["-c", READ]), &loaded().0.openmetrics());
    for family in [
        "a3s_lane_queue_depth gauge",
        "a3s_lane_commands_finished counter",
        "a3s_lane_command_duration_seconds histogram",
        "a3s_lane_build info",
    ] {
        assert!(families.lines().any(|line| line == family), "no {family} in\n{families}");
    }
}

#[test]
fn a_prometheus_has_an_answer_to_all_that_the_rules_and_the_dashboard_ask() {
    let dashboard = dashboard();
    let Some(program) = program("prometheus") else { return };
    let (exporter, endpoint) = loaded();
    let server = Prometheus::start(&program, endpoint.local_addr());

    let rules = server.rules();
    let recorded: BTreeSet<String> = rules.iter().filter(|rule| !rule.alerts).map(|rule| rule.name.clone()).collect();
    let mut asked: Vec<(String, String)> = Vec::new();
    for rule in &rules {
        // An alert that is not one has no data, what it compares has.
        let query = if rule.alerts { without_comparisons(&rule.query) } else { rule.query.clone() };
        asked.push((rule.name.clone(), query));
    }
    asked.extend(dashboard.into_iter().map(|query| ("dashboard".into(), query)));
    assert!(recorded.len() > 5 && asked.len() > recorded.len() + 5, "{asked:?}");

    let text = exporter.text();
    for (of, query) in &asked {
        for metric in metrics_of(query) {
            let prefixes = [format!("{metric}{{"), format!("{metric} ")];
            let exported = || text.lines().any(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)));
            assert!(recorded.contains(metric) || exported(), "{of}: there is no {metric}, in {query}");
        }
    }

    let from = Instant::now();
    let mut open = asked;
    while !open.is_empty() {
        open.retain(|(_, query)| !server.has_data(query));
        assert!(open.is_empty() || from.elapsed() < ANSWERED_WITHIN, "without data: {open:#?}");
        thread::sleep(Duration::from_millis(500));
    }
    // The rules' own evaluation, not only their expressions.
    for rule in server.rules() {
        assert_eq!(rule.health, "ok", "{}", rule.name);
    }
}

#[test]
fn comparisons_are_taken_out_of_an_alerts_question() {
    for (query, without) in [
        ("a > 0", "a"),
        (r#"a{x=~">= 1"} >= 1.5 and b:c == 0"#, r#"a{x=~">= 1"} and b:c"#),
        ("sum(rate(a[5m])) > 0", "sum(rate(a[5m]))"),
        ("(a / (b > 0)) >= 2", "(a / (b))"),
        ("a / b", "a / b"),
    ] {
        assert_eq!(without_comparisons(query), without);
    }
    let metrics: Vec<&str> =
        metrics_of(r#"sum by (lane) (rate(a3s_lane_x_total{lane="a"}[5m])) / lane:a3s_lane_y"#).collect();
    assert_eq!(metrics, ["a3s_lane_x_total", "lane:a3s_lane_y"]);
}

/// The load of the example, which runs until the tests end, and its endpoint.
fn loaded() -> &'static (PrometheusExporter, PrometheusEndpoint) {
    static LOADED: OnceLock<(PrometheusExporter, PrometheusEndpoint)> = OnceLock::new();
    LOADED.get_or_init(|| {
        let metrics = QueueMetrics::local().with_command_types(10);
        let exporter = PrometheusExporter::new(metrics.clone());
        let endpoint = exporter.serve("127.0.0.1:0").unwrap();
        thread::spawn(|| {
            Executor::global().block_on(async {
                let manager = example::queue(metrics).await.unwrap();
                example::put_under_load(&manager, u64::MAX).await;
            });
        });
        let from = Instant::now();
        while !exporter.text().contains("a3s_lane_command_type_finished_total{") {
            assert!(from.elapsed() < Duration::from_secs(20), "nothing is measured:\n{}", exporter.text());
            thread::sleep(Duration::from_millis(20));
        }
        (exporter, endpoint)
    })
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// The questions of the dashboards, with values for Grafana's variables.
fn dashboard() -> Vec<String> {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                queries.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, queries));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
            _ => {}
        }
    }
    let file = deploy().join("grafana/corelane.json");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    assert!(queries.len() > 10, "{queries:?}");
    let values =
        [("$__rate_interval", "10s"), ("$__interval", "5s"), ("$__range", "1m"), ("$job", ".*"), ("$lane", ".*")];
    for query in &mut queries {
        for (variable, value) in values {
            *query = query.replace(variable, value);
        }
        assert!(!query.contains('$'), "a variable that this test does not know: {query}");
    }
    queries
}

/// Removes comparisons with numbers outside of strings, each between spaces.
fn without_comparisons(query: &str) -> String {
    let mut kept = String::new();
    let mut quoted = false;
    let mut words = query.split(' ').peekable();
    while let Some(word) = words.next() {
        let number = words.peek().map(|next| next.trim_end_matches(')'));
        if !quoted
            && matches!(word, ">" | ">=" | "<" | "<=" | "==" | "!=")
            && number.is_some_and(|number| number.parse::<f64>().is_ok())
        {
            let closing = words.next().unwrap().trim_start_matches(|c| c != ')');
            kept.push_str(closing);
            continue;
        }
        quoted ^= word.matches('"').count() % 2 == 1;
        if !kept.is_empty() {
            kept.push(' ');
        }
        kept.push_str(word);
    }
    kept
}

/// The names of metrics in a question: ours all have the same prefix, recorded ones after a level.
fn metrics_of(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.contains("a3s_lane_"))
}

/// What a program prints that is given this input. It must succeed.
#[track_caller]
fn fed(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading: then its output says why.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn program(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus/usr/bin");
    let folders = env::var_os("CORELANE_PROMETHEUS").map(PathBuf::from).into_iter().chain([own]);
    programs::program(name, folders.map(|folder| folder.join(name)).chain([name.into()]))
}

struct Rule {
    name: String,
    query: String,
    health: String,
    alerts: bool,
}

/// A running Prometheus with the rules of `deploy/`, which scrapes one address every second.
struct Prometheus(Server);

impl Prometheus {
    fn start(program: &Path, target: SocketAddr) -> Self {
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [deploy().join("prometheus/rules.yml")],
            "scrape_configs": [{"job_name": "corelane", "static_configs": [{"targets": [target.to_string()]}]}],
        });
        let data = |folder: &Path| vec![format!("--storage.tsdb.path={}", folder.join("data").display())];
        Self(Server::start(program, &config, data))
    }

    /// Whether there is an answer, and a number in it.
    fn has_data(&self, query: &str) -> bool {
        let mut path = String::from("/api/v1/query?query=");
        for byte in query.bytes() {
            write!(path, "%{byte:02X}").unwrap();
        }
        let answer = self.0.get_json(&path);
        let samples = answer["data"]["result"].as_array().unwrap();
        samples.iter().any(|sample| sample["value"][1].as_str().is_some_and(|value| value != "NaN"))
    }

    fn rules(&self) -> Vec<Rule> {
        let answer = self.0.get_json("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rules
            .map(|rule| Rule {
                name: text(&rule["name"]),
                query: text(&rule["query"]),
                health: text(&rule["health"]),
                alerts: rule["type"] == "alerting",
            })
            .collect()
    }
}
