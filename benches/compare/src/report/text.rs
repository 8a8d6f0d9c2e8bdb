//! Numbers as people read them.

use crate::results::Figure;

/// Stands above results that are no measurement.
pub const QUICK: &str =
    "**From a quick run (`--quick`): a tenth of the work, three times. It shows that everything runs, not how fast.**";

/// With three digits that count, and commas.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), ""), |(whole, fraction)| (whole, fraction));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

pub fn ratio(ratio: Option<f64>) -> String {
    match ratio {
        None => String::new(),
        Some(small) if small < 0.1 => format!("1/{}", number((1.0 / small).round())),
        Some(ratio) => number(ratio),
    }
}

/// The median with its unit; the unit of times is chosen to fit.
pub fn quantity(figure: &Figure) -> String {
    let per = if figure.unit == "ns/op" { "/op" } else { "" };
    match figure.unit.as_str() {
        "ns/op" | "us" => {
            let ns = if figure.unit == "us" { figure.median * 1e3 } else { figure.median };
            format!("{}{per}", time(ns))
        }
        unit => format!("{} {unit}", number(figure.median)),
    }
}

/// Nanoseconds, in the unit that fits.
pub fn time(ns: f64) -> String {
    match ns.abs() {
        size if size >= 999.5e6 => format!("{} s", number(ns / 1e9)),
        size if size >= 999.5e3 => format!("{} ms", number(ns / 1e6)),
        size if size >= 999.5 => format!("{} us", number(ns / 1e3)),
        _ => format!("{} ns", number(ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.5, 9.999, 99.94, 99.99, 1234.5, 12_345_678.0, -0.25].map(number);
        assert_eq!(shown, ["0", "0.50", "10.0", "99.9", "100", "1,234", "12,345,678", "-0.25"]);
        assert_eq!([None, Some(0.0004), Some(0.25), Some(12.0)].map(ratio), ["", "1/2,500", "0.25", "12.0"]);
        assert_eq!([12.0, 1500.0, 2.5e6, 11e9].map(time), ["12.0 ns", "1.50 us", "2.50 ms", "11.0 s"]);
    }
}
