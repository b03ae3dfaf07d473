//! What librdkafka tells and its binding does not: which topic a name stands for, and whether a message that failed
//! may be in its topic all the same.

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use sluice_common::failpoint::Point;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

/// Room for librdkafka's sentences.
const SENTENCE_BYTES: usize = 256;

/// What brokers say of topics, by name: an id, or none where they give none (Kafka 2.8 and later do), or why they do not say.
pub type TopicIds = BTreeMap<String, Result<Option<u128>, RDKafkaErrorCode>>;

/// The ids that the brokers gave topics when they were made: another one of the same name has another, here or with other
/// brokers. Blocks.
///
/// # Errors
/// A sentence where the brokers do not answer.
pub fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    patience: Duration,
) -> Result<TopicIds, String> {
    let names: Result<Vec<CString>, _> = topics.iter().map(|topic| CString::new(*topic)).collect();
    let names = names.map_err(|error| error.to_string())?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    #[expect(
        unsafe_code,
        reason = "the binding has no DescribeTopics; each handle is destroyed once, after its last use, and none is null \
                  but where it is looked at"
    )]
    // SAFETY: `client` outlives the calls; the names' pointers are read by `of_topic_names` alone, which copies them; what
    // the event owns is read before it is destroyed.
    unsafe {
        let handle = client.native_ptr();
        let topics = native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options = native::rd_kafka_AdminOptions_new(
            handle,
            native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let mut sentence = [0; SENTENCE_BYTES];
        native::rd_kafka_AdminOptions_set_request_timeout(options, ms, sentence.as_mut_ptr(), SENTENCE_BYTES);
        let queue = native::rd_kafka_queue_new(handle);
        native::rd_kafka_DescribeTopics(handle, topics, options, queue);
        let event = native::rd_kafka_queue_poll(queue, ms);
        let told = if event.is_null() {
            Err("the brokers did not answer in time".to_owned())
        } else {
            told(event)
        };
        if !event.is_null() {
            native::rd_kafka_event_destroy(event);
        }
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AdminOptions_destroy(options);
        native::rd_kafka_TopicCollection_destroy(topics);
        told
    }
}

#[expect(unsafe_code, reason = "see `topic_ids`")]
/// The ids in the answer of DescribeTopics.
///
/// # Safety
/// `event` is a live event of that kind.
unsafe fn told(event: *mut native::rd_kafka_event_t) -> Result<TopicIds, String> {
    // SAFETY: the event is live, and owns everything that is read here.
    unsafe {
        if native::rd_kafka_event_error(event) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(sentence(native::rd_kafka_event_error_string(event)));
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let topics = if result.is_null() {
            ptr::null_mut()
        } else {
            native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count)
        };
        if topics.is_null() {
            return Err("the brokers answer another question".into());
        }
        let mut ids = TopicIds::new();
        for nth in 0..count {
            let topic = *topics.add(nth);
            ids.insert(
                sentence(native::rd_kafka_TopicDescription_name(topic)),
                id_of(topic),
            );
        }
        Ok(ids)
    }
}

#[expect(unsafe_code, reason = "see `topic_ids`")]
/// # Safety
/// `topic` is of a live answer.
unsafe fn id_of(topic: *const native::rd_kafka_TopicDescription_t) -> Result<Option<u128>, RDKafkaErrorCode> {
    // SAFETY: as asked.
    unsafe {
        let error = native::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code = native::rd_kafka_error_code(error);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(code.into());
            }
        }
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return Ok(None);
        }
        let high = native::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
        let low = native::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
        let id = u128::from(high) << 64 | u128::from(low);
        Ok((id != 0).then_some(id))
    }
}

#[expect(unsafe_code, reason = "see `topic_ids`")]
/// # Safety
/// `text` is null or a C string that lives as long as the call.
unsafe fn sentence(text: *const c_char) -> String {
    if text.is_null() {
        return "no reason is told".into();
    }
    // SAFETY: as asked.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Whether a message that was not delivered certainly is not in its topic, and never will be.
#[must_use]
pub fn certainly_not_there(message: &BorrowedMessage<'_>) -> bool {
    #[expect(unsafe_code, reason = "the binding does not tell a message's status")]
    // SAFETY: the message is borrowed, so that librdkafka still has it.
    let status = unsafe { native::rd_kafka_message_status(message.ptr()) };
    status == native::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// The name that the group gave this member; none before it has joined.
#[must_use]
pub fn member_id<C: ClientContext>(client: &Client<C>) -> Option<String> {
    #[expect(unsafe_code, reason = "the binding does not tell a member's id")]
    // SAFETY: `client` outlives the call; what is returned is ours, read once and freed by whom it is from.
    unsafe {
        let id = native::rd_kafka_memberid(client.native_ptr());
        if id.is_null() {
            return None;
        }
        let text = CStr::from_ptr(id).to_string_lossy().into_owned();
        native::rd_kafka_mem_free(client.native_ptr(), id.cast());
        (!text.is_empty()).then_some(text)
    }
}

/// Has a client know brokers that it does not know.
///
/// `client` is alive: this is called by whoever has it, or by librdkafka from within it.
pub(crate) fn add_brokers(client: *mut native::rd_kafka_t, servers: &CStr) {
    #[expect(unsafe_code, reason = "the binding has no such call")]
    // SAFETY: as asked; the text is copied, and any thread may call it.
    let known = unsafe { native::rd_kafka_brokers_add(client, servers.as_ptr()) };
    tracing::debug!(
        known,
        "a client may have lost its brokers: it is given them again"
    );
}

/// A point at which a test may have a client end: librdkafka says a fatal error of it, and it sends nothing more. In a
/// build without failpoints it is nothing.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn may_end<C: ClientContext>(_: &Client<C>, _: Point) {}

/// A point at which a test may have a client end: librdkafka says a fatal error of it, and it sends nothing more. Of a
/// client that has ended nothing changes.
#[cfg(feature = "failpoints")]
pub fn may_end<C: ClientContext>(client: &Client<C>, point: Point) {
    if sluice_common::failpoint::hit(point).is_ok() {
        return;
    }
    // What brokers say to a producer whose messages are not in their order.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    #[expect(unsafe_code, reason = "the binding has no such test")]
    // SAFETY: `client` outlives the call; the text is copied.
    unsafe {
        native::rd_kafka_test_fatal_error(client.native_ptr(), error, c"a failpoint".as_ptr());
    }
}
