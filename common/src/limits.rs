//! Every limit of the product in one place, each with its reason. Relations between limits are
//! proven at compile time at the end of the file.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// ---- what a client may send (CONTRACT.md) ----

/// Largest request body after decompression: OTLP's own default.
pub const MAX_BODY_BYTES: usize = 64 * MIB;
/// Largest single event: far above telemetry's needs, far below what a record may hold.
pub const MAX_EVENT_BYTES: usize = MIB;
/// Most events in one request: one record's row index has 16 bits.
pub const MAX_EVENTS_PER_REQUEST: usize = 65_536;
/// Deepest nesting of one event: deeper is an attack on recursive readers, not telemetry.
pub const MAX_JSON_DEPTH: usize = 32;
/// Most members of one event, its map fields included.
pub const MAX_EVENT_MEMBERS: usize = 4_096;
/// Longest `Idempotency-Key`.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;
/// Row errors told to the client; the rest are counted in `errors_omitted`.
pub const MAX_ROW_ERRORS: usize = 100;
/// Most (table, ClickHouse partition) pairs of one request: each pair is one more insert.
pub const MAX_PARTITIONS_PER_REQUEST: usize = 24;
/// From this age on a taken event counts as late: far above what senders buffer, far below the default
/// `time.max_past`.
pub const LATE_EVENT: Duration = Duration::from_secs(3_600);
/// Most bytes of a client's text quoted back in an error message.
pub const MAX_QUOTED_BYTES: usize = 120;
/// Memory of one compiled `pattern`.
pub const MAX_PATTERN_BYTES: usize = MIB;
/// Unknown members of a dataset that the drift report names; the rest is counted only.
pub const MAX_DRIFT_NAMES: usize = 1_000;
/// Longest name among them: a column's has at most 63 bytes.
pub const MAX_DRIFT_NAME_BYTES: usize = 64;
/// Longest name of a unit: UCUM's compounds with their remarks are shorter.
pub const MAX_UNIT_BYTES: usize = 64;
/// Units that events name themselves, remembered for each field.
pub const MAX_UNITS_SEEN: usize = 256;

// ---- the edge ----

