//! What `deploy/` has for clusters: the chart, the manifests made from it, and whether a real API server accepts them.

mod admission;
mod manifests;
