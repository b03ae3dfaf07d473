//! Ports for what tests start.
//!
//! They are below those that the kernel gives to connections that go out: a service that is killed finds its port free
//! when it is started again, and nobody connects from a port that was chosen and is not listened on yet.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// `net.ipv4.ip_local_port_range` begins at 32768 unless somebody changed it.
const RANGE: Range<u32> = 10_000..32_000;
/// Processes that test at the same time begin far from each other.
const STEP: u32 = 13_597;

/// A free one; none is given twice in a process before all others were.
///
/// # Panics
/// Where all are taken.
#[must_use]
pub fn one() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(STEP);
    let all = RANGE.end - RANGE.start;
    let next = || {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + first.wrapping_add(given) % all;
        let port = u16::try_from(port).ok()?;
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
    };
    (0..all).find_map(|_| next()).expect("a port that is free")
}

/// Several that differ.
#[must_use]
pub fn free<const N: usize>() -> [u16; N] {
    [(); N].map(|()| one())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ports_are_free_differ_and_are_not_those_of_connections_that_go_out() {
        let ports: BTreeSet<u16> = free::<40>().into_iter().chain(free::<40>()).collect();
        assert_eq!(ports.len(), 80);
        for port in ports {
            assert!(RANGE.contains(&u32::from(port)));
            TcpListener::bind(("127.0.0.1", port)).expect("it is free");
        }
    }
}