/// Body bytes (decompressed) that all requests of one edge may hold at once.
pub const EDGE_BODY_BYTES: usize = 256 * MIB;
/// Of these, what is guaranteed to the tenants, each by its weight: nobody else can take that.
pub const EDGE_GUARANTEED_BYTES: usize = EDGE_BODY_BYTES / 2;
/// What one tenant may borrow of the rest: the largest body with its decoder, and not all, so that one burst leaves
/// something to lend.
pub const EDGE_BORROW_BYTES: usize = 96 * MIB;
/// How long a request may wait in the edge's queue for a normalizer that said 429.
pub const EDGE_QUEUE_DEADLINE: Duration = Duration::from_millis(1_000);
/// From this time in the queue on a request is late. A queue whose oldest was late for [`QUEUE_INTERVAL`] stands, and
/// is cut to this: half the deadline, and more than a burst of usual requests ever takes.
pub const QUEUE_TARGET: Duration = Duration::from_millis(500);
/// How long a queue may be late before it stands: a pause of ClickHouse's or the disk's is over by then.
pub const QUEUE_INTERVAL: Duration = Duration::from_millis(1_000);
/// Requests of one tenant that wait in the edge's queue, however short.
pub const QUEUE_REQUESTS: usize = 8_192;
/// Requests that may be under way to one normalizer; from [`FORWARD_REQUESTS_FIRST`] on the number finds itself.
pub const FORWARD_REQUESTS: f64 = 1_024.0;
/// The number to begin with: enough for a group commit, and less than a parser's queue of 20 ms.
pub const FORWARD_REQUESTS_FIRST: f64 = 64.0;
/// Bytes that may be under way for each of those requests: 16 MiB to begin with.
pub const FORWARD_BYTES_PER_REQUEST: u64 = 256 * KIB as u64;
/// Longest time that the edge leaves a busy normalizer, or a tenant that it answered so, alone: half the queue's
/// deadline, so that what waits is tried again.
pub const BUSY_HOLD: Duration = Duration::from_millis(500);
/// How long a peer that could not be reached is left alone, where another one can be.
pub const ABSENT_REST: Duration = Duration::from_secs(2);
/// Between two looks at the addresses of a peer's name.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// How long an edge waits for the normalizer's answer once the request was passed on.
pub const EDGE_FORWARD_DEADLINE: Duration = Duration::from_secs(30);
/// Shortest `burst` of a quota, in ms: `Retry-After` and the headers of quotas count whole seconds.
pub const MIN_QUOTA_BURST: u64 = 1_000;
/// Longest one, in ms: beyond an hour a quota no longer evens out load.
pub const MAX_QUOTA_BURST: u64 = 3_600_000;
/// Tenants with a label of their own in metrics; the rest are `other`.
pub const TENANT_LABELS: usize = 200;
/// From the first byte of a request head to its last.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Between two pieces of a body.
pub const BODY_IDLE_DEADLINE: Duration = Duration::from_secs(10);
/// From the head to the body's end.
pub const BODY_TOTAL_DEADLINE: Duration = Duration::from_secs(60);
/// Connections of all public listeners of an edge, where the config is silent.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Of them from one address, where the config is silent: more than any client's pool, a tenth of all.
pub const MAX_CONNECTIONS_PER_ADDRESS: usize = 1_024;
/// Of them with requests of one tenant, where the config is silent: half, so that one tenant's fleet of agents keeps no
/// other tenant out.
pub const MAX_CONNECTIONS_PER_TENANT: usize = MAX_CONNECTIONS / 2;
/// Tenants for which one connection counts: a client has one, a gateway some.
pub const CONNECTION_TENANTS: usize = 16;
/// An HTTP/2 connection without a request for so long is ended by GOAWAY: longer than senders pause, and shorter than
/// most firewalls remember a silent connection. HTTP/1 has no way to say so, and [`HEADER_DEADLINE`].
pub const H2_IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// An HTTP/2 peer that said nothing for so long is pinged.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// One that does not answer a ping for so long is gone: its connection is closed.
pub const H2_PING_DEADLINE: Duration = Duration::from_secs(20);
/// A connection that was told to end, and carries no request, is left after so long: the peer does not go.
pub const FAREWELL_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 streams that a peer opened and reset before they were looked at, and streams that were reset for an error of
/// the peer's: with more of either its connection is closed. Honest clients cancel a few.
pub const MAX_H2_RESETS: usize = 128;
/// HTTP/2 streams of one connection.
pub const MAX_H2_STREAMS: u32 = 256;
/// Bytes of a request head.
pub const MAX_HEADER_BYTES: usize = 32 * KIB;
/// Most decoded bytes for one byte on the wire: telemetry packs 5 to 50 times, a bomb 1,000 and more.
pub const MAX_COMPRESSION_RATIO: usize = 400;
/// Decoded bytes from which the ratio counts: small repetitive bodies may pack any amount.
pub const COMPRESSION_RATIO_FROM_BYTES: usize = 16 * MIB;
/// Largest window of a zstd body, as a power of two: RFC 9659 has senders keep to 8 MiB.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 23;
/// How long what still comes is read and dropped after an early refusal, so that a client which sends all before it
/// looks for the answer sees it: 64 MiB over 100 Mbit/s.
pub const LONG_DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// How long such a drain waits for the next piece: a client that is silent is not sending any more.
pub const LONG_DRAIN_IDLE: Duration = Duration::from_secs(1);
/// Such drains under way on one listener: they hold a connection each, and read.
pub const LONG_DRAINS: usize = 256;
/// Bytes read and dropped where there are more than that.
pub const REFUSAL_DRAIN_BYTES: usize = 64 * KIB;
/// How long such a short drain may take.
pub const REFUSAL_DRAIN_DEADLINE: Duration = Duration::from_millis(200);

// ---- intake and the log ----

