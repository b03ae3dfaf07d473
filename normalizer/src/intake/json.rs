//! The only module that knows simd-json: one document into its tape, and tape nodes into text.
//!
//! Documents are single events, so the parser's memory is bounded by an event's size and not by the
//! body's. Buffers are reused from one document to the next.

use super::fault::Fault;
use simd_json::{Buffers, ErrorType, INPUT_PADDING, Node, StaticNode, Tape};
use sluice_common::limits::MAX_JSON_DEPTH;
use std::io::Write as _;

/// Bytes of the largest document after which the buffers are still worth keeping.
const KEEP_BYTES: usize = 64 * 1024;

/// A parser with its buffers.
pub struct Parser {
    document: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
    largest: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            document: Vec::new(),
            buffers: Buffers::with_max_depth(4_096, MAX_JSON_DEPTH),
            tape: Tape(Vec::new()),
            largest: 0,
        }
    }
}

impl Parser {
    /// Parses one document and hands its nodes, the root first, to `then`.
    ///
    /// # Errors
    /// [`Fault`]: malformed, not UTF-8, too deep, or a number that no type of ours can hold.
    pub fn parse<T>(&mut self, text: &[u8], then: impl FnOnce(&[Node<'_>]) -> T) -> Result<T, Fault> {
        self.largest = self.largest.max(text.len());
        self.document.clear();
        self.document.extend_from_slice(text);
        self.document.resize(text.len() + INPUT_PADDING, b' ');
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let parsed =
            simd_json::fill_tape_padded(&mut self.document, text.len(), &mut self.buffers, &mut tape);
        let result = match parsed {
            Ok(()) => Ok(then(&tape.0)),
            Err(error) => Err(fault(&error, text)),
        };
        self.tape = tape.reset();
        result
    }

    /// Whether the buffers are small enough to be kept for the next request.
    #[must_use]
    pub fn is_worth_keeping(&self) -> bool {
        self.largest <= KEEP_BYTES
    }
}

fn fault(error: &simd_json::Error, text: &[u8]) -> Fault {
    let malformed = Fault::MalformedJson { at: error.index() };
    if *error.error() == ErrorType::DepthLimitExceeded {
        return Fault::TooDeep;
    }
    // The reader stops where its own limits are met; the grammar has no limits for numbers.
    if *error.error() == ErrorType::InvalidNumber && is_json(text) {
        return Fault::NumberTooLarge;
    }
    if std::str::from_utf8(text).is_err() {
        return Fault::NotUtf8;
    }
    malformed
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

/// How many nodes the value that begins at `node` takes.
#[must_use]
pub fn width(node: &Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => 1 + count,
        Node::String(_) | Node::Static(_) => 1,
    }
}

/// Whether it is `null`.
#[must_use]
pub fn is_null(node: &Node<'_>) -> bool {
    matches!(node, Node::Static(StaticNode::Null))
}

/// Appends the value that begins at `nodes[0]` as a map holds it: a string as it is, all else as
/// compact JSON. Numbers are written in their shortest form that reads back equal.
pub fn write_text(nodes: &[Node<'_>], out: &mut Vec<u8>) {
    match nodes.first() {
        Some(Node::String(text)) => out.extend_from_slice(text.as_bytes()),
        Some(Node::Object { .. } | Node::Array { .. } | Node::Static(_)) => {
            write_json(nodes, out);
        }
        None => {}
    }
}

/// Appends compact JSON and says how many nodes it took. The depth is that of the parsed event, at
/// most [`MAX_JSON_DEPTH`].
pub fn write_json(nodes: &[Node<'_>], out: &mut Vec<u8>) -> usize {
    match nodes[0] {
        Node::String(text) => write_string(text, out),
        Node::Static(value) => write_static(value, out),
        Node::Array { len, .. } => return write_array(&nodes[1..], len, out) + 1,
        Node::Object { len, .. } => return write_object(&nodes[1..], len, out) + 1,
    }
    1
}

fn write_array(nodes: &[Node<'_>], len: usize, out: &mut Vec<u8>) -> usize {
    let mut at = 0;
    out.push(b'[');
    for element in 0..len {
        if element > 0 {
            out.push(b',');
        }
        at += write_json(&nodes[at..], out);
    }
    out.push(b']');
    at
}

fn write_object(nodes: &[Node<'_>], len: usize, out: &mut Vec<u8>) -> usize {
    let mut at = 0;
    out.push(b'{');
    for member in 0..len {
        if member > 0 {
            out.push(b',');
        }
        at += write_json(&nodes[at..], out);
        out.push(b':');
        at += write_json(&nodes[at..], out);
    }
    out.push(b'}');
    at
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string always has a JSON form");
}

fn write_static(value: StaticNode, out: &mut Vec<u8>) {
    let written = match value {
        StaticNode::I64(value) => write!(out, "{value}"),
        StaticNode::U64(value) => write!(out, "{value}"),
        // Unlike Display, Debug switches to an exponent before a number gets 300 digits long.
        StaticNode::F64(value) => write!(out, "{value:?}"),
        StaticNode::Bool(value) => write!(out, "{value}"),
        StaticNode::Null => write!(out, "null"),
    };
    written.expect("writing to memory does not fail");
}
