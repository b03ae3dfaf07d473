//! What we ask of our own ClickHouse over HTTP: whether it is there, and to end.
//!
//! HTTP/1.0, which is answered without chunks and then closed: nothing here needs a client.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// `SELECT path FROM system.disks WHERE name = 'default' FORMAT TSVRaw`, as a read-only GET.
const ASK_PATH: &str = "GET /?query=SELECT%20path%20FROM%20system.disks%20WHERE%20name%3D%27default%27\
    %20FORMAT%20TSVRaw HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n";

/// True once the server on `port` answers queries from the files in `database`. A stranger that
/// took the port in the meantime has other files.
pub(super) fn answers(port: u16, database: &Path) -> bool {
    ask(port, ASK_PATH).is_ok_and(|answer| is_ours(&answer, database))
}

/// Cancels the queries whose text contains `marker`, without waiting for them. `marker` is a plain word.
///
/// # Errors
/// Nobody answers, or not with 200.
pub(super) fn cancel(port: u16, marker: &str) -> io::Result<()> {
    let sql = format!("KILL QUERY WHERE query LIKE '%{marker}%' AND query_id != queryID() ASYNC FORMAT Null");
    let length = sql.len();
    let request = format!("POST / HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{sql}");
    let answer = ask(port, &request)?;
    if is_ok(&answer) {
        Ok(())
    } else {
        Err(io::Error::other(answer))
    }
}

fn ask(port: u16, request: &str) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

fn is_ok(answer: &str) -> bool {
    answer.split(' ').nth(1) == Some("200")
}

fn is_ours(answer: &str, database: &Path) -> bool {
    let Some((_, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    is_ok(answer) && Path::new(body.trim_end_matches('\n')) == database
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_200_with_our_own_path_counts() {
        let ours = Path::new("/data/clickhouse/db");
        assert!(is_ours(
            "HTTP/1.0 200 OK\r\nA: b\r\n\r\n/data/clickhouse/db/\n",
            ours
        ));
        assert!(!is_ours(
            "HTTP/1.0 200 OK\r\nA: b\r\n\r\n/other/clickhouse/db/\n",
            ours
        ));
        assert!(!is_ours(
            "HTTP/1.0 500 No\r\nA: b\r\n\r\n/data/clickhouse/db/\n",
            ours
        ));
        assert!(!is_ours("", ours));
    }
}
