//! Who may use control routes.
//!
//! Without a token: whoever sits on this machine, which takes a listener bound to loopback and a peer on
//! loopback. With `admin_token`: whoever sends it, from anywhere. A browser on this machine is somebody
//! else's hand, so what a page of another site can send is refused: any `Origin` or `Sec-Fetch-Site`, and,
//! against DNS names that are rebound to 127.0.0.1, a `Host` that is a name other than `localhost`.

use super::Refused;
use crate::secret::Secret;
use crate::serve::PeerAddress;
use http::request::Parts;
use http::{StatusCode, header};
use std::net::IpAddr;

/// The rule of one listener.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Where the listener is bound.
    pub bound: IpAddr,
    /// `admin_token`.
    pub token: Option<Secret>,
}

impl Guard {
    /// Whether the request may use control routes.
    ///
    /// # Errors
    /// 401 `bad_admin_token`; 403 `cross_site_request` or `admin_not_allowed`, saying what to set.
    pub fn check(&self, request: &Parts) -> Result<(), Refused> {
        let headers = &request.headers;
        if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err(cross_site("control routes are not for browsers: use `ingestctl`"));
        }
        if let Some(token) = &self.token
            && headers.contains_key(header::AUTHORIZATION)
        {
            return if token.admits(headers) {
                Ok(())
            } else {
                Err(bad_token("the token is not this service's `admin_token`"))
            };
        }
        let peer = request.extensions.get::<PeerAddress>();
        let is_local = peer.is_some_and(|peer| is_loopback(peer.0.ip())) && is_loopback(self.bound);
        if is_local {
            return named_as_local(request);
        }
        Err(match self.token {
            Some(_) => bad_token("send `admin_token` as `Authorization: Bearer TOKEN`"),
            None => Refused::new(
                StatusCode::FORBIDDEN,
                "admin_not_allowed",
                "this listener is reached from beyond loopback, where control routes need a token: set `admin_token` in \
                 the config and send it as a bearer token, or bind the admin listener to 127.0.0.1",
            ),
        })
    }
}

fn bad_token(detail: &'static str) -> Refused {
    Refused::new(StatusCode::UNAUTHORIZED, "bad_admin_token", detail)
}

fn cross_site(detail: &'static str) -> Refused {
    Refused::new(StatusCode::FORBIDDEN, "cross_site_request", detail)
}

/// ::ffff:127.0.0.1 is loopback too.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn named_as_local(request: &Parts) -> Result<(), Refused> {
    let named = request.headers.get(header::HOST);
    let named = match named {
        Some(host) => host.to_str().ok(),
        None => request.uri.authority().map(http::uri::Authority::as_str),
    };
    let sound = named.is_some_and(|authority| {
        let host = host_of(authority);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    });
    if sound {
        return Ok(());
    }
    Err(cross_site(
        "ask for this listener by its IP address or as `localhost`: any other name could be one that a web page had \
         rebound",
    ))
}

/// `host`, `host:port`, `[v6]:port` → the host.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn ask(bound: &str, token: Option<&str>, peer: &str, headers: &[(&str, &str)]) -> Result<(), u16> {
        let guard = Guard {
            bound: bound.parse().expect("an address"),
            token: token.map(Secret::new),
        };
        let mut request = Request::builder().uri("/admin/v1/tenants");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        let peer = format!("{peer}:1").parse().expect("a peer");
        parts.extensions.insert(PeerAddress(peer));
        guard.check(&parts).map_err(|refused| refused.status().as_u16())
    }

    const LOCAL: (&str, &str) = ("host", "127.0.0.1:9464");

    #[test]
    fn loopback_needs_no_token_and_anything_wider_needs_one() {
        assert_eq!(ask("127.0.0.1", None, "127.0.0.1", &[LOCAL]), Ok(()));
        assert_eq!(ask("::1", None, "[::1]", &[("host", "[::1]:9464")]), Ok(()));
        assert_eq!(ask("127.0.0.1", None, "[::ffff:127.0.0.1]", &[LOCAL]), Ok(()));
        // A peer on this machine says nothing where the listener is wider: a proxy may stand between.
        assert_eq!(ask("0.0.0.0", None, "127.0.0.1", &[LOCAL]), Err(403));
        assert_eq!(ask("10.0.0.1", None, "10.0.0.2", &[LOCAL]), Err(403));
        assert_eq!(ask("0.0.0.0", Some("t"), "10.0.0.2", &[LOCAL]), Err(401));
    }

    #[test]
    fn the_token_opens_from_anywhere_and_a_wrong_one_opens_nowhere() {
        let (right, wrong) = (("authorization", "Bearer t0k"), ("authorization", "Bearer t0l"));
        assert_eq!(ask("0.0.0.0", Some("t0k"), "10.0.0.2", &[right]), Ok(()));
        assert_eq!(ask("0.0.0.0", Some("t0k"), "10.0.0.2", &[wrong]), Err(401));
        assert_eq!(
            ask("127.0.0.1", Some("t0k"), "127.0.0.1", &[LOCAL, wrong]),
            Err(401)
        );
        assert_eq!(ask("127.0.0.1", Some("t0k"), "127.0.0.1", &[LOCAL]), Ok(()));
        let named = [right, ("host", "sluice.example:9464")];
        assert_eq!(ask("0.0.0.0", Some("t0k"), "10.0.0.2", &named), Ok(()));
    }

    #[test]
    fn a_page_in_a_browser_cannot_reach_control_routes() {
        let rebound = ("host", "evil.example:9464");
        assert_eq!(ask("127.0.0.1", None, "127.0.0.1", &[rebound]), Err(403));
        assert_eq!(
            ask("127.0.0.1", None, "127.0.0.1", &[]),
            Err(403),
            "no host at all"
        );
        for header in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert_eq!(ask("127.0.0.1", None, "127.0.0.1", &[LOCAL, header]), Err(403));
            let right = ("authorization", "Bearer t0k");
            assert_eq!(
                ask("0.0.0.0", Some("t0k"), "127.0.0.1", &[LOCAL, header, right]),
                Err(403)
            );
        }
    }
}
