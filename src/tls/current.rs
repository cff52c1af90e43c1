//! The credentials of now: the files are looked at again and again.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::watch, task, time};

use super::{
    Credentials, Files, TlsError,
    credentials::{Pem, Texts},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Below which share of its time a certificate is called old.
const OLD_SHARE: f64 = 0.1;

/// The latest credentials that were good.
#[derive(Debug, Clone)]
pub struct Current(watch::Receiver<Arc<Credentials>>);

/// Says whether new credentials may be used.
pub(crate) type Check = Arc<dyn Fn(&Credentials) -> Result<(), TlsError> + Send + Sync>;

impl Current {
    /// Credentials that stay as they are: enough for a command.
    ///
    /// # Errors
    /// When the files are no good.
    pub fn fixed(files: &Files) -> Result<Self, TlsError> {
        Ok(Self(watch::channel(Arc::new(Credentials::load(files)?)).1))
    }

    /// Credentials that came otherwise, as out of a Secret, and stay as they are. `name` says where from.
    ///
    /// # Errors
    /// When they are no good.
    pub fn of_pem(name: &str, pem: Pem) -> Result<Self, TlsError> {
        let (files, texts) = pem.named(name);
        Ok(Self(watch::channel(Arc::new(Credentials::of(&files, &texts)?)).1))
    }

    /// Credentials that follow their files for as long as somebody has this. New ones that are no good are logged, and
    /// the old ones stay. Has to be called in a runtime.
    ///
    /// # Errors
    /// When the files are no good now.
    pub fn follow(files: Files, check: Check) -> Result<Self, TlsError> {
        let adopted = Texts::read(&files)?;
        let credentials = Credentials::of(&files, &adopted)?;
        check(&credentials)?;
        let (sender, receiver) = watch::channel(Arc::new(credentials));
        let follower = Follower { files, check, adopted, complaint: None, age: Age::Fresh, sender };
        task::spawn(follower.run());
        Ok(Self(receiver))
    }

    /// The latest.
    pub fn get(&self) -> Arc<Credentials> {
        self.0.borrow().clone()
    }

    /// Waits until there are others than were seen last.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody follows the files: these stay.
            std::future::pending::<()>().await;
        }
    }
}

/// How old the certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Fresh,
    Old,
    Expired,
}

/// Keeps credentials and files together.
struct Follower {
    files: Files,
    check: Check,
    adopted: Texts,
    /// What was wrong with the files when they were looked at last.
    complaint: Option<TlsError>,
    age: Age,
    sender: watch::Sender<Arc<Credentials>>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = time::sleep(LOOK) => {}
            }
            let (files, check, adopted) = (self.files.clone(), self.check.clone(), self.adopted.clone());
            let looked = task::spawn_blocking(move || look(&files, &check, &adopted)).await;
            match looked {
                Ok(Ok(None)) => self.complaint = None,
                Ok(Ok(Some((texts, credentials)))) => {
                    self.complaint = None;
                    self.adopted = texts;
                    self.sender.send_replace(Arc::new(credentials));
                    tracing::info!(file = self.file(), "TLS files have changed, new connections use them");
                }
                Ok(Err(error)) => {
                    if self.complaint.as_ref() != Some(&error) {
                        tracing::warn!(%error, "TLS files have changed and are no good, the old ones stay in use");
                    }
                    self.complaint = Some(error);
                }
                Err(error) => tracing::warn!(%error, "TLS files could not be looked at"),
            }
            self.tell_age();
        }
    }

    fn tell_age(&mut self) {
        let left = self.sender.borrow().time_left(Timestamp::now());
        let age = match left {
            Some(left) if left <= 0.0 => Age::Expired,
            Some(left) if left < OLD_SHARE => Age::Old,
            _ => Age::Fresh,
        };
        if age == self.age {
            return;
        }
        self.age = age;
        match age {
            Age::Fresh => {}
            Age::Old => tracing::warn!(file = self.file(), "certificate expires soon, renew it"),
            Age::Expired => tracing::error!(file = self.file(), "certificate has expired, others refuse it"),
        }
    }

    fn file(&self) -> String {
        let certificate = self.files.identity.as_ref().map(|(certificate, _)| certificate);
        certificate.or(self.files.ca.as_ref()).map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// New credentials, when the files have changed and are good.
fn look(files: &Files, check: &Check, adopted: &Texts) -> Result<Option<(Texts, Credentials)>, TlsError> {
    let texts = Texts::read(files)?;
    if texts == *adopted {
        return Ok(None);
    }
    let credentials = Credentials::of(files, &texts)?;
    check(&credentials)?;
    Ok(Some((texts, credentials)))
}
