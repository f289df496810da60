// SPDX-License-Identifier: GPL-2.0

//! Keys that openssl makes.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// What openssl is told for a key of that curve.
pub const P256: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// Keys with certificates, removed with the value.
pub struct Keys(PathBuf);

impl Keys {
    pub fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("ima-trim-keys.{name}.{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A new key, in `<name>.key`, `<name>.pub` and `<name>.pem`.
    pub fn make(&self, name: &str, algorithm: &[&str]) -> (PathBuf, String) {
        let file = |ending: &str| self.path(&format!("{name}.{ending}")).display().to_string();
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=trims"];
        let (key, certificate, public) = (file("key"), file("pem"), file("pub"));
        arguments.extend(["-keyout", &key, "-out", &certificate, "-newkey"]);
        arguments.extend(algorithm);
        openssl(&arguments);
        openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
        (certificate.into(), key)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What openssl prints.
pub fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    output.stdout
}
