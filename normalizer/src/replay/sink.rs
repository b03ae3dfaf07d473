//! What a replay asks of the sink-writer, beside its inserts.

use crate::runtime;
use serde::{Deserialize, Serialize};
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::{LogId, Name, Offset, TenantId};
use sluice_common::replay::{
    Facts, KeptRows, PartCover, ReplayCall, ReplayId, SinkAsk, SinkTold, Span, TableDiff,
};
use sluice_common::servers::ServerId;
use sluice_common::wire::sink::{Range, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::time::Duration;
use tower::ServiceExt as _;

/// How long a question about one range may take.
const QUESTION: Duration = Duration::from_secs(30);
/// How long a comparison, a copy or a swap of a table may take.
const WORK: Duration = Duration::from_secs(3_600);
/// What the sink-writer's answer may take beyond its own deadline.
const SLACK: Duration = Duration::from_secs(5);

/// Why there is no answer: a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkTrouble(pub String);

/// One partition, as both sides were compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    pub id: String,
    pub live: u64,
    pub shadow: u64,
}

/// The way to the sink-writer for one replay; cheap to clone.
#[derive(Clone)]
pub struct Sink {
    pub id: ReplayId,
    pub log: LogId,
    /// What is asked about records is about those of this partition.
    pub partition: u16,
    /// None: where new ranges go.
    pub server: Option<ServerId>,
    pub seam: Seam<SinkRequest>,
}

impl Sink {
    async fn ask(&self, ask: SinkAsk, timeout: Duration) -> Result<SinkTold, SinkTrouble> {
        let call = ReplayCall {
            id: self.id,
            log: self.log,
            partition: self.partition,
            server: self.server.clone(),
            ask,
            timeout,
        };
        let answer = self.seam.clone().oneshot(SinkRequest::Replay(call));
        match runtime::timeout(timeout + SLACK, answer).await {
            Ok(Ok(SinkReply::Replay(told))) => Ok(told),
            Ok(Ok(other)) => Err(SinkTrouble(other.not_an_answer())),
            Ok(Err(never)) => match never {},
            Err(_) => Err(SinkTrouble("the sink-writer does not answer in time".into())),
        }
    }

    /// What changes tables, with a step for tests on either side.
    async fn act(&self, ask: SinkAsk) -> Result<SinkTold, SinkTrouble> {
        let failed = |error: std::io::Error| SinkTrouble(error.to_string());
        failpoint::hit(Point::ReplayAct).map_err(failed)?;
        let told = self.ask(ask, WORK).await?;
        failpoint::hit(Point::ReplayActed).map_err(failed)?;
        Ok(told)
    }

    async fn done(&self, ask: SinkAsk) -> Result<(), SinkTrouble> {
        let told = self.act(ask).await?;
        if let SinkTold::Done = told {
            Ok(())
        } else {
            Err(odd(&told))
        }
    }

    /// What books and table say of minutes `[since_s, until_s)`, of records `[from, below)`: none of these minutes is
    /// older.
    pub async fn facts(
        &self,
        (table, datasets): (Name, Vec<Name>),
        (since_s, until_s): (u64, u64),
        (from, below): (Offset, Offset),
    ) -> Result<Facts, SinkTrouble> {
        let ask = SinkAsk::Facts {
            table,
            datasets,
            since_s,
            until_s,
            from,
            below,
        };
        let told = self.ask(ask, QUESTION).await?;
        if let SinkTold::Facts(facts) = told {
            Ok(facts)
        } else {
            Err(odd(&told))
        }
    }

    /// Rows of a live table, by record.
    pub async fn kept(&self, table: Name, range: Range) -> Result<Vec<KeptRows>, SinkTrouble> {
        let (from, to) = (range.a, range.b);
        self.rows(SinkAsk::Kept { table, from, to }).await
    }

    /// Rows that ClickHouse has refused, by record.
    pub async fn letters(&self, range: Range) -> Result<Vec<KeptRows>, SinkTrouble> {
        let (from, to) = (range.a, range.b);
        self.rows(SinkAsk::Letters { from, to }).await
    }

    async fn rows(&self, ask: SinkAsk) -> Result<Vec<KeptRows>, SinkTrouble> {
        let told = self.ask(ask, QUESTION).await?;
        if let SinkTold::Kept(rows) = told {
            Ok(rows)
        } else {
            Err(odd(&told))
        }
    }

    /// Makes the shadow tables.
    pub async fn prepare(&self, tables: Vec<Name>) -> Result<(), SinkTrouble> {
        self.done(SinkAsk::Prepare { tables }).await
    }

    /// A live table and its shadow, of these records of a tenant or all; or, without spans, whole partitions.
    pub async fn compare(
        &self,
        table: Name,
        tenant: Option<TenantId>,
        spans: Vec<Span>,
    ) -> Result<TableDiff, SinkTrouble> {
        let ask = SinkAsk::Compare { table, tenant, spans };
        let told = self.ask(ask, WORK).await?;
        if let SinkTold::Compared(diff) = told {
            Ok(diff)
        } else {
            Err(odd(&told))
        }
    }

    /// The shadow's partitions.
    pub async fn covers(&self, table: Name) -> Result<Vec<PartCover>, SinkTrouble> {
        let told = self.ask(SinkAsk::Covers { table }, WORK).await?;
        if let SinkTold::Covers(parts) = told {
            Ok(parts)
        } else {
            Err(odd(&told))
        }
    }

    /// Copies live rows that the shadow does not have into it.
    pub async fn fill(&self, table: Name) -> Result<u64, SinkTrouble> {
        let told = self.act(SinkAsk::Fill { table }).await?;
        if let SinkTold::Filled(rows) = told {
            Ok(rows)
        } else {
            Err(odd(&told))
        }
    }

    /// Keeps a live partition beside its table.
    pub async fn save(&self, table: Name, part: String) -> Result<(), SinkTrouble> {
        self.done(SinkAsk::Save { table, part }).await
    }

    /// Puts a shadow's partition in the live one's place.
    pub async fn swap(&self, table: Name, part: Part) -> Result<(), SinkTrouble> {
        let Part {
            id: part,
            live,
            shadow,
        } = part;
        let ask = SinkAsk::Swap {
            table,
            part,
            live,
            shadow,
        };
        self.done(ask).await
    }

    /// From here on no swap that is still on its way can happen: the shadows are gone.
    pub async fn fence(&self, tables: Vec<Name>) -> Result<(), SinkTrouble> {
        self.done(SinkAsk::Fence { tables }).await
    }

    /// Which of these tables have a shadow still: of the others none can be put in place any more.
    pub async fn shadows(&self, tables: Vec<Name>) -> Result<Vec<Name>, SinkTrouble> {
        let told = self.ask(SinkAsk::Shadows { tables }, QUESTION).await?;
        if let SinkTold::Shadows(tables) = told {
            Ok(tables)
        } else {
            Err(odd(&told))
        }
    }

    /// Drops the replay's tables beside these.
    pub async fn drop_beside(&self, tables: Vec<Name>) -> Result<(), SinkTrouble> {
        self.done(SinkAsk::Drop { tables }).await
    }
}

fn odd(told: &SinkTold) -> SinkTrouble {
    SinkTrouble(format!(
        "the sink-writer answers another question ({}): are all services of one release?",
        match told {
            SinkTold::Facts(_) => "facts",
            SinkTold::Kept(_) => "rows",
            SinkTold::Compared(_) => "a comparison",
            SinkTold::Covers(_) => "partitions",
            SinkTold::Filled(_) => "a copy",
            SinkTold::Shadows(_) => "shadows",
            SinkTold::Done => "done",
        }
    ))
}
