//! The dashboards of `deploy/` show what the Prometheus exporter exports: a series that is renamed here is missed there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn dashboard(file: &str) -> Value {
    serde_json::from_str(&read(file)).unwrap()
}

/// Names of series, from the exposition that the exporter's own tests compare with.
fn exported() -> BTreeSet<String> {
    let text = read("src/adapters/prometheus/golden/text.txt");
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

/// All texts under a key, wherever it is.
fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    match value {
        Value::Object(fields) => {
            let here = fields.get(key).and_then(Value::as_str);
            here.into_iter().chain(fields.values().flat_map(|value| texts(value, key))).collect()
        }
        Value::Array(values) => values.iter().flat_map(|value| texts(value, key)).collect(),
        _ => Vec::new(),
    }
}

/// Names of series in a query.
fn names(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("a3s_lane_"))
}

fn assert_exported(used: &[&str]) {
    let exported = exported();
    let unknown: Vec<_> = used.iter().copied().filter(|name| !exported.contains(*name)).collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn every_query_of_the_grafana_dashboard_is_of_series_that_are_exported() {
    let dashboard = dashboard("deploy/grafana/corelane.json");
    let queries = texts(&dashboard, "expr");
    for query in &queries {
        assert!(names(query).next().is_some(), "{query}");
        assert!(query.contains(r#"job=~"$job""#), "shows all jobs: {query}");
        // Workers, stores and subscribers are of no lane.
        let of_no_lane = ["_worker_", "_storage_", "_events_"].iter().any(|of| query.contains(of));
        assert_eq!(query.contains(r#"lane=~"$lane""#), !of_no_lane, "{query}");
    }
    let variables = texts(&dashboard["templating"], "definition");
    assert_eq!(variables.len(), 2);
    let used: Vec<_> = queries.into_iter().chain(variables).flat_map(names).collect();
    assert_exported(&used);
}

#[test]
fn every_rule_asks_for_series_that_are_exported_or_recorded() {
    let rules = read("deploy/prometheus/rules.yml");
    let words: BTreeSet<_> = rules
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| !word.is_empty())
        .collect();
    let (recorded, series): (Vec<_>, Vec<_>) = words
        .into_iter()
        .filter(|word| word.contains("a3s_lane_"))
        .map(|word| word.trim_end_matches(':'))
        .partition(|word| word.contains(':'));
    assert!(recorded.len() > 5 && series.len() > 5, "{recorded:?} {series:?}");
    assert_exported(&series);
    for name in recorded {
        assert!(rules.contains(&format!("record: {name}\n")), "{name} is asked for, and not recorded");
    }
}

#[test]
fn the_grafana_dashboard_is_what_grafana_imports() {
    let dashboard = dashboard("deploy/grafana/corelane.json");
    assert_eq!(dashboard["schemaVersion"], 41);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let (rows, panels): (Vec<_>, Vec<_>) = panels.iter().partition(|panel| panel["type"] == "row");
    let rows: Vec<_> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Health", "Flow", "Latency", "Failures", "Workers"]);
    for panel in panels {
        assert!(!panel["title"].as_str().unwrap().is_empty() && !panel["description"].as_str().unwrap().is_empty());
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "no unit: {}", panel["title"]);
        assert!(!panel["targets"].as_array().unwrap().is_empty());
        // Whatever the user's data source is called.
        assert!(texts(panel, "uid").iter().all(|uid| *uid == "${datasource}"));
    }
}

#[test]
fn every_query_of_the_signoz_dashboard_is_of_metrics_that_are_pushed() {
    let dashboard = dashboard("deploy/signoz/corelane.json");
    let exported = exported();
    let used = texts(&dashboard, "metricName");
    assert!(!used.is_empty());
    // `tests/series.rs` shows which name by OTLP is which for Prometheus: it adds the unit, and `_total` to counters.
    let unknown = used.into_iter().filter(|metric| {
        let name = metric.replace('.', "_");
        let names = match name.strip_suffix("_bucket") {
            Some(histogram) => vec![format!("{histogram}_seconds_bucket")],
            None => ["", "_total", "_seconds", "_seconds_total"].map(|suffix| format!("{name}{suffix}")).to_vec(),
        };
        !names.iter().any(|name| exported.contains(name))
    });
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn the_signoz_dashboard_lays_out_each_of_its_panels_once() {
    let dashboard = dashboard("deploy/signoz/corelane.json");
    assert_eq!(dashboard["schemaVersion"], "v6");
    let panels = dashboard["spec"]["panels"].as_object().unwrap();
    let mut placed: Vec<_> = texts(&dashboard["spec"]["layouts"], "$ref");
    placed.sort_unstable();
    let mut expected: Vec<_> = panels.keys().map(|panel| format!("#/spec/panels/{panel}")).collect();
    expected.sort_unstable();
    assert_eq!(placed, expected);
    for (name, panel) in panels {
        assert!(!panel["spec"]["display"]["description"].as_str().unwrap().is_empty(), "{name}");
        // SigNoz takes one: several are parts of a composite one.
        assert_eq!(panel["spec"]["queries"].as_array().unwrap().len(), 1, "{name}");
    }
}
