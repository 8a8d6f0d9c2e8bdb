//! Requests of a scraper, and how they are answered. Knows no sockets.

use std::borrow::Cow;

/// The most bytes of a request's line and headers.
pub(super) const HEAD_MAX: usize = 8 * 1024;
/// The most headers.
const HEADERS_MAX: usize = 64;

/// What has come so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Not a whole request yet.
    Incomplete,
    /// The numbers are asked for.
    Scrape {
        /// Only the answer's headers.
        head_only: bool,
        accept: String,
    },
    /// Something else is, or nothing that can be understood.
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    NotFound,
    Method,
    TooLarge,
}

impl Parsed {
    pub(super) fn from(bytes: &[u8]) -> Self {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Self::Incomplete,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Self::Refused(Refusal::TooLarge);
            }
            Err(_) => return Self::Refused(Refusal::Malformed),
        }
        if path(request.path.unwrap_or_default()) != "/metrics" {
            return Self::Refused(Refusal::NotFound);
        }
        let head_only = match request.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Self::Refused(Refusal::Method),
        };
        let accepts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
        let accepts: Vec<Cow<'_, str>> = accepts.map(|header| String::from_utf8_lossy(header.value)).collect();
        Self::Scrape { head_only, accept: accepts.join(",") }
    }
}

/// Without the query, and without the scheme and the host that a proxy's request has.
fn path(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    target.split('?').next().unwrap_or_default()
}

impl Refusal {
    const fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }

    pub(super) fn response(self) -> String {
        let status = self.status();
        let allow = if self == Self::Method { "Allow: GET, HEAD\r\n" } else { "" };
        let mut response = head(status, "text/plain; charset=utf-8", status.len() + 1, allow);
        response.extend([status, "\n"]);
        response
    }
}

/// The answer to a scrape.
pub(super) fn response(content_type: &str, body: &str, head_only: bool) -> String {
    let mut response = head("200 OK", content_type, body.len(), "");
    if !head_only {
        response.push_str(body);
    }
    response
}

fn head(status: &str, content_type: &str, length: usize, more: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n{more}\r\n"
    )
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    fn scrape(head_only: bool, accept: &str) -> Parsed {
        Parsed::Scrape { head_only, accept: accept.into() }
    }

    #[test]
    fn requests_are_told_apart() {
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(HEAD_MAX));
        let cases: &[(&[u8], Parsed)] = &[
            (b"", Parsed::Incomplete),
            (b"GET /metr", Parsed::Incomplete),
            (b"GET /metrics HTTP/1.1\r\nHost: a\r\n", Parsed::Incomplete),
            (b"GET /metrics HTTP/1.1\r\n\r\n", scrape(false, "")),
            (b"GET /metrics HTTP/1.0\r\n\r\n", scrape(false, "")),
            (b"GET /metrics?format=x HTTP/1.1\r\naccept: a\r\nACCEPT: b\r\n\r\n", scrape(false, "a,b")),
            (b"GET http://host:1/metrics HTTP/1.1\r\n\r\n", scrape(false, "")),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", scrape(true, "")),
            (b"GET http://host HTTP/1.1\r\n\r\n", Parsed::Refused(Refusal::NotFound)),
            (b"GET / HTTP/1.1\r\n\r\n", Parsed::Refused(Refusal::NotFound)),
            (b"GET /metrics/ HTTP/1.1\r\n\r\n", Parsed::Refused(Refusal::NotFound)),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Parsed::Refused(Refusal::Method)),
            (b"\x16\x03\x01\x02\x00", Parsed::Refused(Refusal::Malformed)),
            (b"GET /metrics\r\n\r\n", Parsed::Refused(Refusal::Malformed)),
            (many.as_bytes(), Parsed::Refused(Refusal::TooLarge)),
            (long.as_bytes(), Parsed::Refused(Refusal::TooLarge)),
        ];
        for (bytes, parsed) in cases {
            assert_eq!(Parsed::from(bytes), *parsed, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
