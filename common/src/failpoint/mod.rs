//! Named places on an event's way at which a test may kill the process, have an operation fail or hold it up,
//! and safeties that a test may switch off to see that the suite notices.
//!
//! All of it is there with the cargo feature `failpoints` only, which does not build without debug assertions:
//! in a release [`hit`] is an empty function, [`is_on`] is `true` and [`shrunk`] gives back what it was given.
//!
//! # How a test asks for something
//! `SLUICE_FAILPOINTS` names a directory; a process started without one heeds nothing. In the directory:
//!
//! | file | what it says | read |
//! |---|---|---|
//! | `plan` | `CASE POINT kill\|error\|MS NTH`: what happens at the so-maniest hit of a point since the plan was put there (MS: a delay in milliseconds, which holds up its thread as a stalled machine would) | at each hit |
//! | `fired` | the plan, renamed just before it is carried out: it is carried out once, whoever restarts | by the test |
//! | `hits` | a line for each hit: the point's name | by the test |
//! | `off` | names of safeties that are off, one a line | once, at the first question |
//! | `sizes` | `NAME VALUE`: bounds made smaller, one a line | once, at the first question |
//!
//! # The points
//! | name | where | what an error there is |
//! |---|---|---|
//! | `edge.forward` | a request is about to be passed to the normalizer | refused, nothing was passed on |
//! | `edge.answered` | the normalizer's answer is here, the client has none | an answer that was lost |
//! | `log.write` | a group is about to be written | a failed write |
//! | `log.written` | written, not synced: before the ack | a write that failed after its bytes |
//! | `log.synced` | synced, and nobody knows | a failed sync: the process ends |
//! | `log.answered` | readers see it, callers wait for their answer | lost answers |
//! | `produce.send`, `produce.sent` | around the handing over of a record to the producer of a log in Kafka | the producer has a fatal error: it sends nothing more |
//! | `beside.send`, `beside.sent` | the same of a message to a topic beside that log | the same |
//! | `spare.write` | the next segment is about to be made | a failed write |
//! | `segment.rename` | a segment is whole, and has no name | the roll fails |
//! | `segment.renamed` | it has its name, the directory is not synced | a failed sync: the process ends |
//! | `segment.unlink` | a stored segment is about to be deleted | tried again later |
//! | `segment.unlinked` | deleted, the directory is not synced | a failed sync: the process ends |
//! | `seal.write` | a bucket of the dedup state is about to be written (sealed, or merged) | tried again later |
//! | `seal.written` | its files are synced, the manifest does not name them | tried again later |
//! | `manifest.rename` | the new manifest is synced beside the old one | tried again later |
//! | `manifest.renamed` | it is in place, the directory is not synced | in doubt: the process ends |
//! | `bucket.unlink` | the manifest no longer names a bucket that is still there | its files stay until the next start |
//! | `bucket.unlinked` | its files are gone | nothing |
//! | `progress.written` | a slot of the progress is written, not synced | in doubt: the process ends |
//! | `intent.persist`, `intent.persisted` | around the declaration of a range | the process ends |
//! | `marks.persist`, `marks.persisted` | around what is kept of a walk to refused rows | the process ends |
//! | `bump.persist`, `bump.persisted` | around a new generation of a token | the process ends |
//! | `commit.persist`, `commit.persisted` | around a commit; after it dedup and log know nothing of it | the process ends |
//! | `commit.told` | they do; the next range is not declared | the process ends |
//! | `call.send` | a call is about to go to the sink-writer | a call that failed |
//! | `call.answered` | its answer is at the normalizer, and counts for nothing yet | a lost answer |
//! | `insert.send` | no byte of an insert is sent | uncertain, and nothing was sent |
//! | `insert.answered` | ClickHouse has answered, nobody was told | a lost answer |
//! | `verify.ask`, `verify.answered` | around a verification | it says nothing |
//! | `unit.write`, `unit.written` | around the file of rows that are set aside | not set aside; in doubt: the process ends |
//! | `unit.marks`, `unit.marked` | around what is decided of them | tried again; in doubt: the process ends |
//! | `unit.remove` | all of a unit is told, its file is there | the process ends |
//! | `unit.removed` | the file is gone, what was decided of it is there | the process ends |
//! | `publish.send` | events are about to go to the sink-writer, for their topic | not sent: they are set aside |
//! | `publish.answered` | its answer is here, and counts for nothing yet | a lost answer: they are set aside |
//! | `source.read` | messages of a Kafka topic are about to be appended | not appended: tried again |
//! | `source.durable` | they are durable, their offsets are not committed | a lost answer: appended again |
//! | `letter.stored` | the row of a dead letter that is tried again is in its table, the books do not say so | unknown |
//! | `letter.booked` | the books say so, the letter is there | unknown |
//! | `letter.deleted` | the letter is gone, the caller was not told | unknown |
//! | `replay.persist`, `replay.persisted` | around the state of a replay | it stops, and can be resumed |
//! | `replay.act`, `replay.acted` | around what a replay has done to tables | the same |
//!
//! # The safeties
//! | name | what it keeps | without it |
//! |---|---|---|
//! | `verify` | doubt is settled by counting rows (R14) | what is uncertain is taken for stored: rows are lost |
//! | `dedup` | a copy within the window is dropped (R7) | rows are doubled |
//! | `lock` | one process on a log, and on a dedup state | two write over each other: rows are lost |
//! | `unlink_last` | what was set aside is deleted once all of it is told (R16, R17) | a kill between the two: rows are lost |
//! | `bump` | a token's new generation is durable before it is sent (R14) | a held request lands beside the old token's: rows are doubled |
//! | `intent` | a range is declared before it is sent (R11) | after a kill it is cut otherwise, under other tokens: rows are doubled |
//! | `horizon` | no rows past what is declared are found at a start (R19) | the loss of an intent goes unseen |

