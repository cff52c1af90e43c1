//! Runs the stages of a `CaptureDrain` against a cluster: observe → validate → plan → act → status.

use jiff::Timestamp;

use crate::{
    client::{Client, ClientError},
    resource::{Action, CaptureDrain, Observed, Outcome, Unseen, plan, status, validate},
};

/// What can be seen of the cluster now.
pub async fn observe(client: &Client) -> Observed {
    let seen = async { Ok::<_, ClientError>((client.status().await?, client.drains().await?)) };
    match seen.await {
        Ok((view, ends)) => Observed { unseen: None, captures: view.captures, drain: view.drain, ends },
        Err(error) => Observed { unseen: Some(unseen(&error)), ..Observed::default() },
    }
}

fn unseen(error: &ClientError) -> Unseen {
    let sentence = error.to_string();
    if error.is_unauthorised() { Unseen::Unauthorized(sentence) } else { Unseen::Unreachable(sentence) }
}

/// One round: looks, decides, acts, and writes into the status what came of it.
pub async fn reconcile(client: &Client, drain: &mut CaptureDrain) {
    let observed = observe(client).await;
    let aim = validate(drain, &observed);
    let plan = plan(drain, &aim, &observed);
    let outcome = act(client, &plan.action).await;
    drain.status = Some(status(drain, &aim, &plan, &outcome, &observed, Timestamp::now()));
}

async fn act(client: &Client, action: &Action) -> Outcome {
    let answered = match action {
        Action::Nothing => return Outcome::Idle,
        Action::Start(request) => client.drain((**request).clone()).await,
        Action::Cancel { capture, epoch } => {
            let cancelled = client.cancel(capture, Some(*epoch), "CaptureDrain").await;
            cancelled.map(|()| capturedrain_core::model::Answer::Done)
        }
    };
    match answered {
        Ok(answer) => Outcome::Answered(answer),
        Err(ClientError::Refused(refusal)) => Outcome::Refused(refusal),
        Err(error) => Outcome::Unseen(unseen(&error)),
    }
}
