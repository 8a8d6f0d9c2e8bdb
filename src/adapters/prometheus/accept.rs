//! Which format a request asks for.

use prometheus_client::encoding::prometheus_text;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics text 1.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header prefers; text, which everybody reads, if it does not say.
    pub(super) fn accepted(accept: &str) -> Self {
        let mut text = 0.0_f64;
        let mut openmetrics = 0.0_f64;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1.0_f64, "");
            for parameter in parts {
                match parameter.split_once('=').map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))) {
                    Some(("q", value)) => weight = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => version = value,
                    _ => {}
                }
            }
            match &*media_type {
                "application/openmetrics-text" if matches!(version, "" | "1.0.0") => {
                    openmetrics = weight.max(openmetrics);
                }
                "text/plain" if matches!(version, "" | "0.0.4") => text = weight.max(text),
                _ => {}
            }
        }
        // Of two that are liked equally, the one that says more.
        if openmetrics > 0.0 && openmetrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_format_that_is_preferred_is_given() {
        use Format::{OpenMetrics, Text};
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let cases = [
            (prometheus, OpenMetrics),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.6,text/plain;q=0.3", Text),
            ("", Text),
            ("*/*", Text),
            ("text/html", Text),
            ("text/plain", Text),
            ("Application/OpenMetrics-Text", OpenMetrics),
            ("application/openmetrics-text; version=\"1.0.0\"", OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Text),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Text),
            ("application/openmetrics-text;q=nonsense", Text),
            (";;,=;q", Text),
        ];
        for (accept, format) in cases {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
