//! Frames of the log: read or refused, and what is read says nothing of what is not there.

use bytes::Bytes;
use sluice_common::record::Record;

/// One frame, with its length and checksum put right.
pub fn run(input: &[u8]) {
    let mut frame = input.to_vec();
    frame.resize(frame.len().next_multiple_of(8), 0);
    let length = frame.len();
    super::put(&mut frame, 4, length);
    super::mend(&mut frame, 8, 12);
    if let Ok(record) = Record::placed(&frame, 7, 9) {
        assert_eq!((record.place.offset, record.place.append_ms), (7, 9));
        read(record.frame());
    }
    read(&Bytes::from(frame));
    read(&Bytes::copy_from_slice(input));
}

/// Everything that a reader asks of a record.
pub fn read(bytes: &Bytes) {
    let Ok(record) = Record::read(bytes) else { return };
    assert_eq!(record.keys().len(), record.rows() as usize);
    assert!(record.fingerprints().len() <= record.rows() as usize);
    for row in [0, record.rows() / 2, record.rows().saturating_sub(1)] {
        assert_eq!(record.request_of(row).is_some(), row < record.rows());
    }
    assert_eq!(
        record.request_of(record.rows()),
        None,
        "of a row that is not there"
    );
    let spans: u64 = record.spans().map(|span| u64::from(span.rows)).sum();
    std::hint::black_box((spans, record.body().len(), record.column_bytes()));
    let again = Record::read(record.frame()).expect("its own frame is a record");
    assert_eq!(again.meta, record.meta);
}
