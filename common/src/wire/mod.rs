//! The seams between the services: the calls, their answers, and how both travel over HTTP/2.
//!
//! Each seam is a `tower::Service` of a typed request. In one process the service itself is called;
//! between processes [`transport::PeerClient`] is the same service, and [`transport::receive`] hands
//! what arrives to the same service on the other side.

mod asked;
pub mod intake;
pub mod messages;
mod peers;
pub mod publish;
pub mod sink;
pub mod transport;
