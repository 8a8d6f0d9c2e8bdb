//! One workload as a table.

use super::text::{number, ratio};
use crate::results::{Figure, Role, Row};

/// What each contender did, and beside it what it did with mimalloc, if that is there.
pub fn table(what: &str, rows: &[Row], mimalloc: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let with = |role: Role| move |row: &&Row| row.role == role;
    let compared = rows.iter().any(|row| with(Role::Peer)(&row)) && rows.iter().any(|row| with(Role::Ours)(&row));
    let mut columns: Vec<String> = Vec::new();
    for figure in &first.figures {
        if first.figures.len() == 1 {
            columns.push(figure.unit.clone());
            columns.push("p10 .. p90".to_owned());
        } else {
            columns.push(format!("{}, {}", figure.name, figure.unit));
        }
    }
    if compared {
        columns.push("times the best peer".to_owned());
    }
    if !mimalloc.is_empty() {
        let again: Vec<_> = columns.iter().map(|column| format!("{column}, mimalloc")).collect();
        columns.extend(again);
    }
    let repeats = |rows: &[Row]| rows.iter().map(|row| row.repeats).min().unwrap_or(0);
    let mut table = format!("### {}\n\n{}. {} repeats", first.workload, capitalised(what), repeats(rows));
    if !mimalloc.is_empty() {
        table += &format!(", {} with mimalloc", repeats(mimalloc));
    }
    table += ".\n\n";
    table += &format!("| contender | {} |\n|---|{}\n", columns.join(" | "), "---:|".repeat(columns.len()));
    for row in rows {
        let mut cells = cells(row, compared);
        if !mimalloc.is_empty() {
            let other = mimalloc.iter().find(|other| other.contender == row.contender);
            cells.extend(other.map_or_else(|| vec![String::new(); cells.len()], |row| self::cells(row, compared)));
        }
        let name = match row.role {
            Role::Ours => format!("**{}**", row.contender),
            Role::Peer => row.contender.clone(),
            Role::Reference => format!("*{}*", row.contender),
        };
        table += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    table
}

fn capitalised(sentence: &str) -> String {
    let mut rest = sentence.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

fn cells(row: &Row, compared: bool) -> Vec<String> {
    let spread = |figure: &Figure| format!("{} .. {}", number(figure.p10), number(figure.p90));
    let mut cells: Vec<_> = match &row.figures[..] {
        [figure] => vec![number(figure.median), spread(figure)],
        figures => figures.iter().map(|figure| format!("{} ({})", number(figure.median), spread(figure))).collect(),
    };
    if compared {
        cells.push(ratio(row.ratio));
    }
    cells
}