/// Body bytes that one normalizer parses at once; over it the edge is answered 429.
pub const INTAKE_BYTES: usize = 256 * MIB;
/// Column bytes waiting for the log writer; over it the edge is answered 429.
pub const LOG_QUEUE_BYTES: usize = 128 * MIB;
/// Records that wait for the brokers, where the log is theirs.
pub const LOG_QUEUE_MESSAGES: usize = 100_000;
/// A record that the brokers did not take by then is not waited for; whether it is there may be unknown.
pub const KAFKA_APPEND_DEADLINE: Duration = Duration::from_secs(30);
/// A normalizer that the brokers have not heard of for so long has lost its partitions, of the log and of sources.
pub const KAFKA_SESSION: Duration = Duration::from_secs(10);
/// Frames that are read ahead of each partition that is worked on; what a client of Kafka's fetches at once is as much.
pub const KAFKA_TAIL_BYTES: usize = 8 * MIB;
/// Bytes that a client of Kafka's fetches at once.
pub const KAFKA_FETCH_BYTES: usize = 4 * MIB;
/// Column bytes of one request, schemas of its records included: wide rows and arrays of short numbers
/// take many times their text, and what the log's queue never holds would be refused for ever.
pub const MAX_REQUEST_COLUMN_BYTES: usize = 96 * MIB;
/// Rows of one record: the row index has 16 bits.
pub const MAX_RECORD_ROWS: usize = 65_536;
/// Bytes of one record: Kafka's default message limit is 1 MiB, headers included.
pub const MAX_RECORD_BYTES: usize = 900 * KIB;
/// Column bytes (before compression) at which a request's rows are cut into records; half of the
/// record limit leaves room for columns that do not compress and for keys.
pub const TARGET_RECORD_BYTES: usize = 448 * KIB;
/// Longest copy of a rejected row (`keep_rejected`): enough to see what is wrong with it.
pub const MAX_REJECTED_COPY_BYTES: usize = 16 * KIB;
/// Requests of one tenant a second of which every row was rejected and that still leave a mark in the
/// log for the books: 56 bytes each, and about 400 where a mark is alone in its record.
pub const REJECT_MARKS_PER_SECOND: u64 = 1_000;
/// Bytes written by one group commit before its fsync.
pub const GROUP_COMMIT_BYTES: usize = 8 * MIB;
/// One segment file of the embedded log.
pub const SEGMENT_BYTES: usize = 64 * MIB;
/// Newest durable records kept in memory for the reader that follows the tail.
pub const TAIL_CACHE_BYTES: usize = 64 * MIB;
/// Least `log.reserve`: a bucket of dedup's state can be sealed in it (R5). Were there no room for that, nothing
/// could be deleted from a full log, and none would ever come.
pub const LOG_RESERVE_LEAST: u64 = 128 * MIB as u64;
/// `log.reserve` where the config is silent: 5 % of the volume within these bounds (R5).
pub const LOG_RESERVE_MIN: u64 = 512 * MIB as u64;
/// Upper bound of the default reserve.
pub const LOG_RESERVE_MAX: u64 = 4096 * MIB as u64;
/// The watermark closes at 100 % of `log.max_bytes` and reopens at this percentage.
pub const WATERMARK_REOPEN_PERCENT: u64 = 80;
/// Age of the backlog from which on each tenant gets its share of what is drained: well above what a range
/// takes, well below what a client takes for an outage.
pub const GRANT_AGE: Duration = Duration::from_secs(5);
/// The same where ranges are full and wait so long for their turn: what is sent is more than is drained. With what a
/// range and its insert take, events are in their tables within 3 s.
pub const GRANT_STANDING: Duration = Duration::from_millis(1_000);
/// The same for a backlog of so much of `log.max_bytes`: a burst may fill the log before it is old.
pub const GRANT_BACKLOG_PERCENT: u32 = 50;
/// Then all tenants together may fill so many times what they leave free: one alone 16/17 of the log.
pub const GRANT_ROOM_FACTOR: f64 = 16.0;
/// Tenants whose shares are remembered at once; one more is not held back.
pub const GRANT_TENANTS: usize = 10_000;

// ---- dedup ----

/// Keys of the active bucket before it rotates (R8).
pub const ACTIVE_BUCKET_KEYS: usize = 4_000_000;
/// Most that a sealed bucket takes on disk: for each key (25.5 measured, filter included), and LMDB's and the
/// filter's fixed part.
pub const SEALED_KEY_BYTES: usize = 27;
/// See [`SEALED_KEY_BYTES`].
pub const SEALED_BUCKET_BYTES: usize = 64 * KIB;
/// Sealed buckets probed for one key at most; more are merged (R8).
pub const MAX_SEALED_BUCKETS: usize = 6;
/// Longest dedup window of a dataset.
pub const MAX_DEDUP_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long an event identified only by its request is remembered (R3).
pub const REQUEST_WINDOW: Duration = Duration::from_secs(15 * 60);

