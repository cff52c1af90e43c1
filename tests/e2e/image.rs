//! Images for the nodes: this project's own, which `make image` builds, one of etcd, and one of busybox for everything
//! else. No registry is there to pull them from.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// This project's image.
pub(crate) const CAPTUREDRAIN: (&str, &str) = ("capturedrain.test/capturedrain", "e2e");
/// What members of a bundled etcd run.
pub(crate) const ETCD: (&str, &str) = ("capturedrain.test/etcd", "e2e");
/// What holds the sandboxes of pods, and whatever has to be there in a test.
pub(crate) const BUSYBOX: &str = "capturedrain.test/busybox:1";

const BUSYBOX_FILE: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"sleep\", \"infinity\"]\n";

const ETCD_FILE: &str = "FROM scratch\nCOPY etcd /usr/local/bin/etcd\nENV PATH=/usr/local/bin\nENTRYPOINT [\"etcd\"]\n";

/// The archives of all images.
pub(crate) fn archives() -> &'static [PathBuf; 3] {
    static ARCHIVES: OnceLock<[PathBuf; 3]> = OnceLock::new();
    ARCHIVES.get_or_init(|| {
        let etcd = env::var("CAPTUREDRAIN_ETCD").expect("CAPTUREDRAIN_ETCD names the binary: `make e2e` does that");
        let tag = format!("{}:{}", ETCD.0, ETCD.1);
        [capturedrain(), build(BUSYBOX, "/bin/busybox", BUSYBOX_FILE), build(&tag, &etcd, ETCD_FILE)]
    })
}

/// What `make e2e` has built.
fn capturedrain() -> PathBuf {
    let path = env::var("CAPTUREDRAIN_IMAGE").expect("CAPTUREDRAIN_IMAGE names the archive: `make e2e` does that");
    PathBuf::from(path)
}

/// An image of one static binary.
fn build(tag: &str, binary: &str, file: &str) -> PathBuf {
    let binary = Path::new(binary);
    let name = binary.file_name().unwrap();
    let folder = env::temp_dir().join("capturedrain-images").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let copied = std::fs::copy(binary, folder.join(name));
    copied.unwrap_or_else(|error| panic!("{}: {error}: `make tools` installs it", binary.display()));
    std::fs::write(folder.join("Containerfile"), file).unwrap();
    let archive = folder.join("image.tar");
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.env("BUILDAH_ISOLATION", "chroot").env("STORAGE_DRIVER", "vfs").args(args).current_dir(&folder);
        let output = command.output().expect("buildah cannot be started: `make tools` installs it");
        assert!(output.status.success(), "buildah {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    buildah(&["bud", "-q", "-t", tag, "-f", "Containerfile", "."]);
    buildah(&["push", "-q", tag, &format!("oci-archive:{}:{tag}", archive.display())]);
    archive
}
