//! W3C trace context, as it travels through the services and the log.

use http::{HeaderMap, HeaderValue};

/// `traceparent` of <https://www.w3.org/TR/trace-context/>, or nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// 0: there is no context.
    pub trace_id: u128,
    /// The caller's span.
    pub span_id: u64,
    pub sampled: bool,
}

const TRACEPARENT: &str = "traceparent";

impl TraceContext {
    /// Reads `traceparent`; anything malformed is as if it were not there, as the standard asks.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let text = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
        text.and_then(Self::parse).unwrap_or_default()
    }

    /// Reads the header's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let sizes = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
        let lower = text
            .bytes()
            .all(|c| c == b'-' || c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        let extra = parts.next().is_some();
        if !sizes || !lower || version == "ff" || (version == "00" && extra) {
            return None;
        }
        let context = Self {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            span_id: u64::from_str_radix(span, 16).ok()?,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace_id != 0 && context.span_id != 0).then_some(context)
    }

    /// Whether there is a context.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.trace_id != 0
    }

    /// Writes `traceparent`, where there is a context.
    pub fn write(&self, headers: &mut HeaderMap) {
        if !self.is_some() {
            return;
        }
        let text = format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            u8::from(self.sampled)
        );
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_and_writes_back() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(text).expect("valid");
        let mut headers = HeaderMap::new();
        context.write(&mut headers);
        assert_eq!(headers[TRACEPARENT], text);
        assert_eq!(TraceContext::from_headers(&headers), context);
    }

    #[test]
    fn a_malformed_traceparent_is_no_context() {
        for bad in [
            "",
            "00",
            "00-0-0-0",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}
