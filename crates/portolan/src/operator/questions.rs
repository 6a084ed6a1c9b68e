//! Questions of other parts of the daemon: the same paths as those of commands, answered by the same thread.

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait; further ones are refused.
const WAITING: usize = 16;

/// A question and where its answer goes.
pub(super) struct Question {
    /// Path and query, as a command sends them.
    pub(super) path: String,
    pub(super) answer: oneshot::Sender<(StatusCode, Vec<u8>)>,
}

/// Asks.
#[derive(Clone, Debug)]
pub(crate) struct Questions(mpsc::Sender<Question>);

/// Receives the questions.
#[derive(Debug)]
pub(crate) struct Asked(pub(super) mpsc::Receiver<Question>);

/// Both ends.
pub(crate) fn questions() -> (Questions, Asked) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Questions(sender), Asked(receiver))
}

impl Questions {
    /// The JSON document at a path, or the reason why there is none, with the code of the answer; `None` when too many questions
    /// wait.
    pub(crate) async fn ask(&self, path: String) -> Option<(StatusCode, Vec<u8>)> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Question { path, answer }).ok()?;
        answered.await.ok()
    }
}
