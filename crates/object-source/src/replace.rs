//! Replaces files whole and for good: for what a node keeps over restarts, and for what other programs read.
//!
//! Invariant: a reader finds the old contents or the new ones, also after a crash or a power loss, and no draft is left.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Gives the file these contents and this mode. Its folder must exist.
///
/// # Errors
/// When the contents cannot be read or written; the file is as it was then.
pub fn replace_file(path: &Path, mode: u32, mut contents: impl Read) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Said before an error could name the draft, which nobody asked for.
    std::fs::metadata(folder)?;
    // A hidden name without an extension: a CNI runtime reads every `.conf` and `.conflist` of its folder.
    let mut draft = tempfile::Builder::new()
        .prefix(".portolan-")
        .tempfile_in(folder)?;
    io::copy(&mut contents, &mut draft)?;
    // Whatever the umask is: other users' programs read these files.
    draft
        .as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    draft.as_file().sync_all()?;
    draft.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_all_contents_and_the_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (contents, mode) in [(&b"first, longer"[..], 0o600), (b"second", 0o644)] {
            replace_file(&path, mode, contents).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), contents);
            let found = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn contents_that_cannot_be_read_leave_the_file_alone() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old").unwrap();
        replace_file(&path, 0o644, Broken).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
