//! Skeleton.

pub mod fake_api;
