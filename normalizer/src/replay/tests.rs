//! See `tests/tests/replay/` for the whole of it on a real ClickHouse.
