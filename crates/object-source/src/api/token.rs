//! The bearer token of a file.
//!
//! The file is read for every request: requests are rare, the file is small, and a token that the kubelet replaced is
//! used at once, so that a 401 is never repeated for up to a minute with a token that is known to be old. kube's own
//! layer reads the file once a minute.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use http::HeaderValue;

/// A file with a bearer token.
pub(super) struct TokenFile {
    path: PathBuf,
    /// Used while the file cannot be read (kubernetes issue 68164).
    last: ArcSwapOption<HeaderValue>,
}

impl TokenFile {
    /// # Errors
    /// The file cannot be read, or holds no token.
    pub(super) fn open(path: impl Into<PathBuf>) -> Result<TokenFile> {
        let path = path.into();
        let header = read(&path).with_context(|| format!("cannot read the token file {path:?}"))?;
        let last = ArcSwapOption::from_pointee(header);
        Ok(TokenFile { path, last })
    }

    /// The value of the header `Authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        if let Ok(header) = read(&self.path) {
            self.last.store(Some(header.into()));
        }
        self.last.load().as_deref().cloned()
    }
}

fn read(path: &Path) -> io::Result<HeaderValue> {
    let text = std::fs::read_to_string(path)?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a token"))?;
    header.set_sensitive(true);
    Ok(header)
}
