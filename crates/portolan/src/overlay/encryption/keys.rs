//! The private keys of this node: their file, and the steps of a rotation.
//!
//! A rotation never leaves a peer without a session: the second device gets a key, peers move to it, the key of the first
//! is replaced, peers move back, the second device goes. Each phase is written to the file before it takes effect, so that
//! a restart continues it.
//!
//! The file names its node, so that a copy of it on another node is recognized. Other versions ignore fields that they do
//! not know, and may write the file without them: a file without a name belongs to the node that reads it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use wireguard::PrivateKey;

use super::announced::Plane;

/// Longer than a change of a Node takes to reach the others, on a bad day.
const PROPAGATION: Duration = Duration::from_secs(15);
/// Peers that have not moved by then keep the old key in use.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// Pause before an old key leads to another rotation after one that was given up.
const REST: Duration = Duration::from_secs(3600);
/// The file is for root.
const MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
const MAX_SIZE: u64 = 64 << 10;

/// Where a rotation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// No rotation.
    #[default]
    Steady,
    /// Peers move to the second device.
    Prepare,
    /// No peer sends by the first device any more: its key is about to be replaced.
    Replace,
    /// Peers move back to the first device.
    Return,
    /// No peer sends by the second device any more: the device is about to be deleted.
    Retire,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    private: String,
    /// Seconds since 1970.
    created: u64,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// Name of the node; earlier versions write none.
    node: Option<String>,
    first: Option<Entry>,
    second: Option<Entry>,
    #[serde(default)]
    phase: Phase,
    /// When the last rotation was given up, in seconds since 1970; `None` once another one has begun.
    given_up: Option<u64>,
}

/// What decides about the next phase.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Every peer that answers has a live session in the first plane.
    pub(super) all_in_first: bool,
    /// The same of the second plane.
    pub(super) all_in_second: bool,
    /// A peer answers, or there is none.
    pub(super) reached: bool,
    /// No peer has sent anything but keepalive packets to the plane that is given up.
    pub(super) quiet: bool,
    /// Another node is rotating.
    pub(super) others_rotate: bool,
    /// An operator asked for a rotation.
    pub(super) requested: bool,
}

/// The keys, and the rotation.
pub(super) struct Keys {
    path: PathBuf,
    /// Zero: keys are rotated on request only.
    lifetime: Duration,
    stored: Stored,
    since: Instant,
    /// Since when no other node has rotated.
    helping_until: Option<Instant>,
    /// Until then, no age of a key leads to a rotation.
    rests_until: Option<Instant>,
}

impl Keys {
    /// Reads the file of this node, or makes it with a new key. A file of another `node`, on a copied disk, is replaced: two
    /// nodes with one key would cut each other off.
    pub(super) fn open(path: &Path, node: &str, lifetime: Duration, now: Instant) -> Result<Keys> {
        let mut stored = read(path)?;
        let is_named = stored.node.is_some();
        if let Some(other) = stored.node.as_deref().filter(|other| *other != node) {
            let path = path.display();
            tracing::warn!(%path, %other, "the key file belongs to another node: making a new key");
            stored = Stored::default();
        }
        stored.node = Some(node.to_owned());
        let rest = |at| REST.saturating_sub(Duration::from_secs(unix_now().saturating_sub(at)));
        let mut keys = Keys {
            path: path.to_owned(),
            lifetime,
            rests_until: stored.given_up.map(|at| now + rest(at)),
            stored,
            since: now,
            helping_until: None,
        };
        if keys.stored.first.is_none() {
            let first = Some(new_entry()?);
            keys.write(Stored {
                node: Some(node.to_owned()),
                first,
                ..Stored::default()
            })?;
        } else if !is_named && let Err(error) = keys.write(keys.stored.clone()) {
            // The keys are good, and the next change writes the name as well.
            tracing::warn!(
                "{error:#}: a copy of this file on another node would not be recognized"
            );
        }
        Ok(keys)
    }

    /// The private key of a plane, if that is in use.
    pub(super) fn private(&self, plane: Plane) -> Option<PrivateKey> {
        let entry = match plane {
            Plane::First => &self.stored.first,
            Plane::Second => &self.stored.second,
        };
        entry.as_ref()?.private.parse().ok()
    }

    /// Where the rotation is.
    pub(super) fn phase(&self) -> Phase {
        self.stored.phase
    }

    /// The planes that peers may use, the preferred one first.
    pub(super) fn planes(&self) -> Vec<Plane> {
        let has_second = self.stored.second.is_some();
        match self.stored.phase {
            Phase::Steady if has_second => vec![Plane::First, Plane::Second],
            Phase::Steady | Phase::Retire => vec![Plane::First],
            Phase::Prepare => vec![Plane::Second, Plane::First],
            Phase::Replace => vec![Plane::Second],
            Phase::Return => vec![Plane::First, Plane::Second],
        }
    }