// ---- ranges and the sink-writer ----

/// Rows of one sub-batch (R12): one ClickHouse block.
pub const MAX_BLOCK_ROWS: usize = 500_000;
/// Bytes of one sub-batch's block (R12).
pub const MAX_BLOCK_BYTES: usize = 64 * MIB;
/// Column bytes of one range, as records count them: a block also holds our own columns, under 48 B a
/// row.
pub const MAX_RANGE_BYTES: usize = 40 * MIB;
/// Frame bytes of one range, repeats included: a one-row record takes 2.6 kB of frame.
pub const MAX_RANGE_FRAME_BYTES: usize = 64 * MIB;
/// Dead letters at which a range closes; one more record may join before.
pub const MAX_RANGE_LETTERS: usize = MAX_RECORD_ROWS;
/// Rows of the books of one range: it closes there. Each is a tenant, dataset and minute, about 300
/// bytes of a call's head.
pub const MAX_RANGE_ENTRIES: usize = 4_096;
/// Lines of the books that one question gets: about 150 bytes each.
pub const MAX_BOOKS_LINES: usize = 10_000;
/// Dead letters that one list tells; about 300 bytes each.
pub const MAX_LETTERS_LISTED: usize = 10_000;
/// Dead letters that one order stores: each takes some queries, and all must end within [`ADMIN_DEADLINE`].
pub const MAX_LETTERS_RETRIED: usize = 50;
/// Dead letters that one order deletes.
pub const MAX_LETTERS_DISCARDED: usize = 1_000;
/// How long a message may take to its topic, retries of Kafka's client included; what is not there by then waits on
/// disk, so that the range goes on: a broker that restarts is back sooner.
pub const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// Payloads that wait for their broker, in bytes, new ones and those that have waited on disk apart; a broker that is
/// slower is waited for.
pub const PUBLISH_QUEUE_BYTES: usize = 32 * MIB;
/// The same in messages.
pub const PUBLISH_QUEUE_MESSAGES: usize = 32_768;
/// What a message takes beside its payload: key, headers, and what the client notes of it.
pub const PUBLISH_MESSAGE_BYTES: usize = KIB;
/// Shares of ranges that waited for their topics and are in memory at once: one of a topic that takes events, and one
/// of those that are in trouble.
pub const PUBLISH_UNITS: usize = 2;
/// Records and columns of calls that publish: a range's. ClickHouse's calls have their own ([`SINK_CALL_BYTES`]).
pub const PUBLISH_CALL_BYTES: usize = 128 * MIB;
/// `consume`s of all datasets together: each has a thread and a client of its own.
pub const MAX_SOURCES: usize = 64;
/// Topics of one.
pub const MAX_SOURCE_TOPICS: usize = 256;
/// Messages that are appended at once.
pub const SOURCE_BATCH_MESSAGES: usize = 20_000;
/// The same in bytes; a single message may be larger.
pub const SOURCE_BATCH_BYTES: usize = 4 * MIB;
/// What a source's client fetches ahead, unpacked, before it asks for no more.
pub const SOURCE_QUEUE_BYTES: usize = 8 * MIB;
/// What is asked of a broker at once, as it is compressed.
pub const SOURCE_FETCH_BYTES: usize = 2 * MIB;
/// How long what came is left to grow into a batch.
pub const SOURCE_LINGER: Duration = Duration::from_millis(20);
/// Within it a request of messages is answered, or made again.
pub const SOURCE_DEADLINE: Duration = Duration::from_secs(10);
/// Frames of the log that are read at once.
pub const LOG_READ_BYTES: usize = 4 * MIB;
/// Frames of the log that are read to say what is in flight.
pub const BOOKS_READ_BYTES: usize = 256 * MIB;
/// How long a range that sends no rows grows, where its datasets' `batch.max_age` is shorter: nobody
/// waits for it, and it costs an insert into the books all the same.
pub const ROWLESS_RANGE_AGE: Duration = Duration::from_secs(2);
/// Payload bytes of all dead letters of one sub-batch: each may take its share, and is cut there.
pub const MAX_LETTER_BYTES: usize = 128 * MIB;
/// The block that is never sent: from here on ClickHouse would cut it in two.
pub const MAX_SENT_BLOCK_BYTES: usize = 4 * MAX_BLOCK_BYTES;
/// Sub-batches of one range: the intent that names them has preallocated room.
pub const MAX_SUB_BATCHES: usize = 256;
/// Refused rows of one sub-batch: with more it is the table that is at fault, not the rows (R15).
pub const MAX_BAD_ROWS: usize = 64;
/// Refused rows of one range: the intent that names them has preallocated room, under 600 B each.
pub const MAX_DEAD_ROWS: usize = 128;
/// Record bytes that calls to one sink-writer may hold at once; over it 429.
pub const SINK_CALL_BYTES: usize = 256 * MIB;
/// What the columns of one call's records may unpack to. They are those of a range, or of one record, which holds at most
/// a request's; and Arrow writes bitmaps where we count none: at worst as much again, where all values are booleans.
pub const MAX_CALL_COLUMN_BYTES: usize = 2 * MAX_REQUEST_COLUMN_BYTES;
/// Sub-batches that one ClickHouse is given at once, to begin with.
pub const CLICKHOUSE_SLOTS: f64 = 4.0;
/// The least, however overloaded it is.
pub const CLICKHOUSE_SLOTS_MIN: f64 = 1.0;
/// The most, however well it goes: each holds a block of up to [`MAX_BLOCK_BYTES`] twice on the server.
pub const CLICKHOUSE_SLOTS_MAX: f64 = 16.0;
/// Failed inserts in a row after which a table gets probes only.
pub const CIRCUIT_FAILURES: u32 = 3;
/// Tables whose failures are remembered at once.
pub const CIRCUIT_TABLES: usize = 10_000;
/// Between two looks at the parts of tables that are written: a query of about a millisecond.
pub const PARTS_LOOK: Duration = Duration::from_secs(2);
/// Tables that are looked at at once.
pub const PARTS_TABLES: usize = 1_000;
/// By how much ranges grow longer at most while a table has nearly too many parts.
pub const PACE_MAX: f64 = 8.0;
/// First time-out of an insert; it doubles with each attempt (R12).
pub const INSERT_DEADLINE: Duration = Duration::from_secs(60);
/// Last time-out of an insert.
pub const INSERT_DEADLINE_MAX: Duration = Duration::from_secs(600);
/// Blocks whose tokens our tables remember (R12).
pub const TOKEN_WINDOW_BLOCKS: u32 = 10_000;
/// One range in so many is verified though its answer was clean (R14).
pub const VERIFY_ONE_IN: u64 = 1_000;
/// Retries of one partition that may come at once.
pub const RETRIES_AT_ONCE: f64 = 20.0;
/// What a call that went well adds to the budget of retries.
pub const RETRY_PER_SUCCESS: f64 = 0.1;
/// In so much time one retry is added without any: an outage ends unseen else.
pub const RETRY_FLOOR: Duration = Duration::from_secs(2);
/// Back-off after a range that could not be settled: first wait.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Back-off after a range that could not be settled: last wait.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(10);

