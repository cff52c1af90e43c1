//! Compiles the protocol with the pure-Rust `protox`, and keeps the descriptor for reflection.
use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let files = ["drain", "hook", "capture"].map(|name| format!("capturedrain/v1/{name}.proto"));
    let files = protox::compile(files, ["proto"])?;
    fs::write(out.join("descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().btree_map(".").compile_fds(files)?;
    Ok(())
}