    /// Whether others have to help with a second device.
    pub(super) fn is_rotating(&self) -> bool {
        matches!(
            self.stored.phase,
            Phase::Prepare | Phase::Replace | Phase::Return
        )
    }

    /// Whether the next phase may be due soon.
    pub(super) fn is_busy(&self) -> bool {
        self.stored.phase != Phase::Steady || self.stored.second.is_some()
    }

    /// How long the key of the first plane has been in use.
    pub(super) fn age(&self) -> Duration {
        let created = self.stored.first.as_ref().map_or(0, |entry| entry.created);
        Duration::from_secs(unix_now().saturating_sub(created))
    }

    /// Whether a key's age is a reason to begin.
    fn is_due(&self, now: Instant) -> bool {
        let rests = self.rests_until.is_some_and(|until| now < until);
        !rests && is_due(self.lifetime, &self.stored)
    }

    /// Goes on to the next phase if that is due. Returns what to log.
    pub(super) fn advance(
        &mut self,
        progress: Progress,
        now: Instant,
    ) -> Result<Option<&'static str>> {
        let in_phase = now.saturating_duration_since(self.since);
        if progress.others_rotate {
            self.helping_until = Some(now + PROPAGATION);
        }
        let helps = self.helping_until.is_some_and(|until| now < until);
        let mut next = self.stored.clone();
        let settled = in_phase >= PROPAGATION;
        let before = self.stored.phase;
        let what = match before {
            Phase::Steady if progress.requested || self.is_due(now) => {
                // A node that this one helps may have no other session than that of the second key.
                if next.second.is_none() {
                    next.second = Some(new_entry()?);
                }
                next.phase = Phase::Prepare;
                next.given_up = None;
                "key rotation begins: peers move to the second device"
            }
            Phase::Steady if helps && next.second.is_none() => {
                next.second = Some(new_entry()?);
                "another node rotates its key: helping with a second device"
            }
            Phase::Steady if !helps && next.second.is_some() => {
                next.second = None;
                "no other node rotates its key: removing the second device"
            }
            // Peers that do not answer for a moment have not moved.
            Phase::Prepare if settled && progress.reached && progress.all_in_second => {
                next.phase = Phase::Replace;
                "every peer has a session with the second device"
            }
            // Peers that have moved return, as after a rotation, before the second device goes.
            Phase::Prepare if in_phase >= PATIENCE => {
                next.phase = Phase::Retire;
                next.given_up = Some(unix_now());
                "key rotation given up: not every peer could be reached by the second port"
            }
            Phase::Replace if settled && progress.quiet => {
                next.first = Some(new_entry()?);
                next.phase = Phase::Return;
                "replaced the key of the first device: peers move back"
            }
            Phase::Return if progress.all_in_first => {
                next.phase = Phase::Retire;
                "every peer has a session with the new key"
            }
            // Another node that rotates may have no session but that of the second device.
            Phase::Retire if helps || settled && progress.quiet => {
                next.phase = Phase::Steady;
                if !helps {
                    next.second = None;
                }
                match next.given_up {
                    Some(_) => "every peer uses the first device again, with its old key",
                    None => "key rotation complete",
                }
            }
            _ => return Ok(None),
        };
        self.write(next)?;
        match (before, self.stored.phase) {
            (Phase::Prepare, Phase::Retire) => self.rests_until = Some(now + REST),
            (Phase::Steady, Phase::Prepare) => self.rests_until = None,
            _ => {}
        }
        self.since = now;
        Ok(Some(what))
    }

    fn write(&mut self, stored: Stored) -> Result<()> {
        let text = serde_json::to_vec(&stored)?;
        let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty());
        if let Some(folder) = folder {
            make_folder(folder)?;
        }
        object_source::replace_file(&self.path, MODE, text.as_slice())
            .with_context(|| format!("cannot write the key file {}", self.path.display()))?;
        self.stored = stored;
        Ok(())
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn read(path: &Path) -> Result<Stored> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Stored::default()),
        other => other.with_context(|| format!("cannot read the key file {}", path.display()))?,
    };
    ensure!(
        metadata.len() <= MAX_SIZE,
        "the key file {} is too large",
        path.display()
    );
    let text = std::fs::read(path)
        .with_context(|| format!("cannot read the key file {}", path.display()))?;
    // The error of the decoder could quote a key.
    let stored: Option<Stored> = serde_json::from_slice(&text).ok();
    let stored = stored.filter(|stored| {
        let mut entries = stored.first.iter().chain(&stored.second);
        entries.all(|entry| entry.private.parse::<PrivateKey>().is_ok())
    });
    stored.with_context(|| {
        format!(
            "the key file {} does not decode: remove it to have a new key made",
            path.display()
        )
    })
}

