//! The integration tests of the command, one module a subject.

mod support;

#[cfg(unix)]
mod atomic;
mod bench;
mod cache;
mod catalogue;
mod cli;
mod codes;
mod compress;
mod dialects;
mod direction;
mod golden;
#[cfg(unix)]
mod hostile;
mod plan;
mod ranking;
mod real_tables;
mod refusals;
mod report;
mod representations;
mod score;
mod train;