// ---- replay ----

/// Events a second that a replay writes at most, where its order does not say otherwise: about what leaves half of two
/// cores to the live path.
pub const REPLAY_EVENTS_PER_SECOND: u64 = 220_000;
/// Rows of one range of a replay, or one record. Of fewer, ClickHouse merges more; of many, a live insert waits no longer
/// beside it, because what is replayed leaves the processor to others.
pub const REPLAY_RANGE_ROWS: usize = 100_000;
/// Records of one range of a replay, those that it does not want included: what is known of their rows fits one answer.
pub const REPLAY_RANGE_RECORDS: u64 = 10_000;
/// While the live backlog is older, a replay waits.
pub const REPLAY_BACKLOG_AGE: Duration = Duration::from_secs(4);
/// For so long a replay waits for rows that were set aside and are going in.
pub const REPLAY_ASIDE_PATIENCE: Duration = Duration::from_secs(20);
/// After so much trouble with one range, or with what was under way at a promotion, a replay stops and says why.
pub const REPLAY_PATIENCE: Duration = Duration::from_secs(60);
/// How long after its last step the log keeps what a replay may still ask for.
pub const REPLAY_PIN_AGE: Duration = Duration::from_secs(24 * 3600);
/// Part of `log.max_bytes` by which the log grows larger at most for the sake of a replay.
pub const REPLAY_PIN_PART: u64 = 4;
/// Plans that are made at once, or wait for those who asked.
pub const REPLAY_PLANNINGS: usize = 4;
/// Plans that may be run; older ones are forgotten.
pub const REPLAY_PLANS: usize = 16;