fn new_entry() -> Result<Entry> {
    let mut bytes = [0; 32];
    OsRng
        .try_fill_bytes(&mut bytes)
        .context("cannot read random bytes for a key")?;
    Ok(Entry {
        private: PrivateKey::from_random(bytes).to_base64(),
        created: unix_now(),
    })
}

/// Whether the key of the first plane has outlived its lifetime. Up to a tenth later, by the key, so that nodes whose keys
/// were made together do not rotate together.
fn is_due(lifetime: Duration, stored: &Stored) -> bool {
    let Some(first) = stored.first.as_ref().filter(|_| !lifetime.is_zero()) else {
        return false;
    };
    let spread = first.private.bytes().map(u64::from).sum::<u64>() % 100;
    let lifetime = lifetime.as_secs() + lifetime.as_secs() * spread / 1000;
    unix_now().saturating_sub(first.created) >= lifetime
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OTHERS_ROTATE: Progress = Progress {
        all_in_first: false,
        all_in_second: false,
        reached: true,
        quiet: false,
        others_rotate: true,
        requested: false,
    };

    fn open(path: &Path) -> Keys {
        open_as(path, "node-1")
    }

    fn open_as(path: &Path, node: &str) -> Keys {
        Keys::open(path, node, Duration::ZERO, Instant::now()).unwrap()
    }

    #[test]
    fn keys_outlive_a_restart_and_are_readable_by_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/keys.json");
        let first = open(&path).private(Plane::First).unwrap();
        assert_eq!(open(&path).private(Plane::First), Some(first));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn a_broken_key_file_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        for text in ["", "{", r#"{"first":{"private":"AAAA","created":1}}"#] {
            std::fs::write(&path, text).unwrap();
            let error = Keys::open(&path, "node-1", Duration::ZERO, Instant::now())
                .err()
                .unwrap();
            assert!(error.to_string().contains("does not decode"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_key_older_than_its_lifetime_is_due_for_rotation() {
        let entry = |created| Stored {
            first: Some(Entry {
                created,
                ..new_entry().unwrap()
            }),
            ..Stored::default()
        };
        let hour = Duration::from_secs(3600);
        assert!(is_due(hour, &entry(unix_now() - 4000)));
        assert!(!is_due(hour, &entry(unix_now() - 3000)));
        assert!(!is_due(Duration::ZERO, &entry(0)));
    }

    #[test]
    fn a_rotation_replaces_the_key_and_survives_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut now = Instant::now();
        let old = open(&path).private(Plane::First).unwrap();
        let ready = Progress {
            all_in_first: true,
            all_in_second: true,
            reached: true,
            quiet: true,
            ..Progress::default()
        };
        let mut phases = vec![open(&path).phase()];
        let mut lists = Vec::new();
        for round in 0..12 {
            // Each step by a new process.
            let mut keys = Keys::open(&path, "node-1", Duration::ZERO, now).unwrap();
            now += PROPAGATION;
            let progress = Progress {
                requested: round == 0,
                ..ready
            };
            keys.advance(progress, now).unwrap();
            if phases.last() != Some(&keys.phase()) {
                phases.push(keys.phase());
                lists.push(keys.planes());
            }
        }
        use Phase::{Prepare, Replace, Retire, Return, Steady};
        assert_eq!(phases, [Steady, Prepare, Replace, Return, Retire, Steady]);
        let (first, second) = (Plane::First, Plane::Second);
        let expected = [
            vec![second, first],
            vec![second],
            vec![first, second],
            vec![first],
            vec![first],
        ];
        assert_eq!(lists, expected);
        let keys = open(&path);
        assert_ne!(keys.private(Plane::First), Some(old));
        assert_eq!(keys.private(Plane::Second), None);
    }

    #[test]
    fn a_rotation_waits_for_every_peer_or_keeps_the_old_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut keys = open(&path);
        let (old, now) = (keys.private(Plane::First), Instant::now());
        let asked = Progress {
            requested: true,
            ..Progress::default()
        };
        keys.advance(asked, now).unwrap();
        keys.advance(Progress::default(), now + PROPAGATION)
            .unwrap();
        assert_eq!(keys.phase(), Phase::Prepare);
        keys.advance(Progress::default(), now + PATIENCE).unwrap();
        // Peers that have moved still send by the second device.
        keys.advance(Progress::default(), now + PATIENCE * 2)
            .unwrap();
        assert_eq!(keys.phase(), Phase::Retire);
        assert!(keys.private(Plane::Second).is_some());
        assert_eq!(keys.planes(), [Plane::First]);
        let mut keys = open(&path);
        let quiet = Progress {
            quiet: true,
            ..Progress::default()
        };
        let said = keys.advance(quiet, now + PATIENCE * 2).unwrap().unwrap();
        assert!(!said.contains("complete"), "{said}");
        let kept = keys.private(Plane::First);
        assert_eq!((keys.phase(), kept), (Phase::Steady, old));
        assert_eq!(keys.private(Plane::Second), None);
    }

    #[test]
    fn a_rotation_does_not_go_on_while_no_peer_answers() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = open(&folder.path().join("keys.json"));
        let now = Instant::now();
        let nobody = Progress {
            all_in_first: true,
            all_in_second: true,
            quiet: true,
            requested: true,
            ..Progress::default()
        };
        let moved = Progress {
            reached: true,
            ..nobody
        };
        keys.advance(nobody, now).unwrap();
        for (progress, at, phase) in [
            (nobody, now + PROPAGATION, Phase::Prepare),
            // Until then, other nodes may not know of it yet.
            (moved, now + PROPAGATION / 2, Phase::Prepare),
            (moved, now + PROPAGATION, Phase::Replace),
        ] {
            keys.advance(progress, at).unwrap();
            assert_eq!(keys.phase(), phase);
        }
    }

    #[test]
    fn a_copied_key_file_gives_each_node_a_key_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let key = |node| open_as(&path, node).private(Plane::First).unwrap();
        let (first, second) = (key("node-1"), key("node-2"));
        assert_ne!(first, second);
        assert_eq!(key("node-2"), second);
    }

    #[test]
    fn a_file_without_a_name_belongs_to_the_node_that_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let private = PrivateKey::from_random([7; 32]);
        // As the first version wrote it, and with a field of a later one.
        for more in ["", r#","later":1"#] {
            let text = private.to_base64();
            let text = format!(
                r#"{{"first":{{"private":"{text}","created":1}},"second":null,"phase":"steady"{more}}}"#
            );
            std::fs::write(&path, text).unwrap();
            let key = |node| open_as(&path, node).private(Plane::First);
            assert_eq!(key("node-1"), Some(private.clone()));
            // It has a name from then on.
            assert_ne!(key("node-2"), Some(private.clone()));
        }
    }

    #[test]
    fn a_node_helps_while_another_one_rotates() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = open(&folder.path().join("keys.json"));
        let now = Instant::now();
        keys.advance(OTHERS_ROTATE, now).unwrap();
        assert_eq!(keys.planes(), [Plane::First, Plane::Second]);
        assert!(!keys.is_rotating());
        keys.advance(Progress::default(), now + PROPAGATION / 2)
            .unwrap();
        assert!(keys.private(Plane::Second).is_some());
        keys.advance(Progress::default(), now + PROPAGATION)
            .unwrap();
        assert_eq!(keys.planes(), [Plane::First]);
    }

    #[test]
    fn a_node_that_helps_begins_a_rotation_with_the_key_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = open(&folder.path().join("keys.json"));
        let now = Instant::now();
        keys.advance(OTHERS_ROTATE, now).unwrap();
        let second = keys.private(Plane::Second);
        let requested = Progress {
            requested: true,
            ..OTHERS_ROTATE
        };
        keys.advance(requested, now).unwrap();
        assert_eq!(keys.phase(), Phase::Prepare);
        // The other node may have no session but that of this key.
        assert!(second.is_some() && keys.private(Plane::Second) == second);
        for phase in [Phase::Retire, Phase::Steady] {
            keys.advance(OTHERS_ROTATE, now + PATIENCE).unwrap();
            assert_eq!(keys.phase(), phase);
        }
        assert_eq!(keys.planes(), [Plane::First, Plane::Second]);
    }

    #[test]
    fn an_old_key_rests_after_a_rotation_that_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (path, now) = (folder.path().join("keys.json"), Instant::now());
        let mut keys = Keys::open(&path, "node-1", Duration::from_secs(1), now).unwrap();
        if let Some(first) = &mut keys.stored.first {
            first.created = 0;
        }
        let nobody = Progress {
            quiet: true,
            ..Progress::default()
        };
        keys.advance(nobody, now).unwrap();
        assert_eq!(keys.phase(), Phase::Prepare);
        let given_up = now + PATIENCE;
        for (at, phase) in [
            (given_up, Phase::Retire),
            (given_up + PROPAGATION, Phase::Steady),
            (given_up + REST / 2, Phase::Steady),
            (given_up + REST, Phase::Prepare),
        ] {
            keys.advance(nobody, at).unwrap();
            assert_eq!(keys.phase(), phase);
            keys = Keys::open(&path, "node-1", Duration::from_secs(1), given_up).unwrap();
        }
    }
}
