//! The options that a cluster of `TiCDC` needs.

use std::path::PathBuf;

use clap::Args;

use super::{Common, exit::Failure};
use crate::operator::backend::TiCdc;

/// Who asks.
#[derive(Debug, Args)]
pub(super) struct TiCdcArgs {
    /// Who asks a cluster of `TiCDC` that wants to know
    #[arg(long, env = "CAPTUREDRAIN_TICDC_USER", value_name = "NAME", requires = "ticdc_password_file")]
    ticdc_user: Option<String>,
    /// The file with that user's password
    #[arg(long, env = "CAPTUREDRAIN_TICDC_PASSWORD_FILE", value_name = "FILE", requires = "ticdc_user")]
    ticdc_password_file: Option<PathBuf>,
}

impl TiCdcArgs {
    /// The way to the servers.
    pub(super) fn connect(&self, common: &Common) -> Result<TiCdc, Failure> {
        let (servers, dialer) = common.client()?.into_parts();
        let login = match (&self.ticdc_user, &self.ticdc_password_file) {
            (Some(user), Some(file)) => {
                let cannot = |error| Failure::environment(format!("{} cannot be read: {error}", file.display()));
                let password = std::fs::read_to_string(file).map_err(cannot)?;
                Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
            _ => None,
        };
        Ok(TiCdc::new(servers, dialer, login))
    }
}
