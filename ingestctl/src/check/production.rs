//! `check --production`: what is fit for a development machine only.

use super::finding::Findings;
use crate::demo;
use sluice_common::config::Loaded;
use sluice_common::servers::name_of;
use std::net::IpAddr;

/// Looks at the config as one of a production.
pub fn look(loaded: &Loaded, has_config: bool, findings: &mut Findings) {
    let config = &loaded.config;
    if !has_config || config.tenants.iter().any(|one| one.id.as_str() == demo::TENANT) {
        findings.degraded(
            "tenants",
            "the tenant `demo` is for development: its key lies in demo.key; run with --config, and add tenants of your own",
        );
    }
    if config.edge.listen.iter().any(|address| !is_loopback(address)) {
        findings.degraded(
            "tls",
            "edge.listen is beyond loopback and speaks no TLS: keys and events are readable on the way; put a TLS proxy \
             before it",
        );
    }
    if config.internal.token.is_none() {
        findings.degraded(
            "internal",
            "internal.token is not set: who reaches the inner listeners of services in processes of their own writes as \
             any tenant; set it (`up` has no inner listeners)",
        );
    }
    let admin = [
        ("edge.admin", &config.edge.admin),
        ("normalizer.admin", &config.normalizer.admin),
        ("sink_writer.admin", &config.sink_writer.admin),
    ];
    for (key, address) in admin.into_iter().filter(|(_, address)| !is_loopback(address)) {
        let message = match loaded.admin_token {
            Some(_) => "is beyond loopback: admin_token and what it opens cross the network without TLS",
            None => {
                "is beyond loopback without admin_token: it serves probes and metrics alone, and those name tenants"
            }
        };
        findings.degraded(
            "admin",
            format!("{key} {address} {message}; bind it to 127.0.0.1"),
        );
    }
    for url in loaded.clickhouse_url.iter().chain(&loaded.clickhouse_failover) {
        let authority = url
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap_or_default();
        if !is_loopback(authority) {
            findings.degraded(
                "clickhouse",
                format!(
                    "the ClickHouse {} is beyond loopback and speaks no TLS: keep it on a trusted network",
                    name_of(url)
                ),
            );
        }
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn found(yaml: &str, has_config: bool) -> Vec<String> {
        let loaded = Loaded::parse(yaml, Path::new("x"), Path::new("/")).expect("valid");
        let mut findings = Findings::default();
        look(&loaded, has_config, &mut findings);
        findings.all().iter().map(|one| one.what.clone()).collect()
    }

    #[test]
    fn what_is_for_development_only_is_told() {
        assert_eq!(found("internal: {token: t0k}", true), Vec::<String>::new());
        assert_eq!(found("{}", false), ["tenants", "internal"]);
        let wide = "internal: {token: t0k}\nadmin_token: t0k\nedge: {listen: [\"0.0.0.0:1\"], admin: \"0.0.0.0:2\"}\n\
                    clickhouse: {url: \"http://10.0.0.7:8123\"}\n";
        assert_eq!(found(wide, true), ["tls", "admin", "clickhouse"]);
        assert_eq!(
            found(&wide.replace("admin_token: t0k\n", ""), true),
            ["tls", "admin", "clickhouse"]
        );
    }
}