// ---- processes ----

/// From SIGTERM to the end: what was taken is finished within it, then the process exits.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);
/// Of it, what requests under way may take before the log is closed.
pub const SERVER_DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer read from an inner hop or from ClickHouse.
pub const MAX_INNER_ANSWER_BYTES: usize = 4 * MIB;
/// Body of one request to a control route: a list of tenants or a config at most.
pub const ADMIN_BODY_BYTES: usize = MIB;
/// How long a control route may take before its caller is told to look again.
pub const ADMIN_DEADLINE: Duration = Duration::from_secs(60);
/// From a connection to the end of its TLS handshake: a slow mobile link needs about one second.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// TLS handshakes under way on one listener; one more lets the oldest go. An idle one holds a socket and some
/// 20 KiB, and an honest one is over in milliseconds, long before as many others have come.
pub const MAX_HANDSHAKES: usize = 1_024;
/// Largest file of certificates or of a key: a bundle of all public authorities is 220 KiB.
pub const MAX_TLS_FILE_BYTES: u64 = 4 * MIB as u64;
/// Largest config file.
pub const MAX_CONFIG_BYTES: usize = 4 * MIB;

// ---- memory: what these limits add up to; docs/operations.md has it as a table ----

/// Code, metrics, threads, and what an allocator keeps: a process that has done some work and is idle.
pub const PROCESS_BYTES: usize = 64 * MIB;
/// A connection with its task and buffers.
pub const CONNECTION_BYTES: usize = 24 * KIB;
/// A full bucket of dedup's state in memory, and how many there may be: one that grows and three that are frozen.
pub const DEDUP_BUCKET_BYTES: usize = 118_000_000;
/// See [`DEDUP_BUCKET_BYTES`].
pub const DEDUP_BUCKETS: usize = 4;
/// `dedup.memory` where the config is silent.
pub const DEDUP_MEMORY_BYTES: usize = 256 * MIB;
/// Most that an edge holds.
pub const EDGE_MEMORY_BYTES: usize = PROCESS_BYTES + EDGE_BODY_BYTES + MAX_CONNECTIONS * CONNECTION_BYTES;
/// Most that a normalizer holds: bodies and the columns of their size, columns and frames that wait for the log, its
/// tail, a range that settles and one that grows, what waited for its topic, and dedup's state.
pub const NORMALIZER_MEMORY_BYTES: usize = PROCESS_BYTES
    + 2 * INTAKE_BYTES
    + 2 * LOG_QUEUE_BYTES
    + TAIL_CACHE_BYTES
    + 2 * (MAX_RANGE_FRAME_BYTES + MAX_RANGE_BYTES)
    + 2 * PUBLISH_UNITS * MAX_RANGE_FRAME_BYTES
    + DEDUP_BUCKETS * DEDUP_BUCKET_BYTES
    + DEDUP_MEMORY_BYTES;
/// Most that a sink-writer holds: calls with their columns, and of these the blocks and the bodies made of them; and
/// messages on their way to a topic.
pub const SINK_MEMORY_BYTES: usize = PROCESS_BYTES
    + 3 * SINK_CALL_BYTES
    + PUBLISH_CALL_BYTES
    + 2 * (PUBLISH_QUEUE_BYTES + PUBLISH_QUEUE_MESSAGES * PUBLISH_MESSAGE_BYTES);
/// Most that Sluice holds on one machine, in whichever shape.
pub const MEMORY_BYTES: usize = EDGE_MEMORY_BYTES + NORMALIZER_MEMORY_BYTES + SINK_MEMORY_BYTES;

