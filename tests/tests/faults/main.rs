//! Faults against real processes, by a proxy on the hops between them, by signals and by full disks; after each the
//! oracle holds every promise to the rows. `docs/reliability.md` has the list of faults and their tests.

mod answers;
mod cut;
mod full_disks;
mod held;
mod hops;
mod rolling;
mod starts;
mod stopped;
mod trial;
