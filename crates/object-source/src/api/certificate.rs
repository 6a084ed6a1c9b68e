//! The client certificate of a kubeconfig that names files (`client-certificate`, `client-key`).
//!
//! The files are read for every request, as [`super::token`] reads its file: a renewed certificate is used at once, before
//! the server refuses the earlier one. client-go reads them again as well; kube reads them only when it builds a client.
//!
//! Leaves building clients to the caller. Invariant: files that cannot be read or used leave the earlier clients in use.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use kube::config::AuthInfo;

/// Files with a client certificate and its key. Both may be the same file, as a kubelet's is.
pub(super) struct CertificateFiles {
    paths: Vec<PathBuf>,
    hasher: RandomState,
    known: Mutex<Known>,
}

/// Digests of contents: copies would keep the key in memory.
#[derive(Default)]
struct Known {
    /// Of the contents in use.
    used: Option<u64>,
    /// Of the latest contents that could not be used: logged once.
    refused: Option<u64>,
}

impl CertificateFiles {
    /// The files of `user`, of which clients are built next; `None` if no file holds the certificate or the key.
    pub(super) fn of(user: &AuthInfo) -> Option<CertificateFiles> {
        // Data in the kubeconfig itself override a file.
        let certificate = user.client_certificate.as_ref();
        let certificate = certificate.filter(|_| user.client_certificate_data.is_none());
        let key = user.client_key.as_ref();
        let key = key.filter(|_| user.client_key_data.is_none());
        let files = certificate.into_iter().chain(key);
        let paths: Vec<PathBuf> = files.map(PathBuf::from).collect();
        if paths.is_empty() {
            return None;
        }
        let files = CertificateFiles {
            paths,
            hasher: RandomState::new(),
            known: Mutex::default(),
        };
        let used = files.digest().ok();
        files.known().used = used;
        Some(files)
    }

    /// Calls `apply`, which reads the files, if their contents are not those in use.
    pub(super) fn if_changed(&self, apply: impl FnOnce() -> Result<()>) {
        let mut known = self.known();
        // Digested before `apply` reads the files: what is written in between is found by the next call.
        let Ok(found) = self.digest() else {
            return;
        };
        if known.used == Some(found) {
            return;
        }
        match apply() {
            Ok(()) => {
                tracing::info!(files = ?self.paths, "the client certificate has changed; the next requests use it");
                *known = Known {
                    used: Some(found),
                    refused: None,
                };
            }
            // Perhaps one of the files is not replaced yet.
            Err(error) if known.refused != Some(found) => {
                tracing::warn!(
                    files = ?self.paths,
                    "cannot use the changed client certificate: {error:#}; the earlier one stays in use, and each request \
                     tries again"
                );
                known.refused = Some(found);
            }
            Err(_) => {}
        }
    }

    fn digest(&self) -> io::Result<u64> {
        let contents = self.paths.iter().map(std::fs::read);
        let contents: Vec<Vec<u8>> = contents.collect::<io::Result<_>>()?;
        Ok(self.hasher.hash_one(contents))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