#[cfg(feature = "failpoints")]
mod armed;
#[cfg(feature = "failpoints")]
pub use armed::{DIRECTORY_VARIABLE, hit, is_on, shrunk};

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!(
    "failpoints are for tests: build with debug assertions (`--profile ci`), or without the feature"
);

/// An enum whose names exist with the feature only.
macro_rules! named {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(feature = "failpoints", derive(Debug, PartialOrd, Ord, Hash))]
        pub enum $kind { $($variant,)+ }

        #[cfg(feature = "failpoints")]
        impl $kind {
            /// All of them, in the order of the table above.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in files and tables.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The one of that name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

named! {
    /// A place where something may happen; the module's table says where each lies.
    Point {
        EdgeForward = "edge.forward",
        EdgeAnswered = "edge.answered",
        LogWrite = "log.write",
        LogWritten = "log.written",
        LogSynced = "log.synced",
        LogAnswered = "log.answered",
        ProduceSend = "produce.send",
        ProduceSent = "produce.sent",
        BesideSend = "beside.send",
        BesideSent = "beside.sent",
        SpareWrite = "spare.write",
        SegmentRename = "segment.rename",
        SegmentRenamed = "segment.renamed",
        SegmentUnlink = "segment.unlink",
        SegmentUnlinked = "segment.unlinked",
        SealWrite = "seal.write",
        SealWritten = "seal.written",
        ManifestRename = "manifest.rename",
        ManifestRenamed = "manifest.renamed",
        BucketUnlink = "bucket.unlink",
        BucketUnlinked = "bucket.unlinked",
        ProgressWritten = "progress.written",
        IntentPersist = "intent.persist",
        IntentPersisted = "intent.persisted",
        MarksPersist = "marks.persist",
        MarksPersisted = "marks.persisted",
        BumpPersist = "bump.persist",
        BumpPersisted = "bump.persisted",
        CommitPersist = "commit.persist",
        CommitPersisted = "commit.persisted",
        CommitTold = "commit.told",
        CallSend = "call.send",
        CallAnswered = "call.answered",
        InsertSend = "insert.send",
        InsertAnswered = "insert.answered",
        VerifyAsk = "verify.ask",
        VerifyAnswered = "verify.answered",
        UnitWrite = "unit.write",
        UnitWritten = "unit.written",
        UnitMarks = "unit.marks",
        UnitMarked = "unit.marked",
        UnitRemove = "unit.remove",
        UnitRemoved = "unit.removed",
        PublishSend = "publish.send",
        PublishAnswered = "publish.answered",
        SourceRead = "source.read",
        SourceDurable = "source.durable",
        LetterStored = "letter.stored",
        LetterBooked = "letter.booked",
        LetterDeleted = "letter.deleted",
        ReplayPersist = "replay.persist",
        ReplayPersisted = "replay.persisted",
        ReplayAct = "replay.act",
        ReplayActed = "replay.acted",
    }
}

named! {
    /// What can be switched off, to see that it is missed.
    Safety {
        Verify = "verify",
        Dedup = "dedup",
        Lock = "lock",
        UnlinkLast = "unlink_last",
        Bump = "bump",
        Intent = "intent",
        Horizon = "horizon",
    }
}

named! {
    /// A bound that a test may make smaller, so that seconds of load reach what takes hours.
    Bound {
        SegmentBytes = "segment_bytes",
        RotateMs = "rotate_ms",
        AppendMs = "append_ms",
    }
}

/// A point is passed.
///
/// # Errors
/// Never: this is a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn hit(_: Point) -> std::io::Result<()> {
    Ok(())
}

/// Whether a safety is on: always, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
#[must_use]
pub const fn is_on(_: Safety) -> bool {
    true
}

/// The bound as it is, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
#[must_use]
pub const fn shrunk(_: Bound, real: u64) -> u64 {
    real
}
