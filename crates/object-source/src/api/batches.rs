//! Decodes the objects of a list on other threads, in batches, while more of the list arrives.
//!
//! Invariant: events are returned in the order of their texts, so an object that is named twice has its last version.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use service_model::wire::ConversionContext;
use tokio::task::JoinHandle;

use super::decode::Event;
use super::position::Stop;

/// Texts of a full batch. Reading as many takes about as long as decoding them.
const FULL: usize = 256;

/// What the conversions of a collection share. Only one thread converts at a time.
pub(super) type SharedContext = Arc<Mutex<ConversionContext>>;

/// Decodes one text; the error is about the list, not about an object in it.
pub(super) type Decode<M> = fn(&[u8], &mut ConversionContext) -> Result<Event<M>, String>;

type Events<M> = Vec<Result<Event<M>, String>>;

/// Texts that are not decoded yet.
pub(super) struct Batches<M> {
    waiting: Vec<Bytes>,
    running: Option<JoinHandle<Events<M>>>,
}

impl<M> Default for Batches<M> {
    fn default() -> Self {
        Batches {
            waiting: Vec::new(),
            running: None,
        }
    }
}

impl<M: Send + Sync + 'static> Batches<M> {
    /// Adds a text. Whether the batch is full, and [`Batches::begin`] is to be called.
    pub(super) fn add(&mut self, text: Bytes) -> bool {
        self.waiting.push(text);
        self.waiting.len() >= FULL
    }

    /// Begins to decode what was added, and returns the events of the batch before.
    pub(super) async fn begin(
        &mut self,
        context: &SharedContext,
        decode: Decode<M>,
    ) -> Result<Events<M>, Stop> {
        let events = self.finish().await?;
        let (texts, context) = (std::mem::take(&mut self.waiting), context.clone());
        self.running = Some(tokio::task::spawn_blocking(move || {
            let mut context = context.lock().unwrap_or_else(PoisonError::into_inner);
            let texts = texts.iter();
            texts.map(|text| decode(text, &mut context)).collect()
        }));
        Ok(events)
    }

    /// Returns the events of the batch that is being decoded.
    pub(super) async fn finish(&mut self) -> Result<Events<M>, Stop> {
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        match running.await {
            Ok(events) => Ok(events),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is ending.
            Err(_) => Err(Stop::Closed),
        }
    }
}