const _: () = {
    assert!(MAX_EVENTS_PER_REQUEST <= MAX_RECORD_ROWS);
    assert!(MAX_RECORD_ROWS <= 1 << 16);
    assert!(TARGET_RECORD_BYTES * 2 <= MAX_RECORD_BYTES);
    assert!(EDGE_GUARANTEED_BYTES + EDGE_BORROW_BYTES < EDGE_BODY_BYTES);
    assert!(MAX_BODY_BYTES + MIB <= EDGE_BORROW_BYTES);
    assert!(MAX_BODY_BYTES <= INTAKE_BYTES);
    assert!(MAX_RANGE_FRAME_BYTES + MAX_RANGE_BYTES <= PUBLISH_CALL_BYTES);
    assert!(MAX_EVENT_BYTES <= MAX_BODY_BYTES);
    assert!(SOURCE_BATCH_MESSAGES <= MAX_EVENTS_PER_REQUEST);
    assert!(SOURCE_BATCH_BYTES <= MAX_BODY_BYTES);
    assert!(MAX_BODY_BYTES <= MAX_REQUEST_COLUMN_BYTES);
    // Built in a group that is nearly full, it still fits the log's queue.
    assert!(MAX_REQUEST_COLUMN_BYTES + GROUP_COMMIT_BYTES + TARGET_RECORD_BYTES <= LOG_QUEUE_BYTES);
    assert!(MAX_RECORD_BYTES * 4 <= GROUP_COMMIT_BYTES);
    assert!(GROUP_COMMIT_BYTES + MAX_RECORD_BYTES <= SEGMENT_BYTES);
    assert!(MAX_RECORD_ROWS <= MAX_BLOCK_ROWS);
    assert!(MAX_BLOCK_BYTES * 2 <= SINK_CALL_BYTES);
    assert!(MAX_RANGE_BYTES + MAX_BLOCK_ROWS * 48 <= MAX_BLOCK_BYTES);
    assert!(MAX_LETTER_BYTES + 2 * MAX_RANGE_LETTERS * 512 <= MAX_SENT_BLOCK_BYTES);
    // A call carries frames and, for each row, at most 6 bytes of fates.
    assert!(MAX_RANGE_FRAME_BYTES * 2 <= SINK_CALL_BYTES);
    assert!(MAX_RECORD_BYTES <= MAX_RANGE_BYTES);
    assert!(2 * MAX_RANGE_BYTES <= MAX_CALL_COLUMN_BYTES);
    assert!(MAX_CALL_COLUMN_BYTES <= SINK_CALL_BYTES);
    assert!(CLICKHOUSE_SLOTS_MIN >= 1.0 && CLICKHOUSE_SLOTS_MIN <= CLICKHOUSE_SLOTS);
    assert!(CLICKHOUSE_SLOTS <= CLICKHOUSE_SLOTS_MAX);
    assert!(LOG_RESERVE_MIN < LOG_RESERVE_MAX);
    assert!(LOG_RESERVE_LEAST <= LOG_RESERVE_MIN);
    assert!((ACTIVE_BUCKET_KEYS * SEALED_KEY_BYTES + SEALED_BUCKET_BYTES) as u64 <= LOG_RESERVE_LEAST);
    assert!(WATERMARK_REOPEN_PERCENT < 100);
    assert!(GRANT_BACKLOG_PERCENT < 100);
    assert!(MAX_HANDSHAKES * 4 <= MAX_CONNECTIONS);
    assert!(LONG_DRAINS * 4 <= MAX_CONNECTIONS);
    assert!(MAX_CONNECTIONS_PER_TENANT * 2 <= MAX_CONNECTIONS);
    // A drain after an early refusal belongs to no request any more, and must not be cut off.
    assert!(LONG_DRAIN_DEADLINE.as_secs() < FAREWELL_DEADLINE.as_secs());
    assert!(FAREWELL_DEADLINE.as_secs() < H2_IDLE_DEADLINE.as_secs());
    assert!(HEADER_DEADLINE.as_secs() < H2_IDLE_DEADLINE.as_secs());
    assert!(QUEUE_TARGET.as_millis() < EDGE_QUEUE_DEADLINE.as_millis());
    assert!(BUSY_HOLD.as_millis() * 2 <= EDGE_QUEUE_DEADLINE.as_millis());
    assert!(FORWARD_REQUESTS_FIRST <= FORWARD_REQUESTS);
};
