//! One answer for everybody: what the owner returns is what a follower, a replay, a resumed step, a
//! question and an error that is stored give, whatever the type and the features of the build.

#![allow(clippy::option_option, reason = "nested options are values that are tested")]

mod answers;
mod golden;
mod properties;
mod shapes;
