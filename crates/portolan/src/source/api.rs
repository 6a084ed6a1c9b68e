//! A Kubernetes API server as the source of objects.
