//! Puts the own binary into a folder, for a pod whose image has none.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
};

/// What it is called there.
const NAME: &str = "capturedrain";

/// Why it is not there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no such folder.
    #[error("{} is no folder: name one that is there, such as where a volume is mounted", .0.display())]
    NoFolder(PathBuf),
    /// It cannot be written there, or not whole.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The own binary cannot be read.
    #[error("cannot read the own binary: {0}")]
    Own(io::Error),
}

/// Copies the own binary into a folder, all of it or nothing, so that everybody may run it. Where it is then.
///
/// # Errors
/// When there is no such folder, or it cannot be written there.
pub fn install(folder: &Path) -> Result<PathBuf, InstallError> {
    if !folder.is_dir() {
        return Err(InstallError::NoFolder(folder.to_owned()));
    }
    let own = env::current_exe().map_err(InstallError::Own)?;
    let (path, draft) = (folder.join(NAME), folder.join(format!(".{NAME}.{}", process::id())));
    let put = || {
        let mut from = fs::File::open(&own)?;
        let mut to = fs::File::create(&draft)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(fs::Permissions::from_mode(0o755))?;
        to.sync_all()?;
        drop(to);
        fs::rename(&draft, &path)
    };
    put().map_err(|source| {
        // What is half written is of no use; that it cannot be removed either is not worth more words.
        let _ = fs::remove_file(&draft);
        InstallError::Write { path: path.clone(), source }
    })?;
    Ok(path)
}
