//! The main job, end to end: an acknowledged event is one row, repeats are dropped as R7 says, a start
//! that would break either refuses.

mod books_by_minute;
mod config_change;
mod dedup_scale;
mod dedup_time;
mod freshness;
mod in_process;
mod one_event;
mod shared_table;
mod starts;
mod two_logs;
mod units;
