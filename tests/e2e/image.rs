//! Images for the nodes: this project's own, which `make image` builds, and one of busybox for everything else. No
//! registry is there to pull them from.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

/// This project's image.
pub(crate) const CAPTUREDRAIN: (&str, &str) = ("capturedrain.test/capturedrain", "e2e");
/// What holds the sandboxes of pods, and whatever has to be there in a test.
pub(crate) const BUSYBOX: &str = "capturedrain.test/busybox:1";

const BUSYBOX_FILE: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"sleep\", \"infinity\"]\n";

/// The archives of all images.
pub(crate) fn archives() -> &'static [PathBuf; 2] {
    static ARCHIVES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    ARCHIVES.get_or_init(|| [capturedrain(), busybox()])
}

/// What `make e2e` has built.
fn capturedrain() -> PathBuf {
    let path = env::var("CAPTUREDRAIN_IMAGE").expect("CAPTUREDRAIN_IMAGE names the archive: `make e2e` does that");
    PathBuf::from(path)
}

fn busybox() -> PathBuf {
    let folder = env::temp_dir().join("capturedrain-busybox");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy("/bin/busybox", folder.join("busybox")).expect("busybox is there: `make tools` installs it");
    std::fs::write(folder.join("Containerfile"), BUSYBOX_FILE).unwrap();
    let archive = folder.join("busybox.tar");
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.env("BUILDAH_ISOLATION", "chroot").env("STORAGE_DRIVER", "vfs").args(args).current_dir(&folder);
        let output = command.output().expect("buildah cannot be started: `make tools` installs it");
        assert!(output.status.success(), "buildah {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    buildah(&["bud", "-q", "-t", BUSYBOX, "-f", "Containerfile", "."]);
    buildah(&["push", "-q", BUSYBOX, &format!("oci-archive:{}:{BUSYBOX}", archive.display())]);
    archive
}
