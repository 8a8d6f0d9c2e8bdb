//! What was measured, as it stands in the JSON file.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// One run of the instrument.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// Of this format.
    pub version: u32,
    /// Whether this was only to see that everything runs.
    pub quick: bool,
    pub workers: usize,
    pub machine: Machine,
    /// When it began, UTC.
    pub date: String,
    pub seconds: u64,
    /// The commit measured, with `+` if files differed from it.
    pub commit: String,
    /// Load averages over 1, 5 and 15 minutes.
    pub load_before: [f64; 3],
    pub load_after: [f64; 3],
    /// What was left out, and why.
    pub left_out: Vec<String>,
    pub workloads: Vec<About>,
    pub rows: Vec<Row>,
}

/// A workload in words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub workload: String,
    /// What one operation is, or what the figures mean. A sentence without its full stop.
    pub what: String,
}

/// One contender in one workload with one allocator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub workload: String,
    pub contender: String,
    pub role: Role,
    pub allocator: Allocator,
    pub repeats: usize,
    /// The best peer's median of the first figure, divided by this contender's. None without peers.
    pub ratio: Option<f64>,
    pub figures: Vec<Figure>,
}

/// One thing measured, over the repeats. Less is better.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ours,
    /// Does the same work: the others are measured against the best of these.
    Peer,
    /// Does less, or something else that is worth knowing, as its name says.
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocator {
    System,
    Mimalloc,
    Counting,
}

impl Results {
    pub const VERSION: u32 = 1;

    /// As text with a line for each row, so that what changed can be seen.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut lines = Vec::new();
        if let serde_json::Value::Object(fields) = serde_json::to_value(self)? {
            for (name, value) in fields {
                let value = match value {
                    serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
                        let items: Vec<_> = items.iter().map(serde_json::Value::to_string).collect();
                        format!("[\n{}\n]", items.join(",\n"))
                    }
                    value => value.to_string(),
                };
                lines.push(format!("{}: {value}", serde_json::Value::from(name)));
            }
        }
        Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
    }

    /// The row of this workload, contender and allocator.
    pub fn row(&self, workload: &str, contender: &str, allocator: Allocator) -> Option<&Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.workload == workload && row.contender == contender && row.allocator == allocator)
    }
}

impl Row {
    pub fn group(&self) -> &str {
        self.workload.split('/').next().unwrap_or_default()
    }

    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

impl Figure {
    pub fn of(name: &str, unit: &str, mut samples: Vec<f64>) -> Self {
        let at = quantiles(&mut samples);
        Self { name: name.to_owned(), unit: unit.to_owned(), median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

/// Sorts the values, and gives their quantiles: the nearest value, nothing in between.
pub fn quantiles(values: &mut [f64]) -> impl Fn(f64) -> f64 + '_ {
    values.sort_by(f64::total_cmp);
    |part| rounded(values[((values.len() - 1) as f64 * part).round() as usize])
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let figure = Figure::of("time", "ns/op", vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((figure.p10, figure.median, figure.p90), (1.0, 3.0, 5.0));
    }
}
