//! The edge over real sockets, before a normalizer that does what each test tells it.

#[cfg(test)]
mod connections;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod h2;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod leavers;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod pki;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod wire;
