//! Stage 4, apply: carries out what was planned.

use capturedrain_core::model::Answer;

use super::{backend::Backend, plan::Action, status::Outcome};

/// Does it, and says what came of it.
pub async fn apply(backend: &dyn Backend, action: &Action) -> Outcome {
    match action {
        Action::Nothing => Outcome::Idle,
        Action::Start(request) => backend.start(request).await,
        Action::Cancel { capture, epoch } => backend.cancel(capture, *epoch).await,
        Action::Release { capture, node_epoch } => backend.release(capture, *node_epoch).await,
    }
}

/// The answer to what has no answer of its own.
pub(super) fn done(outcome: Result<(), Outcome>) -> Outcome {
    outcome.map_or_else(|failed| failed, |()| Outcome::Answered(Answer::Done))
}
