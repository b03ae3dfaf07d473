//! What the benchmarks of single stages and those of the whole have in common: the sample's bodies, and the stages.

pub mod body;
pub mod stages;
