//! The folder of a ClickHouse of ours, and the configuration written into it.
//!
//! ```text
//! DIR/clickhouse/
//!   db/                 ClickHouse's own files
//!   config.xml          written anew at each start
//!   clickhouse.pid      locked by the running process for as long as it lives; holds its pid
//!   clickhouse.log      ClickHouse's warnings and errors, rotated by it at 20 MiB, one old file kept
//!   console.log         what the process wrote to stdout and stderr; console.log.1 is the start before
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What ClickHouse leaves free of its disk: below it inserts are refused and no merge begins.
///
/// With no room at all the embedded library (26.7.2) does not look at whether its writes succeed: an insert is answered
/// as if it were stored, and a merge puts a part of empty files in the place of those it was made of *(tried)*. So it
/// is to stop before the disk is full, with room for what it has begun, and whoever else fills the disk has to take
/// this much within one insert or merge to do harm.
const KEPT_FREE_BYTES: u64 = 64 << 20;
/// How much of the end of a log an error quotes.
const QUOTED_BYTES: u64 = 2 * 1024;

/// Paths inside `DIR/clickhouse`; absolute, and without symbolic links.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes `data_dir/clickhouse` where it is missing.
    pub(super) fn create(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join("clickhouse");
        fs::create_dir_all(root.join("db"))?;
        Self::at(&root)
    }

    /// The layout of an existing `DIR/clickhouse`.
    pub(super) fn at(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: root.canonicalize()?,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn database(&self) -> PathBuf {
        self.root.join("db")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.root.join("config.xml")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.root.join("clickhouse.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("clickhouse.log")
    }

    fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// An empty console log; the one before it is kept as `console.log.1`.
    pub(super) fn fresh_console(&self) -> io::Result<File> {
        let current = self.console();
        match fs::rename(&current, self.root.join("console.log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        File::create(current)
    }

    /// The last words of the process, for an error message: the console, or else the log.
    pub(super) fn last_words(&self) -> String {
        [self.console(), self.log()]
            .iter()
            .filter_map(|file| tail(file).ok())
            .find(|text| !text.is_empty())
            .unwrap_or_else(|| "it said nothing".to_owned())
    }

    /// Writes the configuration for an HTTP server on `port`, loopback only.
    pub(super) fn write_config(&self, port: u16) -> io::Result<()> {
        fs::write(self.config(), self.config_text(port))
    }

    /// The same text serves the library and `clickhouse server`.
    ///
    /// What is not here is off: a configuration that names no `query_log` and its like writes none,
    /// and no `tcp_port` means no native port. The library reads neither the log level nor the time
    /// zone from here (its launcher passes both). Half of the memory at most, and caches far below
    /// the 5 GiB defaults, because it shares the machine with us. Stack traces in the log of each
    /// refused query would bury the message.
    fn config_text(&self, port: u16) -> String {
        let database = escape(&self.database());
        let config = escape(&self.config());
        let log = escape(&self.log());
        format!(
            "<clickhouse>
    <logger><level>warning</level><log>{log}</log><size>20M</size><count>1</count></logger>
    <timezone>UTC</timezone>
    <listen_host>127.0.0.1</listen_host>
    <http_port>{port}</http_port>
    <path>{database}/</path>
    <tmp_path>{database}/tmp/</tmp_path>
    <user_files_path>{database}/user_files/</user_files_path>
    <format_schema_path>{database}/format_schemas/</format_schema_path>
    <keep_alive_timeout>60</keep_alive_timeout>
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <mark_cache_size>134217728</mark_cache_size>
    <index_mark_cache_size>33554432</index_mark_cache_size>
    <primary_index_cache_size>134217728</primary_index_cache_size>
    <uncompressed_cache_size>0</uncompressed_cache_size>
    <storage_configuration><disks><default>
        <keep_free_space_bytes>{KEPT_FREE_BYTES}</keep_free_space_bytes>
    </default></disks></storage_configuration>
    <background_pool_size>2</background_pool_size>
    <background_schedule_pool_size>4</background_schedule_pool_size>
    <users_config>{config}</users_config>
    <profiles><default><calculate_text_stack_trace>0</calculate_text_stack_trace></default></profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password/>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
</clickhouse>
"
        )
    }
}

fn escape(path: &Path) -> String {
    path.to_string_lossy()
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn tail(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(QUOTED_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_markup_in_it_stays_text_in_the_configuration() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::create(&root.path().join("a<b>&c")).unwrap();
        let text = layout.config_text(8123);
        assert!(text.contains("a&lt;b&gt;&amp;c/clickhouse/db/</path>"), "{text}");
    }

    #[test]
    fn one_console_log_before_the_current_one_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::create(root.path()).unwrap();
        for words in ["first", "second", "third"] {
            drop(layout.fresh_console().unwrap());
            fs::write(layout.console(), words).unwrap();
        }
        assert_eq!(layout.last_words(), "third");
        assert_eq!(
            fs::read_to_string(layout.root().join("console.log.1")).unwrap(),
            "second"
        );
        assert_eq!(
            fs::read_dir(layout.root()).unwrap().count(),
            3,
            "db and two console logs"
        );
    }
}
